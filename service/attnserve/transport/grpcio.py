"""The default transport: grpc.aio over the table of methods, with health and reflection.

Owns the gRPC server and the count of open calls; knows no model.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import grpc
from grpc_health.v1 import health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from attnserve.access import OPEN, Access
from attnserve.config import joined_address
from attnserve.contract import Call, Listener
from attnserve.errors import AttnserveError, ConfigError, InvalidArgument, Unavailable
from attnserve.guard import guarded
from attnserve.handlers.table import Method
from attnserve.transport.calls import FLUSH_S, LAST_ANSWER_S, Calls, status_of
from attnserve.transport.health import NOT_SERVING, SERVING, Health
from attnserve.transport.loop_inbox import LoopInbox
from attnserve.transport.options import ConnectionLimits, server_options
from attnserve.transport.stream_window import Answer, Begun, StreamWindow
from attnserve.transport.tls import Certificates, Loaded, names_in


class GrpcioTransport:
    """Serves the methods on one address.

    Args:
        methods: The table.
        listener: Hears of every answered call.
        limits: Of its callers.
        access: Tells what callers may do; a call that is not allowed is answered before its message is read.
        health_services: Names for grpc.health.v1 besides "" (the whole server); all turn SERVING with `set_serving`.
        on_idle: Called on the event loop each time the last open call has its answer; must be quick.
        shares_port: See `server_options`.
        tls: What to speak TLS with; None for plain text.
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
        tls: Certificates | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        loop = asyncio.get_running_loop()
        self._on_idle = on_idle
        self._tls = tls
        self._inbox = LoopInbox(loop)
        self._calls = Calls(self._inbox, listener, access=access, on_idle=on_idle, clock=clock, loop=loop)
        self._access = access
        self._draining = False
        self._readers: set[asyncio.Task[None]] = set()
        self._health_services = ["", *health_services]
        self._health = Health()
        self._server = grpc.aio.server(options=server_options(limits, shares_port=shares_port))
        self._add_methods(methods)

    @property
    def open_calls(self) -> int:
        """Requests begun and not yet answered; any thread may read it."""
        return self._calls.open_calls

    async def start(self, host: str, port: int) -> int:
        """Listen; returns the port bound. Raises `ConfigError` where the address cannot be had."""
        return await self.listen(joined_address(host, port))

    async def listen(self, address: str) -> int:
        """`start` on an address as gRPC writes it, `unix:PATH` for a socket file."""
        try:
            if self._tls is None:
                bound: int = self._server.add_insecure_port(address)
            else:
                bound = self._server.add_secure_port(address, _credentials(self._tls))
        except RuntimeError as error:
            raise ConfigError(f"cannot listen for gRPC on {address}: {error}") from error
        await self._server.start()
        return bound

    async def set_serving(self) -> None:
        """Turn every health service SERVING."""
        for service in self._health_services:
            self._health.set(service, SERVING)

    def set_model_serving(self, name: str, serving: bool) -> None:
        """Say whether a model is served; from any thread, returns at once. No effect once `set_not_serving`."""
        self._inbox.post([partial(self._health.set, name, SERVING if serving else NOT_SERVING)])

    async def set_not_serving(self) -> None:
        """Turn every health service NOT_SERVING for good; those who watch are told."""
        self._health.close()

    async def drain(self, timeout_s: float, fail_rest: Callable[[], None]) -> bool:
        """Finish the accepted calls, then stop; after `timeout_s` seconds have the rest failed by `fail_rest`.

        New calls must be refused by the handlers from here on: the server closes only when none has come for a while,
        for gRPC answers CANCELLED, which nobody retries, to calls that it holds unread at that moment.
        Returns whether all were finished in time. The server is stopped when it returns.
        """
        self._draining = True
        self._health.end_watches()
        for reader in list(self._readers):
            reader.cancel()
        in_time = await self._calls.finish(timeout_s, fail_rest)
        await self._calls.linger()
        await self._server.stop(FLUSH_S)
        return in_time

    def _add_methods(self, methods: Sequence[Method]) -> None:
        served = {
            method.path: _Served(method.name, self._handler(method), partial(self._refusal, method))
            for method in methods
        }
        self._server.add_generic_rpc_handlers((_Door(served, self._access),))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        services = dict.fromkeys(method.service for method in methods)
        names = [*services, "grpc.health.v1.Health", reflection.SERVICE_NAME]
        reflection.enable_server_reflection(names, self._server)

    def _handler(self, method: Method) -> grpc.RpcMethodHandler:
        """grpc.aio's handler, which must be a coroutine function, hence the inner ones."""

        async def unary(box: list[Any], context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            return await self._unary(method, box, context)

        async def stream(requests: Any, context: grpc.aio.ServicerContext[Any, Any]) -> None:
            async with contextlib.aclosing(self._stream(method, requests, context)) as messages:
                async for message in messages:
                    with _caller_may_be_gone():
                        await context.write(message)

        codecs = {
            # gRPC keeps what it is given until the call ends, so the request comes in a box that can be emptied
            "request_deserializer": lambda data: [method.read(data)],
            "response_serializer": lambda message: message.SerializeToString(),
        }
        if method.wrap is None:
            return grpc.unary_unary_rpc_method_handler(unary, **codecs)
        return grpc.stream_stream_rpc_method_handler(stream, **codecs)

    def _refusal(self, method: Method, error: AttnserveError) -> grpc.RpcMethodHandler:
        """Answers one call by an error; a stream's handler, for gRPC reads no message before it runs one."""

        async def refuse(_: Any, context: grpc.aio.ServicerContext[Any, Any]) -> None:
            call, answered = self._begin(method, error, context)
            _, told = await answered
            await _abort(context, told or error, call.request_id)

        return grpc.stream_stream_rpc_method_handler(refuse)

    async def _unary(self, method: Method, box: list[Any], context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        call, answered = self._begin(method, box.pop(), context)
        try:
            message, error = await answered
        except asyncio.CancelledError:
            call.cancel()
            raise
        if error is not None:
            await _abort(context, error, call.request_id)
        return message

    async def _stream(
        self, method: Method, requests: AsyncIterator[Any], context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncGenerator[Any, None]:
        assert method.wrap is not None
        window = StreamWindow()
        reader = asyncio.create_task(self._read(method, requests, context, window))
        self._readers.add(reader)
        reader.add_done_callback(self._readers.discard)
        sequence = 0
        try:
            while (begun := await window.next()) is not None:
                try:
                    message, error = await begun.answered
                except asyncio.CancelledError:
                    begun.call.cancel()
                    raise
                yield method.wrap(sequence, begun.request, message, error)
                sequence += 1
                window.sent(begun)
        finally:
            reader.cancel()
            window.cancel()
            if (
                not self._calls.open_calls
            ):  # the replies that nobody read are free now, and were not when the last call ended
                self._on_idle()
        if self._draining:
            await asyncio.sleep(LAST_ANSWER_S)
            await _abort(context, Unavailable("the server is shutting down"))

    async def _read(
        self,
        method: Method,
        requests: AsyncIterator[Any],
        context: grpc.aio.ServicerContext[Any, Any],
        window: StreamWindow,
    ) -> None:
        """Begin each request of a stream as it comes, as many as the window holds."""
        try:
            await window.room()
            async for box in requests:
                window.add(self._begun(method, box.pop(), context))
                await window.room()
        finally:
            window.close()

    def _begun(self, method: Method, request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Begun:
        """Start one request of a stream; in place of one that is none stands an empty one."""
        message = method.request() if isinstance(request, InvalidArgument) else request
        return Begun(message, *self._begin(method, request, context))

    def _begin(
        self, method: Method, request: Any, context: grpc.aio.ServicerContext[Any, Any]
    ) -> tuple[Call, asyncio.Future[Answer]]:
        """Start one request; the future gets its answer, and the drain waits for it."""
        answered: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        call = self._calls.open(
            method.name,
            lambda message, error: self._end(answered, message, error),
            metadata=context.invocation_metadata() or (),
            peer=str(context.peer()),
            remaining_s=context.time_remaining(),
            identities=names_in(context.auth_context()) if self._tls and self._tls.asks_callers else (),
        )
        guarded(call, method.begin, request, call)
        return call, answered

    def _end(self, answered: asyncio.Future[Answer], message: Any, error: AttnserveError | None) -> None:
        self._calls.ended()
        if not answered.done():  # else the caller went away, and its task was cancelled
            answered.set_result((message, error))


class _Served(NamedTuple):
    """How a method is served, and how a call to it is refused unread."""

    name: str
    handler: grpc.RpcMethodHandler
    refusal: Callable[[AttnserveError], grpc.RpcMethodHandler]


class _Door(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpc has no types
    """Finds the handler of a call, of which gRPC has read the metadata and nothing else."""

    def __init__(self, served: Mapping[str, _Served], access: Access) -> None:
        self._served = served
        self._access = access

    def service(self, details: Any) -> grpc.RpcMethodHandler | None:
        """See `grpc.GenericRpcHandler`."""
        found = self._served.get(details.method)
        if found is None:
            return None
        error = self._access.refusal(found.name, details.invocation_metadata)
        return found.handler if error is None else found.refusal(error)


def _credentials(tls: Certificates) -> grpc.ServerCredentials:
    """gRPC asks for the newest certificate whenever a connection begins; those that are open keep theirs."""

    def config_of(loaded: Loaded) -> grpc.ServerCertificateConfiguration:
        return grpc.ssl_server_certificate_configuration(
            [(loaded.pair.key, loaded.pair.certificate)], root_certificates=loaded.client_ca
        )

    used = tls.current()

    def newer() -> grpc.ServerCertificateConfiguration | None:
        nonlocal used  # a race costs at most one configuration made twice
        found = tls.current()
        if found is used:
            return None
        used = found
        return config_of(found)

    return grpc.dynamic_ssl_server_credentials(config_of(used), newer, require_client_authentication=tls.asks_callers)


def check_free(host: str, port: int) -> None:
    """Raise `ConfigError` where that address is taken, so that nobody waits for models to load to hear of it."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as gRPC sets it: past connections may linger
            probe.bind(address)
            probe.listen()
    except OSError as error:
        raise ConfigError(f"cannot listen for gRPC on {joined_address(host, port)}: {error}") from error


@contextlib.contextmanager
def _caller_may_be_gone() -> Iterator[None]:
    """Turn how gRPC says that the caller is gone, which it would log with a traceback, into what it keeps quiet."""
    try:
        yield
    except grpc.aio.InternalError:
        raise asyncio.CancelledError from None


async def _abort(context: grpc.aio.ServicerContext[Any, Any], error: AttnserveError, request_id: str = "") -> None:
    """End the call with the error's status and the request's id; with RetryInfo where trying again makes sense."""
    with _caller_may_be_gone():
        await context.abort(*status_of(error, request_id))
