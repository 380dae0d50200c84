"""What is not I/O about a call: its terms, and the reading of its replies. Knows no channel, thread or event loop."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from attnserve.client.errors import ClientError, from_code
from attnserve.client.messages import Classification, ModelStatus, Picture
from attnserve.client.retry import Attempts, Retry
from attnserve.client.security import check_token
from attnserve.client.translation import from_reply
from attnserve.v1 import attention_pb2 as pb

DEFAULT_PORT = 8001
DEFAULT_RETRY = Retry()
DEFAULT_TIMEOUT_S = 10.0

MAX_REPLY_BYTES = 64 * 1024 * 1024
"""Every map of 64 pictures of a 224 px ResNet-50 is 8 MiB, twice gRPC's own limit; larger views have room too."""

CHANNEL_OPTIONS = [
    ("grpc.max_receive_message_length", MAX_REPLY_BYTES),
    # gRPC waits 1 s, later up to 120 s, before it connects again, and fails every call meanwhile, retries too.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 5_000),
    # A connection whose other end has vanished (a lost machine, an expired NAT entry) would fail call after call by its
    # deadline. Pings tell within 40 s, also between calls. A server of gRPC's defaults closes the connection for more
    # than one in 5 minutes (GOAWAY, too_many_pings); attnserve allows one in 10 s, `attnserve.transport.options`.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),  # no limit
]

Pack: TypeAlias = Callable[[Sequence[Picture]], pb.ClassifyRequest]


@dataclass(frozen=True)
class Terms:
    """What every call of one client goes by. Raises `ValueError` naming the argument that is wrong."""

    timeout_s: float
    retry: Retry | None
    hedge_after_s: float | None
    client_id: str | None
    token: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if not 0 < self.timeout_s < math.inf:
            raise ValueError(f"timeout_s must be positive and finite, got {self.timeout_s}")
        if self.hedge_after_s is not None and not 0 < self.hedge_after_s < math.inf:
            raise ValueError(f"hedge_after_s must be positive and finite, got {self.hedge_after_s}")
        if self.client_id is not None and not re.fullmatch(r"[!-~]{1,128}", self.client_id):
            raise ValueError(f"client_id must be 1 to 128 printable ASCII characters, got {self.client_id!r}")
        if self.token is not None:
            check_token(self.token)

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Sent with a call that begins now: who calls, and the OpenTelemetry span that is active, if there is one."""
        name = () if self.client_id is None else (("x-client-id", self.client_id),)
        token = () if self.token is None else (("authorization", f"Bearer {self.token}"),)
        return (*name, *token, *_traceparent())

    def timeout_of(self, timeout_s: float | None) -> float:
        """Seconds for one call, which may bring its own; where its time is up already, gRPC refuses it."""
        if timeout_s is None:
            return self.timeout_s
        if not timeout_s < math.inf:  # so that NaN is refused too
            raise ValueError(f"timeout_s must be finite, got {timeout_s}")
        return timeout_s

    def attempts(self, timeout_s: float | None, now: float, random: Callable[[], float]) -> Attempts:
        """The attempts of a call that begins now."""
        return Attempts(self.retry, now + self.timeout_of(timeout_s), random)


def _traceparent() -> tuple[tuple[str, str], ...]:
    """The active span in the form of W3C Trace Context. A program that has spans has imported OpenTelemetry itself."""
    trace = sys.modules.get("opentelemetry.trace")
    if trace is None:
        return ()
    context = trace.get_current_span().get_span_context()
    if not context.is_valid:
        return ()
    return (("traceparent", f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"),)


def with_port(target: str) -> str:
    """The target; a bare host gets our port, for gRPC would try 443."""
    return target if ":" in target or "/" in target else f"{target}:{DEFAULT_PORT}"


def from_statuses(reply: pb.ListModelsResponse) -> list[ModelStatus]:
    """One `ModelStatus` for each version, as the server lists them."""
    return [ModelStatus(status.name, status.version, status.ready, status.reason) for status in reply.models]


def answers(reply: pb.ClassifyResponse, *, expected: int) -> list[Classification]:
    """One answer per picture; INTERNAL where the server gave another number of them."""
    found = from_reply(reply)
    if len(found) != expected:
        raise ClientError("INTERNAL", f"{expected} pictures were sent, {len(found)} were answered")
    return found


def packed(pack: Pack, image: Picture) -> pb.ClassifyRequest | ClientError:
    """The request for one picture of a stream, or, where it cannot be sent, the outcome in its place."""
    try:
        return pack([image])
    except (OSError, ValueError) as error:
        refused = ClientError("INVALID_ARGUMENT", str(error))
        refused.__cause__ = error  # an `OSError` is about the file
        return refused


def check_window(max_in_flight: int) -> None:
    """Raise `ValueError` for a window that lets nothing through."""
    if max_in_flight < 1:
        raise ValueError(f"max_in_flight must be at least 1, got {max_in_flight}")


class Replies:
    """The replies of one stream, which must answer each picture once and in turn; else INTERNAL is raised."""

    def __init__(self) -> None:
        self._expected = 0

    def outcome(self, reply: pb.ClassifyStreamResponse | None) -> Classification | ClientError:
        """The outcome that a reply brings; None is the end of the stream, which then came too early."""
        if reply is None:
            raise ClientError("INTERNAL", "the server ended the stream before it had answered every picture")
        if reply.sequence != self._expected:
            raise ClientError("INTERNAL", f"the server answered picture {reply.sequence} in place of {self._expected}")
        self._expected += 1
        if reply.code != 0:
            return from_code(reply.code, reply.message, reply.retry_after_ms / 1e3 if reply.retry_after_ms else None)
        return answers(reply.response, expected=1)[0]

    def end(self, reply: pb.ClassifyStreamResponse | None) -> None:
        """What comes after every picture was answered: nothing."""
        if reply is not None:
            raise ClientError("INTERNAL", "the server answered more pictures than were sent")
