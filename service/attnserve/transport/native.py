"""The fast transport: hot unary methods over pygrpc-native, everything else over `grpcio` behind it, on one address.

Owns the native front, its threads and the socket between the two; knows no model. Needs the extra `native`.
One thread receives and runs the handlers, one is there for completions; `SharedInbox` has them take turns.

What differs from `grpcio` for the hot methods, none of which pygrpc-native can do:

* `max_request_bytes` is looked at when the message is there and unpacked: the caller hears the same, but what a hostile
  one makes the server hold is bounded only by its connections.
* Keepalive pings are never too many, and connections are neither counted nor closed for their age or for being idle.
* More than `max_metadata_bytes` of metadata answer UNKNOWN (HTTP status 431), far more end the connection.
* Requests may be compressed by gzip, not deflate.

Methods that are not hot know no peer: who calls a stream without `x-client-id` shares one client's share with all such.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pygrpc_native._native import EVENT_CANCEL, NativeGrpcFront

from attnserve.access import OPEN, Access
from attnserve.config import joined_address
from attnserve.contract import Call, Listener
from attnserve.errors import AttnserveError, ConfigError, Internal, Overloaded
from attnserve.guard import guarded
from attnserve.handlers.table import Method
from attnserve.transport.calls import FLUSH_S, Calls, Once, status_of
from attnserve.transport.grpcio import GrpcioTransport
from attnserve.transport.options import ConnectionLimits
from attnserve.transport.shared_inbox import SharedInbox

log = logging.getLogger(__name__)

_MOST_EVENTS = 64  # taken at once; the completions of a batch wait for no more than these handlers
_IO_THREADS = 1  # what they do is a few microseconds a call; two share the work and wake each other for it
_NO_LIMIT = 2**31 - 1
_FLUSH_POLL_S = 0.01  # only while draining


class NativeTransport:
    """Serves the methods on one address. See `GrpcioTransport`, whose arguments and methods these are.

    Args:
        front: Makes the native front; another one in tests.
    """

    def __init__(
        self,
        methods: Sequence[Method],
        listener: Listener,
        *,
        limits: ConnectionLimits,
        access: Access = OPEN,
        health_services: Sequence[str] = (),
        on_idle: Callable[[], None] = lambda: None,
        shares_port: bool = False,
        clock: Callable[[], float] = time.monotonic,
        front: Callable[..., NativeGrpcFront] = NativeGrpcFront,
    ) -> None:
        self._methods = [method for method in methods if method.hot and method.wrap is None]
        self._limits = limits
        self._shares_port = shares_port
        self._make_front = front
        self._front: NativeGrpcFront | None = None
        self._inbox = SharedInbox()
        loop = asyncio.get_running_loop()
        self._calls = Calls(self._inbox, listener, access=access, on_idle=on_idle, clock=clock, loop=loop)
        self._by_id: dict[int, Call] = {}  # begun and not yet answered
        self._folder = ""
        self._threads: list[threading.Thread] = []
        self._rest = GrpcioTransport(
            methods,
            listener,
            limits=_behind(limits),
            access=access,
            health_services=health_services,
            on_idle=on_idle,
            clock=clock,
        )

    @property
    def open_calls(self) -> int:
        """Requests begun and not yet answered; any thread may read it."""
        return self._calls.open_calls + self._rest.open_calls

    async def start(self, host: str, port: int) -> int:
        """Listen; returns the port bound. Raises `ConfigError` where the address cannot be had."""
        address = joined_address(host, port)
        try:
            paths = [(method.path, False) for method in self._methods]
            front = self._make_front(
                address,
                paths,
                io_threads=_IO_THREADS,
                call_details=True,
                metrics=True,
                reuse_port=self._shares_port,
                max_concurrent_streams=self._limits.max_streams,
                max_metadata_size=self._limits.max_metadata_bytes,
            )
            self._folder = tempfile.mkdtemp(prefix="attnserve-")
        except OSError as error:
            raise ConfigError(f"cannot listen for gRPC on {address}: {error}") from error
        socket = str(Path(self._folder) / "grpcio")
        await self._rest.listen(f"unix:{socket}")
        front.set_fallback(socket)
        front.start()
        self._front = front
        log.warning(
            "transport native: max_request_bytes bounds what is answered, not what callers make the server read"
        )
        for run in (partial(self._receive, front), self._inbox.run_posted):
            thread = threading.Thread(target=run, name=f"native-{len(self._threads)}", daemon=True)
            self._threads.append(thread)
            thread.start()
        return front.bound_port

    async def set_serving(self) -> None:
        """See `GrpcioTransport`."""
        await self._rest.set_serving()

    def set_model_serving(self, name: str, serving: bool) -> None:
        """See `GrpcioTransport`."""
        self._rest.set_model_serving(name, serving)

    async def set_not_serving(self) -> None:
        """See `GrpcioTransport`."""
        await self._rest.set_not_serving()

    async def drain(self, timeout_s: float, fail_rest: Callable[[], None]) -> bool:
        """See `GrpcioTransport`; calls to the rest that come when it is closed already answer UNAVAILABLE too."""
        failing = Once(fail_rest)
        in_time = await asyncio.gather(self._calls.finish(timeout_s, failing), self._rest.drain(timeout_s, failing))
        await self._flush()
        await self._calls.linger()
        if self._front is not None:
            await asyncio.to_thread(self._front.close)
        self._inbox.close()
        for thread in self._threads:
            await asyncio.to_thread(thread.join)
        shutil.rmtree(self._folder, ignore_errors=True)
        return all(in_time)

    async def _flush(self) -> None:
        """Wait until the answers have left, at most `FLUSH_S`: those that the front still holds go with it."""
        for _ in range(round(FLUSH_S / _FLUSH_POLL_S)):
            if not _unsent(self._front.metrics() if self._front else None):
                break
            await asyncio.sleep(_FLUSH_POLL_S)

    def _receive(self, front: NativeGrpcFront) -> None:
        """On the receiving thread: take what comes until the front is closed."""
        while self._received(front):
            pass

    def _received(self, front: NativeGrpcFront) -> bool:
        """Take the next events; False once closed. No frame but this one holds a request, and none while it waits."""
        events = front.recv_batch_details(_MOST_EVENTS)
        if events is None:
            return False
        self._inbox.run(partial(self._take, front, events))
        return True

    def _take(self, front: NativeGrpcFront, events: list[Any]) -> None:
        """On the inbox."""
        for kind, call_id, method, payload, _, details in events:
            try:
                if kind == EVENT_CANCEL:
                    if (call := self._by_id.get(call_id)) is not None:
                        call.cancel()
                elif len(payload) > self._limits.max_request_bytes:
                    size = f"{len(payload)} vs. {self._limits.max_request_bytes}"
                    _fail(front, call_id, Overloaded(f"SERVER: Received message larger than max ({size})"))
                else:
                    self._begin(front, call_id, self._methods[method], payload, *details)
            except Exception:  # one request's bug must not hold up those that came with it
                log.exception("a call could not be begun")
                _fail(front, call_id, Internal("internal error"))

    def _begin(
        self,
        front: NativeGrpcFront,
        call_id: int,
        method: Method,
        payload: bytes,
        metadata: tuple[tuple[str, str | bytes], ...],
        peer: str,
        remaining_s: float | None,
    ) -> None:
        answer = partial(self._answer, front, call_id)
        call = self._calls.open(method.name, answer, metadata=metadata, peer=peer, remaining_s=remaining_s)
        self._by_id[call_id] = call
        guarded(call, method.begin, method.read(payload), call)

    def _answer(self, front: NativeGrpcFront, call_id: int, message: Any, error: AttnserveError | None) -> None:
        """Send it, if the caller is still there."""
        call = self._by_id.pop(call_id)
        try:
            if error is None:
                front.respond(call_id, message.SerializeToString())
            else:
                _fail(front, call_id, error, call.request_id)
        except Exception:  # a message that cannot be written, and its caller must not wait for ever
            log.exception("%s: the answer could not be sent", call.method)
            _fail(front, call_id, Internal("internal error"), call.request_id)
        finally:
            self._calls.ended()


def _behind(limits: ConnectionLimits) -> ConnectionLimits:
    """For the server behind the front, its one caller, which has the calls of all and adds metadata of its own."""
    return ConnectionLimits(limits.max_request_bytes, 2 * limits.max_metadata_bytes, max_streams=_NO_LIMIT)


def _fail(front: NativeGrpcFront, call_id: int, error: AttnserveError, request_id: str = "") -> None:
    code, message, trailing = status_of(error, request_id)
    front.fail(call_id, code.value[0], message, trailing)


def _unsent(metrics: dict[str, Any] | None) -> int:
    """Calls that the front has and whose end it has not sent."""
    methods = metrics["methods"].values() if metrics else ()
    return sum(each["started"] - sum(status["count"] for status in each["status"].values()) for each in methods)
