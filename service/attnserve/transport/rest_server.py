"""The HTTP port where REST is on: aiohttp with the pages of `http_server` and the routes of the protocol.

Owns the socket, the loop and its thread, so that probes and scrapes wait neither for gRPC nor for bodies. Needs the
extra `rest`.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import threading
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from aiohttp import web
from prometheus_client import CollectorRegistry

from attnserve.access import OPEN, Access
from attnserve.codec import json_form
from attnserve.contract import Listener
from attnserve.errors import ConfigError, Internal, Unavailable
from attnserve.handlers.table import Method
from attnserve.http_server import Pages
from attnserve.transport.calls import FLUSH_S
from attnserve.transport.rest import RestCalls, RestLimits
from attnserve.transport.rest_errors import failure
from attnserve.transport.rest_routes import ROUTES, Route

log = logging.getLogger(__name__)

_IDLE_S = 75.0  # longer than most proxies keep a connection, which must not be closed as they use it
_LINGER_S = 1.0  # for a caller to read why its body was refused while it still sends it
_BACKLOG = 128  # connections that wait for `accept`

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class RestServer:
    """Answers scrapes, probes and, once told by what, the protocol; binds when made. See `http_server.HttpServer`.

    Args:
        idle_s: A connection that has sent no request for so long is closed.
    """

    def __init__(
        self,
        host: str,
        port: int,
        registry: CollectorRegistry,
        ready: Callable[[], bool],
        context: ssl.SSLContext | None = None,
        *,
        idle_s: float = _IDLE_S,
    ) -> None:
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            listening = socket.create_server((host, port), family=family, backlog=_BACKLOG)
        except OSError as error:
            raise ConfigError(f"cannot listen for HTTP on {host}:{port}: {error}") from error
        self._port = int(listening.getsockname()[1])
        self._pages = Pages(registry, ready)
        self._calls: RestCalls | None = None
        self._codec_thread = ThreadPoolExecutor(1, "rest-codec")
        self._loop = asyncio.new_event_loop()
        self._runner = web.AppRunner(
            self._app(),
            access_log=None,
            auto_decompress=False,  # it would unpack on the loop, and go on for bodies that were refused
            handler_cancellation=True,
            keepalive_timeout=idle_s,
            lingering_time=_LINGER_S,
            logger=_Quiet(log),
            shutdown_timeout=FLUSH_S,
        )
        self._thread = threading.Thread(target=self._loop.run_forever, name="http", daemon=True)
        self._thread.start()
        self._on_loop(self._listen(listening, context))

    @property
    def port(self) -> int:
        """The port bound."""
        return self._port

    @property
    def open_calls(self) -> int:
        """Requests of the protocol that were read and are not yet answered; any thread may read it."""
        return self._calls.open_calls if self._calls is not None else 0

    def serve(
        self,
        methods: Iterable[Method],
        listener: Listener,
        *,
        access: Access = OPEN,
        max_request_bytes: int,
        max_held_bytes: int,
        patience_s: float,
        on_idle: Callable[[], None],
    ) -> None:
        """Answer the protocol by these methods from here on; called on the event loop that will `drain`.

        Args:
            max_request_bytes, max_held_bytes, patience_s: See `RestLimits`.
            access, on_idle: See `RestCalls`.
        """
        self._calls = RestCalls(
            methods,
            listener,
            RestLimits(max_request_bytes, max_held_bytes, patience_s),
            access=access,
            http_loop=self._loop,
            codec_thread=self._codec_thread,
            on_idle=on_idle,
            loop=asyncio.get_running_loop(),
        )

    async def drain(self, timeout_s: float, fail_rest: Callable[[], None]) -> bool:
        """See `GrpcioTransport`, but that pages are still answered when it returns."""
        return await self._calls.drain(timeout_s, fail_rest) if self._calls is not None else True

    def close(self) -> None:
        """Stop listening and close every connection; blocks until that is done."""
        self._on_loop(self._runner.cleanup())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._codec_thread.shutdown()

    def _on_loop(self, job: Any) -> None:
        asyncio.run_coroutine_threadsafe(job, self._loop).result()

    async def _listen(self, listening: socket.socket, context: ssl.SSLContext | None) -> None:
        await self._runner.setup()
        await web.SockSite(self._runner, listening, ssl_context=context).start()

    def _app(self) -> web.Application:
        app = web.Application(middlewares=[_in_json])
        app.router.add_get("/{page:metrics|livez|readyz}", self._page)
        for route in ROUTES:
            for path in route.paths:
                app.router.add_route(route.verb, path, partial(self._answer, route), expect_handler=_expected_later)
                if route.verb == "GET":
                    app.router.add_route("HEAD", path, partial(self._answer, route))
        return app

    async def _page(self, request: web.Request) -> web.StreamResponse:
        path = request.raw_path.partition("?")[0]  # as it was written: one page has one name
        status, content_type, body = self._pages.get(path, request.headers.get("Accept", ""))
        return web.Response(body=body, status=status, headers={"Content-Type": content_type})

    async def _answer(self, route: Route, request: web.Request) -> web.StreamResponse:
        if self._calls is not None:
            return await self._calls.answer(route, request)
        if route.rpc == "ServerLive":
            return web.Response(body=json_form.written({"live": True}), content_type="application/json")
        return failure(Unavailable("the server is starting"))


@web.middleware
async def _in_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Whatever goes wrong is said as the protocol says it; of our own failures, nothing."""
    try:
        return await handler(request)
    except web.HTTPException as error:  # the router's: no such path, or not by this method
        headers = {name: error.headers[name] for name in ("Allow",) if name in error.headers}
        body = json_form.written({"error": f"{request.method} {request.path}: {error.reason}"})
        return web.Response(body=body, status=error.status, headers=headers, content_type="application/json")
    except Exception:
        log.exception("%s %s failed", request.method, request.path)
        return failure(Internal("internal error"))


async def _expected_later(request: web.Request) -> None:
    """A caller that waits to be told to send its body is told so when there is room for it."""


class _Quiet(logging.LoggerAdapter[logging.Logger]):
    """What aiohttp logs of callers that do not speak HTTP is no news; our own failures do not come this way."""

    def exception(self, msg: object, *args: object, **options: Any) -> None:
        """At debug level."""
        self.debug(msg, *args, **{"exc_info": True, **options})
