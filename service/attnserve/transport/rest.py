"""The Open Inference Protocol over REST, beside gRPC: what an HTTP request goes through, up to the handlers and back.

Owns the headers and the limits of bodies; the listening is `rest_server`'s. Headers count as a call's metadata, so
`x-request-id`, `x-client-id`, `traceparent` and `grpc-timeout` mean what they mean over gRPC.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import re
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from aiohttp import web

from attnserve.access import OPEN, Access, Grant
from attnserve.admission import Admission
from attnserve.codec import rest as codec
from attnserve.codec.rest import MOST_JSON_BYTES, Body, too_large
from attnserve.contract import Call, Listener
from attnserve.correlation import REQUEST_ID
from attnserve.errors import (
    AttnserveError,
    Internal,
    InvalidArgument,
    Overloaded,
    TooSlow,
)
from attnserve.guard import guarded
from attnserve.handlers.table import Method
from attnserve.inference import grpc_service_pb2 as pb
from attnserve.transport.calls import Calls, client_of
from attnserve.transport.loop_inbox import LoopInbox
from attnserve.transport.rest_errors import failure
from attnserve.transport.rest_routes import Route, written

log = logging.getLogger(__name__)

JSON_BYTES = "Inference-Header-Content-Length"
MOST_JSON_REPLY_BYTES = 1 << 20
"""Of outputs, before they are written as JSON: Python lets nobody else run meanwhile."""

_MOST_REQUESTS = 1024  # with a body, read or answered at once
_INLINE_BYTES = 64 << 10  # what takes less time than handing it to another thread
_RETRY_S = 1.0
_TIMEOUT = re.compile(r"([0-9]{1,8})([HMSmun])")  # as gRPC over HTTP/2 writes it
_UNITS_S = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}


@dataclass(frozen=True)
class RestLimits:
    """What the REST form takes.

    Attributes:
        max_request_bytes: Of one request.
        max_held_bytes: Of all bodies that are being read or answered, shared among clients as in `Admission`.
        patience_s: For a body of a caller without a deadline to arrive, and for an answer to be read.
    """

    max_request_bytes: int
    max_held_bytes: int
    patience_s: float


class _Asked(NamedTuple):
    """A request of which only the headers were looked at."""

    route: Route
    http: web.Request
    metadata: tuple[tuple[str, str], ...]
    grant: Grant
    client: str
    arrived: float


class RestCalls:
    """Makes calls of HTTP requests. Lives on the HTTP server's loop, but for `open_calls` and `drain`.

    Args:
        methods: The table, of which the routes' are called.
        listener: Hears of every answered call.
        access: Tells what callers may do; one that is nobody is answered before its body is read.
        http_loop: The HTTP server's.
        codec_thread: One thread, for bodies that take their time.
        on_idle: Called on the HTTP server's loop each time the last open call has its answer; must be quick.
        loop: Where the drain waits.
    """

    def __init__(
        self,
        methods: Iterable[Method],
        listener: Listener,
        limits: RestLimits,
        *,
        access: Access = OPEN,
        http_loop: asyncio.AbstractEventLoop,
        codec_thread: Executor,
        on_idle: Callable[[], None],
        loop: asyncio.AbstractEventLoop,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._methods = {method.name: method for method in methods}
        self._limits = limits
        self._access = access
        self._http_loop = http_loop
        self._codec_thread = codec_thread
        self._clock = clock
        self._calls = Calls(LoopInbox(http_loop), listener, access=access, on_idle=on_idle, clock=clock, loop=loop)
        self._held = Admission(_MOST_REQUESTS, limits.max_held_bytes)
        self._unsent_bytes = 0

    @property
    def open_calls(self) -> int:
        """Requests read and not yet answered; any thread may read it."""
        return self._calls.open_calls

    async def drain(self, timeout_s: float, fail_rest: Callable[[], None]) -> bool:
        """See `GrpcioTransport`; the HTTP server goes on."""
        in_time = await self._calls.finish(timeout_s, fail_rest)
        await self._calls.linger()
        return in_time

    async def answer(self, route: Route, http: web.Request) -> web.StreamResponse:
        """Answer one request and send the answer. A caller that hangs up cancels it, and the call with it."""
        metadata = tuple((name.lower(), value) for name, value in http.headers.items())
        grant = self._access.grant(metadata)
        client = grant.caller(client_of(metadata), http.remote or "")
        asked = _Asked(route, http, metadata, grant, client, self._clock())
        with contextlib.ExitStack() as held:
            call, answered, binary = await self._begun(asked, held)
            try:
                message, error = await answered
            except asyncio.CancelledError:
                call.cancel()
                raise
            if error is None:
                response = await self._reply(message, binary, call.request_id)
            else:
                response = failure(error, call.request_id)
            if http.can_read_body:  # what nobody reads must not be taken for the next request
                response.force_close()
            await self._send(http, response)
            return response

    async def _begun(
        self, asked: _Asked, held: contextlib.ExitStack
    ) -> tuple[Call, asyncio.Future[tuple[Any, AttnserveError | None]], codec.Binary]:
        """Read the request and begin its call. Whatever is wrong with it becomes the call's answer."""
        binary = codec.Binary({}, False)
        timeout_s: float | None = None
        read: Any
        try:
            asked.grant.check_method(asked.route.rpc)
            timeout_s = _timeout_s(asked.http.headers.get("grpc-timeout"))
            if asked.route.verb == "POST":
                held.enter_context(self._room(asked))
            read = await self._read(asked, self._limits.patience_s if timeout_s is None else timeout_s)
            if isinstance(read, pb.ModelInferRequest):
                binary = codec.binary_outputs(read)
        except AttnserveError as error:
            read = error
        remaining_s = None if timeout_s is None else timeout_s - (self._clock() - asked.arrived)
        answered: asyncio.Future[tuple[Any, AttnserveError | None]] = self._http_loop.create_future()
        call = self._calls.open(
            asked.route.name,
            partial(self._end, answered),
            metadata=asked.metadata,
            peer=asked.client,
            remaining_s=remaining_s,
        )
        if not binary.everything:
            call.reply_limit_bytes = MOST_JSON_REPLY_BYTES
        guarded(call, self._methods[asked.route.rpc].begin, read, call)
        return call, answered, binary

    def _end(
        self, answered: asyncio.Future[tuple[Any, AttnserveError | None]], message: Any, error: AttnserveError | None
    ) -> None:
        self._calls.ended()
        if not answered.done():  # else the caller went away
            answered.set_result((message, error))

    @contextlib.contextmanager
    def _room(self, asked: _Asked) -> Iterator[None]:
        """Room for the body, shared among clients; raises `Overloaded`, or `TooLarge` before anything is read."""
        http, most = asked.http, self._most_bytes(asked.http)
        if (http.content_length or 0) > most:
            raise too_large(most)
        if self._unsent_bytes > self._limits.max_held_bytes:
            raise Overloaded("too many answers are not read by their callers", retry_after_s=_RETRY_S)
        foreseen = http.content_length is not None and "Content-Encoding" not in http.headers
        size_bytes = http.content_length or 0 if foreseen else most
        self._held.admit(asked.client, 1, size_bytes, 0, 0, math.inf)
        try:
            yield
        finally:
            self._held.release(asked.client, 1, size_bytes)

    def _most_bytes(self, http: web.Request) -> int:
        most = self._limits.max_request_bytes
        return most if JSON_BYTES in http.headers else min(most, MOST_JSON_BYTES)

    async def _read(self, asked: _Asked, patience_s: float) -> Any:
        """The request as a message. Raises `AttnserveError`."""
        http, route = asked.http, asked.route
        if route.verb == "GET":
            return route.read(http.match_info, Body(b""))
        most_bytes, json_bytes = self._most_bytes(http), _json_bytes(http.headers.get(JSON_BYTES))
        try:
            async with asyncio.timeout(patience_s):
                data = await _data(http, most_bytes)
        except TimeoutError:
            raise TooSlow("the request did not arrive in time") from None
        except web.RequestPayloadError:
            raise InvalidArgument("the body is not what its headers say") from None
        encoding = http.headers.get("Content-Encoding", "")

        def read() -> Any:
            return route.read(http.match_info, Body(codec.unpacked(data, encoding, most_bytes), json_bytes))

        if len(data) <= _INLINE_BYTES and not encoding:
            return read()
        return await self._http_loop.run_in_executor(self._codec_thread, read)

    async def _reply(self, message: Any, binary: codec.Binary, request_id: str) -> web.Response:
        try:
            if message.ByteSize() <= _INLINE_BYTES:
                body = written(message, binary)
            else:
                body = await self._http_loop.run_in_executor(self._codec_thread, written, message, binary)
        except ValueError:
            return failure(Internal("outputs that are not finite are no JSON: ask for binary_data"), request_id)
        headers = {REQUEST_ID: request_id}
        if body.json_bytes is not None:
            headers[JSON_BYTES] = str(body.json_bytes)
        content_type = "application/json" if body.json_bytes is None else "application/octet-stream"
        status = 200 if getattr(message, "ready", True) else 503
        return web.Response(body=body.data, status=status, headers=headers, content_type=content_type)

    async def _send(self, http: web.Request, response: web.Response) -> None:
        """Send it, as long as the caller reads."""
        size_bytes = len(response.body) if isinstance(response.body, bytes) else 0
        self._unsent_bytes += size_bytes
        try:
            async with asyncio.timeout(self._limits.patience_s):
                await response.prepare(http)
                await response.write_eof()
        except TimeoutError:
            if http.transport is not None:
                http.transport.abort()
        except ConnectionError:
            log.debug("%s hung up", http.remote)
        finally:
            self._unsent_bytes -= size_bytes


async def _data(http: web.Request, most_bytes: int) -> bytes:
    """The body as it was sent. Raises `TooLarge` as soon as it is."""
    if http.headers.get("Expect", "").lower() == "100-continue" and http.version >= (1, 1):
        await http.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        http.writer.output_size = 0  # what counts is the answer, as aiohttp's own handler has it
    read = bytearray()
    async for part in http.content.iter_any():
        if len(read) + len(part) > most_bytes:
            raise too_large(most_bytes)
        read += part
    return bytes(read)


def _json_bytes(text: str | None) -> int | None:
    if text is None:
        return None
    if not re.fullmatch(r"[0-9]{1,12}", text):
        raise InvalidArgument(f"{JSON_BYTES}: must be a number of bytes, got {text!r}")
    if int(text) > MOST_JSON_BYTES:
        raise too_large(MOST_JSON_BYTES)
    return int(text)


def _timeout_s(text: str | None) -> float | None:
    if text is None:
        return None
    match = _TIMEOUT.fullmatch(text)
    if match is None:
        raise InvalidArgument(f"grpc-timeout: must be digits and one of H M S m u n, got {text!r}")
    return int(match[1]) * _UNITS_S[match[2]]
