"""What a failed call becomes: one `ClientError`, made of gRPC's status and the details that the server attached.

Knows no channel; reads a finished call and nothing else.
"""

from __future__ import annotations

from typing import Any

import grpc
from google.rpc.error_details_pb2 import RetryInfo
from grpc_status import rpc_status

from attnserve.errors import AttnserveError

_CODE_NAMES: dict[int, str] = {code.value[0]: code.name for code in grpc.StatusCode}


class ClientError(AttnserveError):
    """A call, or one picture of a stream, that failed.

    Attributes:
        code: Name of the canonical gRPC status code, e.g. `NOT_FOUND`.
        message: The reason in words, as the server gave it.
        retry_after_s: Seconds after which trying again makes sense, where the server said so.
    """

    def __init__(self, code: str, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(f"{code}: {message}", retry_after_s=retry_after_s)
        self.code = code
        self.message = message

    def __reduce__(self) -> tuple[type[ClientError], tuple[str, str, float | None]]:
        """So that it survives the way to another process."""
        return type(self), (self.code, self.message, self.retry_after_s)


def from_call(call: Any, *, closing: bool) -> ClientError:
    """The error of a finished `grpc.Call`, which is what gRPC raises too; its stubs do not say so.

    Where this side is not `closing`, CANCELLED is a server or a proxy that let go of the call: UNAVAILABLE, as it is
    where the connection goes too.
    """
    code = call.code().name
    if code == "CANCELLED" and not closing:
        code = "UNAVAILABLE"
    return ClientError(code, call.details() or "no reason given", _retry_after_s(call))


def from_code(code: int, message: str, retry_after_s: float | None) -> ClientError:
    """The error of a status that travels inside a message."""
    return ClientError(_CODE_NAMES.get(code, "UNKNOWN"), message, retry_after_s)


def closed() -> ClientError:
    """The error of a call on a client that was closed before or meanwhile."""
    return ClientError("CANCELLED", "the client was closed")


def _retry_after_s(call: Any) -> float | None:
    """The delay that google.rpc.RetryInfo names in the status details, if they hold one."""
    try:
        status = rpc_status.from_call(call)
    except ValueError:  # the details are of another status: a proxy has replaced the server's
        return None
    for detail in status.details if status is not None else ():
        info = RetryInfo()
        if detail.Unpack(info):
            return float(info.retry_delay.ToNanoseconds()) / 1e9
    return None
