"""`/metrics`, `/livez` and `/readyz` over HTTP or HTTPS, on a thread of its own."""

from __future__ import annotations

import logging
import socket
import ssl
import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from attnserve.errors import ConfigError
from attnserve.triton_metrics import with_counter_types

log = logging.getLogger(__name__)

_SLOW_CLIENT_S = 10.0  # a connection that sends no request for this long is closed


class HttpServer:
    """Answers scrapes and probes; binds when made.

    Args:
        ready: Whether `/readyz` answers 200; it answers 503 otherwise.
        context: What to speak TLS by; None for plain text.
    """

    def __init__(
        self,
        host: str,
        port: int,
        registry: CollectorRegistry,
        ready: Callable[[], bool],
        context: ssl.SSLContext | None = None,
    ) -> None:
        class Handler(_Handler):
            pages = Pages(registry, ready)

        try:
            self._server = (_Ipv6Listener if ":" in host else _Listener)((host, port), Handler)
        except OSError as error:
            raise ConfigError(f"cannot listen for HTTP on {host}:{port}: {error}") from error
        self._server.context = context
        self._thread = threading.Thread(target=self._server.serve_forever, name="http", daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        """The port bound."""
        return int(self._server.server_address[1])

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()


class _Listener(ThreadingHTTPServer):
    """A thread per connection, none of which outlives the process."""

    daemon_threads = True
    request_queue_size = 128  # connections that wait for `accept`; five, the default, lose a burst of probes
    context: ssl.SSLContext | None = None

    def finish_request(self, request: Any, client_address: Any) -> None:
        """On the connection's own thread, so that who does not begin the handshake holds up nobody else."""
        if self.context is None:
            return super().finish_request(request, client_address)
        request.settimeout(_SLOW_CLIENT_S)
        with self.context.wrap_socket(request, server_side=True) as secured:
            super().finish_request(secured, client_address)
        return None

    def handle_error(self, request: object, client_address: object) -> None:  # noqa: ARG002
        """A scraper that hangs up is no news."""
        log.debug("connection of %s failed", client_address, exc_info=True)


class _Ipv6Listener(_Listener):
    """The same on an IPv6 address."""

    address_family = socket.AF_INET6


class Pages:
    """What each path answers.

    Args:
        ready: Whether `/readyz` answers 200; it answers 503 otherwise.
    """

    def __init__(self, registry: CollectorRegistry, ready: Callable[[], bool]) -> None:
        self._registry = registry
        self._ready = ready

    def get(self, path: str, accept: str) -> tuple[HTTPStatus, str, bytes]:
        """Status, content type and body of a path."""
        if path == "/metrics":
            encode, content_type = choose_encoder(accept)
            page = encode(self._registry)
            return HTTPStatus.OK, content_type, page if "openmetrics" in content_type else with_counter_types(page)
        if path == "/livez":
            return HTTPStatus.OK, "text/plain", b"ok\n"
        if path == "/readyz":
            if self._ready():
                return HTTPStatus.OK, "text/plain", b"ready\n"
            return HTTPStatus.SERVICE_UNAVAILABLE, "text/plain", b"not ready\n"
        return HTTPStatus.NOT_FOUND, "text/plain", b"try /metrics, /livez or /readyz\n"


class _Handler(BaseHTTPRequestHandler):
    """One connection."""

    pages: Pages
    protocol_version = "HTTP/1.1"
    timeout = _SLOW_CLIENT_S

    def do_HEAD(self) -> None:
        """Answer a HEAD, as some probes send: what GET would, without the body."""
        self._answer(with_body=False)

    def do_GET(self) -> None:
        """Answer a GET."""
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        status, content_type, body = self.pages.get(self.path.partition("?")[0], self.headers.get("Accept", ""))
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Probes come every few seconds: only at debug level."""
        log.debug(format, *args)
