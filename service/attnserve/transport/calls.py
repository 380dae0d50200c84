"""What every transport does alike: makes a `Call` of what came over a wire, and counts those that are open.

Knows no gRPC server; `status_of` knows what gRPC says of an error.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterable
from typing import Any

import grpc
from google.protobuf import duration_pb2
from google.rpc import error_details_pb2, status_pb2

from attnserve.access import OPEN, Access
from attnserve.contract import Call, Inbox, Listener
from attnserve.correlation import REQUEST_ID, RequestIds
from attnserve.errors import AttnserveError

CLIENT_ID = "x-client-id"  # metadata by which a caller says who it is
FLUSH_S = 1.0  # at the end of a drain, for the last answers to leave before connections are cut
# Between the last answer of a stream and its end while draining: a server that ends a stream from its side resets it at
# once, and HAProxy 2.6 then throws away what it has not passed on yet (haproxy/haproxy#1219).
LAST_ANSWER_S = 0.1
_LONGEST_CLIENT_ID = 256
_CALM_S = 0.1  # a caller that was refused has had time to hear of it and to go elsewhere
_LONGEST_LINGER_S = 2.0  # some callers never stop calling

Metadata = tuple[tuple[str, str | bytes], ...]


class Calls:
    """The calls of one inbox. `open` and `ended` are called on its thread, the rest on the event loop.

    Args:
        inbox: Where their handlers and completions run.
        listener: Hears of every answered call.
        access: Tells what callers may do.
        on_idle: Called on the inbox's thread each time the last open call has its answer; must be quick.
        loop: Where the drain waits.
    """

    def __init__(
        self,
        inbox: Inbox,
        listener: Listener,
        *,
        access: Access = OPEN,
        on_idle: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._inbox = inbox
        self._listener = listener
        self._access = access
        self._on_idle = on_idle
        self._clock = clock
        self._loop = loop
        self._request_ids = RequestIds()
        self._open = 0
        self._begun = 0
        self._quiet = asyncio.Event()
        self._awaited = False

    @property
    def open_calls(self) -> int:
        """Calls begun and not yet answered; any thread may read it."""
        return self._open

    def open(
        self,
        method: str,
        answer: Callable[[Any, AttnserveError | None], None],
        *,
        metadata: Iterable[tuple[str, str | bytes]],
        peer: str,
        remaining_s: float | None,
        identities: Iterable[str] = (),
    ) -> Call:
        """A call that is counted until `ended`, which its `answer` must call.

        Args:
            metadata: Of the request; says who asks (`CLIENT_ID`) and by what name the call is known.
            peer: Who asks where the metadata does not say.
            remaining_s: Until the caller's deadline; None where it set none.
            identities: See `Access`.
        """
        request_id, trace = self._request_ids.of(metadata)
        grant = self._access.grant(metadata, identities)
        self._open += 1
        self._begun += 1
        return Call(
            method,
            deadline=math.inf if remaining_s is None else self._clock() + remaining_s,
            client=grant.caller(client_of(metadata), peer),
            inbox=self._inbox,
            listener=self._listener,
            clock=self._clock,
            answer=answer,
            request_id=request_id,
            trace=trace,
            grant=grant,
        )

    def ended(self) -> None:
        """One of them has its answer."""
        self._open -= 1
        if not self._open:
            if self._awaited:
                self._loop.call_soon_threadsafe(self._quiet.set)
            self._on_idle()

    async def finish(self, timeout_s: float, fail_rest: Callable[[], None]) -> bool:
        """Wait until none is open; after `timeout_s` seconds have the rest failed. Returns whether all were in time."""
        in_time = await self._quiet_within(timeout_s)
        if not in_time:
            fail_rest()
            await self._quiet_within(FLUSH_S)
        return in_time

    async def linger(self) -> None:
        """Wait until no call has come for a while, and no longer than callers are owed who never stop calling."""
        end = self._clock() + _LONGEST_LINGER_S
        begun = -1
        while begun != self._begun and self._clock() < end:
            begun = self._begun
            await asyncio.sleep(_CALM_S)

    async def _quiet_within(self, timeout_s: float) -> bool:
        self._awaited = True  # before the count is read: who ends the last call later sees it
        try:
            async with asyncio.timeout(timeout_s):
                while self._open:  # again, for another may have begun as the last one ended
                    await self._quiet.wait()
                    self._quiet.clear()
        except TimeoutError:
            return False
        return True


class Once:
    """Does something the first time it is called: several fronts that drain at once fail what is left together."""

    def __init__(self, job: Callable[[], None]) -> None:
        self._job: Callable[[], None] | None = job

    def __call__(self) -> None:
        """Do it, or nothing."""
        job, self._job = self._job, None
        if job is not None:
            job()


def client_of(metadata: Iterable[tuple[str, str | bytes]]) -> str:
    """What the caller calls itself; empty where it does not."""
    for key, value in metadata:
        if key == CLIENT_ID and isinstance(value, str):
            return value[:_LONGEST_CLIENT_ID]
    return ""


def status_of(error: AttnserveError, request_id: str = "") -> tuple[grpc.StatusCode, str, Metadata]:
    """Code, message and trailing metadata: the request's id, and RetryInfo where trying again makes sense."""
    code = grpc.StatusCode[error.status]
    message = str(error)
    trailing: list[tuple[str, str | bytes]] = [(REQUEST_ID, request_id)] if request_id else []
    if error.retry_after_s is not None:
        retry = duration_pb2.Duration()
        retry.FromNanoseconds(int(error.retry_after_s * 1e9))
        status = status_pb2.Status(code=code.value[0], message=message)
        status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=retry))
        trailing.append(("grpc-status-details-bin", status.SerializeToString()))
    return code, message, tuple(trailing)
