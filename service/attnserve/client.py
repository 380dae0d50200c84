"""The Python client of `attnserve.v1`: pictures in, predictions and attention maps out as numpy arrays.

Synchronous and small: owns the channel, the deadlines and the order of a stream. Knows the protocol only: no server
module, no onnxruntime, no torch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Self

import grpc
from google.rpc.error_details_pb2 import RetryInfo
from grpc_status import rpc_status

from attnserve.client_messages import (
    AttentionLevel,
    AttentionMap,
    Classification,
    ModelInfo,
    ModelStatus,
    Picture,
    Prediction,
    SiteInfo,
    Timings,
    from_model,
    from_reply,
    to_request,
)
from attnserve.errors import AttnserveError
from attnserve.preprocess import CropBox
from attnserve.v1 import attention_pb2 as pb
from attnserve.v1 import attention_pb2_grpc

__all__ = [
    "AttentionLevel",
    "AttentionMap",
    "Classification",
    "Client",
    "ClientError",
    "CropBox",
    "ModelInfo",
    "ModelStatus",
    "Picture",
    "Prediction",
    "SiteInfo",
    "Timings",
]

MAX_REPLY_BYTES = 64 * 1024 * 1024
"""Every map of 64 pictures of a 224 px ResNet-50 is 8 MiB, twice gRPC's own limit; larger views have room too."""

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


DEFAULT_PORT = 8001


class Client:
    """A connection to one server, `HOST` or `HOST:PORT`; a context manager, and safe to share between threads.

    Every call has a deadline: its own `timeout_s`, else the client's. Failures are raised as `ClientError`.
    """

    def __init__(self, target: str, *, timeout_s: float = 10.0) -> None:
        self._timeout_s = timeout_s
        self._channel = grpc.insecure_channel(
            _with_port(target), [("grpc.max_receive_message_length", MAX_REPLY_BYTES)]
        )
        self._stub = attention_pb2_grpc.AttentionServiceStub(self._channel)  # type: ignore[no-untyped-call]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; calls under way fail with CANCELLED."""
        self._channel.close()

    def classify(
        self,
        images: Sequence[Picture],
        *,
        model: str,
        version: str = "",
        top_k: int = 5,
        attention: AttentionLevel = "none",
        sites: Sequence[str] = (),
        timeout_s: float | None = None,
    ) -> list[Classification]:
        """Classify all `images` in one call: one answer per picture, in order; one bad picture fails the call.

        An empty `version` is the newest that is ready, `top_k` 0 is all classes, empty `sites` is all sites. Blocks.
        Raises `ValueError` for an array of another dtype or shape, `OSError` for a file that cannot be read.
        """
        request = to_request(images, model=model, version=version, top_k=top_k, attention=attention, sites=sites)
        return _answers(self._call(self._stub.Classify, request, timeout_s), expected=len(images))

    def classify_stream(
        self,
        images: Iterable[Picture],
        *,
        model: str,
        version: str = "",
        top_k: int = 5,
        attention: AttentionLevel = "none",
        sites: Sequence[str] = (),
        timeout_s: float | None = None,
        max_in_flight: int = 64,
    ) -> Iterator[Classification | ClientError]:
        """Classify any number of pictures over one call: one outcome per picture, in order.

        A picture that the server refuses, or that cannot be sent (INVALID_ARGUMENT), is a `ClientError` in its place.
        The error is raised, and no outcome follows, only when the call as a whole ends early.

        `images` is read in the caller's thread, up to `max_in_flight` pictures ahead of the outcome being returned:
        choose 1 for a live source. `timeout_s` spans the whole stream: give it the time that all pictures need.
        """
        if max_in_flight < 1:
            raise ValueError(f"max_in_flight must be at least 1, got {max_in_flight}")
        pack = partial(to_request, model=model, version=version, top_k=top_k, attention=attention, sites=sites)
        requests: SimpleQueue[pb.ClassifyRequest | None] = SimpleQueue()
        call = self._stub.ClassifyStream(iter(requests.get, None), timeout=self._timeout(timeout_s))
        try:
            yield from _in_order(images, pack, requests, _outcomes(call), max_in_flight)
        except grpc.RpcError as error:
            raise _client_error(error) from None
        finally:
            requests.put(None)  # lets gRPC's sending thread end, also when the caller walks away
            call.cancel()

    def models(self, *, timeout_s: float | None = None) -> list[ModelStatus]:
        """Every model version that the server knows, ready or not."""
        reply = self._call(self._stub.ListModels, pb.ListModelsRequest(), timeout_s)
        return [ModelStatus(status.name, status.version, status.ready, status.reason) for status in reply.models]

    def model(self, name: str, version: str = "", *, timeout_s: float | None = None) -> ModelInfo:
        """One model version; an empty `version` is the newest that is ready."""
        return from_model(self._call(self._stub.GetModel, pb.GetModelRequest(name=name, version=version), timeout_s))

    def _timeout(self, timeout_s: float | None) -> float:
        return self._timeout_s if timeout_s is None else timeout_s

    def _call(self, rpc: Callable[..., Any], request: Any, timeout_s: float | None) -> Any:
        try:
            return rpc(request, timeout=self._timeout(timeout_s))
        except grpc.RpcError as error:
            raise _client_error(error) from None


def _in_order(
    images: Iterable[Picture],
    pack: Callable[[Sequence[Picture]], pb.ClassifyRequest],
    requests: SimpleQueue[pb.ClassifyRequest | None],
    outcomes: Iterator[Classification | ClientError],
    max_in_flight: int,
) -> Iterator[Classification | ClientError]:
    """Send pictures and give outcomes in turn; a picture that cannot be sent keeps its place."""
    waiting: deque[ClientError | None] = deque()  # None: sent, the server answers
    for image in images:
        if len(waiting) == max_in_flight:
            yield waiting.popleft() or _next(outcomes)
        try:
            requests.put(pack([image]))
            waiting.append(None)
        except (OSError, ValueError) as error:
            waiting.append(ClientError("INVALID_ARGUMENT", str(error)))
    requests.put(None)
    while waiting:
        yield waiting.popleft() or _next(outcomes)
    for _ in outcomes:  # reads the end of the call, so that both sides see it complete
        raise ClientError("INTERNAL", "the server answered more pictures than were sent")


def _next(outcomes: Iterator[Classification | ClientError]) -> Classification | ClientError:
    for outcome in outcomes:
        return outcome
    raise ClientError("INTERNAL", "the server ended the stream before it had answered every picture")


def _outcomes(call: Iterable[pb.ClassifyStreamResponse]) -> Iterator[Classification | ClientError]:
    for expected, reply in enumerate(call):
        if reply.sequence != expected:
            raise ClientError("INTERNAL", f"the server answered picture {reply.sequence} in place of {expected}")
        if reply.code != 0:
            retry_after_s = reply.retry_after_ms / 1e3 if reply.retry_after_ms else None
            yield ClientError(_CODE_NAMES.get(reply.code, "UNKNOWN"), reply.message, retry_after_s)
        else:
            yield from _answers(reply.response, expected=1)


def _answers(reply: pb.ClassifyResponse, *, expected: int) -> list[Classification]:
    answers = from_reply(reply)
    if len(answers) != expected:
        raise ClientError("INTERNAL", f"{expected} pictures were sent, {len(answers)} were answered")
    return answers


def _client_error(error: Any) -> ClientError:
    """`error` is a `grpc.RpcError` and also the finished `grpc.Call`; the stubs do not say so."""
    return ClientError(error.code().name, error.details() or "no reason given", _retry_after_s(error))


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


def _with_port(target: str) -> str:
    """The target; a bare host gets our port, for gRPC would try 443."""
    return target if ":" in target or "/" in target else f"{target}:{DEFAULT_PORT}"
