"""The composition root: builds every room from the config, runs the server, and drains it on a signal."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from prometheus_client import CollectorRegistry

from attnserve.access import OPEN, Access
from attnserve.access_file import AccessFile
from attnserve.admission import Admission
from attnserve.config import ServeConfig, joined_address, split_address
from attnserve.contract import Listener
from attnserve.control import ModelControl
from attnserve.cores import available_cores
from attnserve.decode import DecodeLimits, prepare
from attnserve.decode_pool import DecodePool
from attnserve.engines import open_engine
from attnserve.errors import ConfigError
from attnserve.gpu.metrics import GpuMetrics
from attnserve.gpu.nvml import open_nvml
from attnserve.handlers import attention, open_inference
from attnserve.handlers.attention import AttentionHandlers
from attnserve.handlers.model_repository import ModelRepositoryHandlers
from attnserve.handlers.open_inference import OpenInferenceHandlers
from attnserve.handlers.table import Method
from attnserve.http_server import HttpServer
from attnserve.keeper import Keeper, Post
from attnserve.listeners import Listeners
from attnserve.loading import Loader, OpenEngine, OpenLayer, open_layer
from attnserve.logs import CallLog
from attnserve.metrics import Metrics
from attnserve.models import Models
from attnserve.picture_pool import PicturePool
from attnserve.pipeline import Pipeline
from attnserve.placement import CpuOptions
from attnserve.session import CPU, choose_provider
from attnserve.signers import Signers
from attnserve.statistics import Statistics
from attnserve.transport.calls import Once
from attnserve.transport.grpcio import GrpcioTransport, check_free
from attnserve.transport.options import ConnectionLimits
from attnserve.transport.tls import Certificates, certificates_of, http_context
from attnserve.trimming import Trimmer

if TYPE_CHECKING:
    from attnserve.tracing import Tracing
    from attnserve.transport.native import NativeTransport
    from attnserve.transport.rest_server import RestServer

    Transport = GrpcioTransport | NativeTransport

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Part:
    """What a server that is one of several on a port is given by the process that started it; see `fronts`.

    Attributes:
        open_engine, open_layer: As `Loader` takes them.
        on_ready: Told whether it takes requests, and the versions served by model.
    """

    open_engine: OpenEngine
    open_layer: OpenLayer
    on_ready: Callable[[bool, dict[str, str]], None]


class Server:
    """One server process's worth of rooms. Use `run`.

    Args:
        config: Validated.
        part: Where it is one of several: then HTTP, the GPUs and the announcement are somebody else's.
    """

    def __init__(self, config: ServeConfig, part: Part | None = None) -> None:
        self._config = config
        self._part = part
        self._ready = False
        self._transport: Transport | None = None
        tls = certificates_of(config)
        self._make = _transport_of(config.transport, tls)
        self._statistics = Statistics()
        self._metrics = Metrics(self._statistics)
        self._tracing = _tracing_to(config.otel_endpoint)
        listeners: list[Listener] = [self._metrics, self._statistics, CallLog(), *self._tracing]
        self._listeners = Listeners(*listeners)
        if part is None:
            self._watch_gpus()
        self._access = _access_by(config)
        self._drawing = PicturePool("draw", available_cores())
        self._admission = Admission(config.max_pending_images, config.max_pending_bytes)
        self._metrics.watch_pending(self._admission)
        self._http_host, http_port = split_address("http_address", config.http_address)
        http = (self._http_host, http_port, self.registry, lambda: self._ready, http_context(config, tls))
        self._rest = _rest_server()(*http) if config.rest and part is None else None
        self._http = self._rest or (HttpServer(*http) if part is None else None)

    @property
    def registry(self) -> CollectorRegistry:
        """Its metrics."""
        return self._metrics.registry

    async def run(self) -> None:
        """Load, serve until SIGTERM or SIGINT, drain.

        While models load, `/livez` answers and `/readyz` says no. A second signal exits at once.
        """
        stop = _stop_on_signals()
        host, port = split_address("grpc_address", self._config.grpc_address)
        if self._http is not None:
            check_free(host, port)
            log.info("loading models; HTTP on %s", joined_address(self._http_host, self._http.port))
        models = Models()
        self._metrics.watch_versions(models.statuses)
        control = self._control(models)
        load = partial(control.load_at_start, self._config.load_models, exit_on_error=self._config.exit_on_error)
        loading = asyncio.ensure_future(asyncio.to_thread(load))
        stopping = asyncio.ensure_future(stop.wait())
        await asyncio.wait([loading, stopping], return_when=asyncio.FIRST_COMPLETED)
        if not loading.done():
            log.info("stopped while loading")
            _exit_now(0)  # nothing was accepted, and the loading thread cannot be interrupted
        await loading
        decode_pool = self._decode_pool()
        transport = self._transport = self._make_transports(models, control, decode_pool)
        self._metrics.watch_inflight(self._open_calls)
        port = await transport.start(host, port)
        await transport.set_serving()
        served: dict[str, str] = {model.key.name: model.key.version for model in models}
        self._set_ready(True, served)
        control.start()
        if self._http is not None:
            self._announce(joined_address(host, port), self._http, served)
        await stopping
        in_time = await self._drain(transport, control)
        ended = control.close()
        decode_pool.close()
        self._drawing.close()
        if self._http is not None:
            self._http.close()
        for tracing in self._tracing:
            await asyncio.to_thread(tracing.close)
        log.info("stopped")
        if not (in_time and ended):  # a thread is deep in one picture or loads a model, and would be waited for
            _exit_now(0)

    def _control(self, models: Models) -> ModelControl:
        config, repository = self._config, Path(self._config.model_repository)
        loader = Loader(
            provider=config.provider,
            workers=config.workers,
            listener=self._listeners,
            reserve_bytes=config.memory_reserve_bytes,
            signers=_signers_by(config),
            gpu=config.gpu,
            cpu=CpuOptions(config.placement, config.openvino_precision),
            open_engine=self._part.open_engine if self._part else open_engine,
            open_layer=self._part.open_layer if self._part else open_layer,
        )

        def keeper(post: Post) -> Keeper:
            return Keeper(
                repository,
                models,
                loader.load,
                self._metrics,
                on_serving=self._on_serving,
                post=post,
                keep_previous=config.keep_previous,
            )

        return ModelControl(
            repository,
            models,
            keeper,
            mode=config.model_control_mode,
            poll_s=config.repository_poll_s,
            takes_orders=self._part is None,
        )

    def _watch_gpus(self) -> None:
        """Metrics of GPUs where models may run on one. Raises `ConfigError` where they must and cannot."""
        nvml = open_nvml() if choose_provider(self._config.provider) != CPU else None
        if nvml is not None:
            GpuMetrics(nvml.read, self._metrics.registry)

    def _on_serving(self, name: str, serving: bool) -> None:
        if self._transport is not None:  # it begins with what is served then
            self._transport.set_model_serving(name, serving)

    def _open_calls(self) -> int:
        over_grpc = self._transport.open_calls if self._transport is not None else 0
        return over_grpc + (self._rest.open_calls if self._rest is not None else 0)

    def _decode_pool(self) -> DecodePool:
        prepare()
        limits = DecodeLimits(self._config.max_image_bytes, self._config.max_image_pixels)
        return DecodePool(self._config.decode_threads or available_cores(), limits)

    def _make_transports(self, models: Models, control: ModelControl, decode_pool: DecodePool) -> Transport:
        """Makes the one for gRPC, and has the HTTP server answer by the same methods where it speaks the protocol."""
        config = self._config
        pipeline = Pipeline(
            self._admission,
            decode_pool,
            self._listeners,
            self._drawing,
            default_timeout_s=config.default_timeout_s,
        )
        services = [attention.SERVICE, open_inference.SERVICE]
        trimmer = Trimmer(asyncio.get_running_loop(), lambda: not self._open_calls())
        methods = self._methods(models, control, pipeline)
        if self._rest is not None:
            self._rest.serve(
                methods,
                self._listeners,
                access=self._access,
                max_request_bytes=config.max_request_bytes,
                max_held_bytes=config.max_pending_bytes,
                patience_s=config.default_timeout_s,
                on_idle=trimmer.on_idle,
            )
        return self._make(
            methods,
            self._listeners,
            limits=_limits_of(config),
            access=self._access,
            health_services=[*services, *models.names()],
            on_idle=trimmer.on_idle,
            shares_port=self._part is not None,
        )

    def _methods(self, models: Models, control: ModelControl, pipeline: Pipeline) -> list[Method]:
        most = self._config.max_images_per_request
        most_bytes = self._config.max_reply_bytes
        own = AttentionHandlers(models, pipeline, most, most_bytes)
        protocol = OpenInferenceHandlers(models, pipeline, self._statistics, lambda: self._ready, most, most_bytes)
        return [*own.methods(), *protocol.methods(), *ModelRepositoryHandlers(control).methods()]

    def _set_ready(self, ready: bool, served: dict[str, str] | None = None) -> None:
        self._ready = ready
        self._metrics.ready.set(ready)
        if self._part is not None:
            self._part.on_ready(ready, served or {})

    def _announce(self, grpc_address: str, http: HttpServer | RestServer, served: dict[str, str]) -> None:
        """One line of JSON on stdout, for whoever started the server and wants its ports."""
        http_address = joined_address(self._http_host, http.port)
        log.info("ready: gRPC on %s, HTTP on %s", grpc_address, http_address)
        print(json.dumps({"event": "ready", "grpc": grpc_address, "http": http_address, "models": served}), flush=True)

    async def _drain(self, transport: Transport, control: ModelControl) -> bool:
        log.info("draining: unready now, refusing new calls in %g s", self._config.drain_delay_s)
        self._set_ready(False)
        control.stop()
        await transport.set_not_serving()
        await asyncio.sleep(self._config.drain_delay_s)
        self._admission.close()

        def fail_rest() -> None:
            log.error("drain_timeout_s is over: failing what is left")
            self._drawing.close()
            asyncio.get_running_loop().run_in_executor(None, control.close_models)

        failing = Once(fail_rest)
        fronts = [transport] if self._rest is None else [transport, self._rest]
        return all(await asyncio.gather(*(front.drain(self._config.drain_timeout_s, failing) for front in fronts)))


def _access_by(config: ServeConfig) -> Access:
    """Raises `ConfigError` for a file that cannot be used."""
    if not config.access_file:
        if config.model_control_mode == "explicit":
            log.warning("model_control_mode explicit without access_file: whoever reaches the port may load and unload")
        return OPEN
    if not config.tls_certificate:
        log.warning("access_file without TLS: tokens travel unencrypted, unless something in front encrypts them")
    return AccessFile(Path(config.access_file))


def _signers_by(config: ServeConfig) -> Signers | None:
    """Raises `ConfigError` for a file that cannot be used."""
    if not config.model_signers:
        return None
    signers = Signers(Path(config.model_signers))
    signers.check()
    return signers


def _limits_of(config: ServeConfig) -> ConnectionLimits:
    return ConnectionLimits(
        config.max_request_bytes,
        config.max_metadata_bytes,
        config.max_connections,
        config.max_streams_per_connection,
        config.connection_idle_s,
        config.connection_age_s,
    )


def _transport_of(name: str, tls: Certificates | None) -> Callable[..., Transport]:
    """Raises `ConfigError` where pygrpc-native is not installed."""
    if name == "grpcio":
        return partial(GrpcioTransport, tls=tls)
    try:
        from attnserve.transport.native import NativeTransport  # an optional dependency
    except ImportError as error:
        raise ConfigError(
            f"transport native needs the extra native: pip install 'attnserve[native]' ({error})"
        ) from error
    return NativeTransport


def _rest_server() -> type[RestServer]:
    """Raises `ConfigError` where aiohttp is not installed."""
    try:
        from attnserve.transport.rest_server import RestServer  # an optional dependency
    except ImportError as error:
        raise ConfigError(f"rest needs the extra rest: pip install 'attnserve[rest]' ({error})") from error
    return RestServer


def _tracing_to(endpoint: str) -> list[Tracing]:
    """One listener, or none without an endpoint; raises `ConfigError` where OpenTelemetry is not installed."""
    if not endpoint:
        return []
    try:
        from attnserve.tracing import to_collector  # an optional dependency, and nobody else should pay for it
    except ImportError as error:
        raise ConfigError(f"otel_endpoint needs the extra otel: pip install 'attnserve[otel]' ({error})") from error
    return [to_collector(endpoint)]


def _stop_on_signals() -> asyncio.Event:
    """An event set by the first SIGTERM or SIGINT; the second ends the process on the spot."""
    stop = asyncio.Event()

    def on_signal() -> None:
        if stop.is_set():
            log.error("second signal: exiting at once")
            _exit_now(1)
        stop.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    return stop


def _exit_now(code: int) -> NoReturn:
    """End the process without waiting for its threads."""
    logging.shutdown()
    sys.stdout.flush()
    os._exit(code)


def serve(config: ServeConfig) -> int:
    """Run a server until it is told to stop; returns the exit code. Raises `ConfigError` for what cannot be started."""
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(Server(config).run())
        return 0
    return 130
