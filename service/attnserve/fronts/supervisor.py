"""Starts the fronts, runs the engines for them, and is for everybody outside one server: one port, one `/metrics`.

A front that dies is started again, for the others and the engines are well; one that dies before it was ever ready ends
the server, as a server does that cannot start. The first signal drains all fronts, the second ends everything at once.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from queue import SimpleQueue

from prometheus_client import CollectorRegistry

from attnserve.config import ServeConfig, joined_address, split_address
from attnserve.cores import available_cores
from attnserve.errors import ConfigError
from attnserve.fronts.host import Host
from attnserve.fronts.lane import take_handle
from attnserve.fronts.merged import Families, Merged
from attnserve.fronts.remote import Ready
from attnserve.gpu.metrics import GpuMetrics
from attnserve.gpu.nvml import open_nvml
from attnserve.http_server import HttpServer
from attnserve.metrics import Metrics
from attnserve.session import CPU, choose_provider
from attnserve.statistics import Statistics
from attnserve.transport.grpcio import check_free
from attnserve.transport.tls import certificates_of, http_context

log = logging.getLogger(__name__)

_SCRAPE_S = 5.0  # for a front to answer
_SLACK_S = 15.0  # beyond its drain, for a front to end

Event = Callable[[], None]


class Front:
    """One process, as the supervisor sees it.

    Args:
        post: Takes what is to be done on the supervisor's thread.
        changed: On that thread, when it said that it is ready, or no longer.
        ended: On that thread, when the process is gone.
    """

    def __init__(
        self,
        name: str,
        config: ServeConfig,
        host: Host,
        post: Callable[[Event], None],
        changed: Callable[[Front], None],
        ended: Callable[[Front], None],
    ) -> None:
        self.name = name
        self.ready = False
        self.was_ready = False
        self.models: Mapping[str, str] = {}
        self._host = host
        self._post = post
        self._changed = changed
        self._ended = ended
        self._scraping = threading.Lock()
        pipe, theirs = Pipe()
        self._scrapes, their_scrapes = Pipe()
        numbers = (theirs.fileno(), their_scrapes.fileno())
        with theirs, their_scrapes:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "attnserve.fronts.front", *map(str, numbers)],
                pass_fds=numbers,
                stdout=sys.stderr,  # ours has one line, for whoever started us
                start_new_session=True,  # the terminal's signals come to us, and go on from here
            )
        pipe.send(config)
        threading.Thread(target=self._hear, args=(pipe,), name=name, daemon=True).start()

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self.process.poll() is None

    def families(self) -> Families:
        """Its metrics now; none where it does not answer."""
        with self._scraping, suppress(EOFError, OSError):
            if self.ready:
                self._scrapes.send_bytes(b"scrape")
                if self._scrapes.poll(_SCRAPE_S):
                    found: Families = self._scrapes.recv()
                    return found
                log.warning("%s does not answer the scrape", self.name)
                self.ready = False  # a late answer must not be taken for the next one's
        return []

    def _hear(self, pipe: Connection) -> None:
        """On a thread of its own: what the front says, until it ends."""
        with pipe, suppress(EOFError, OSError):
            while True:
                said = pipe.recv()
                if isinstance(said, Ready):
                    self._post(lambda said=said: self._set_ready(said))  # type: ignore[misc]
                else:
                    self._host.open(self.name, said, take_handle(pipe))
        self.process.wait()
        self._post(lambda: self._ended(self))

    def _set_ready(self, said: Ready) -> None:
        self.ready, self.models = said.ready, said.models or self.models
        self.was_ready = self.was_ready or said.ready
        self._changed(self)


class Supervisor:
    """One server of several processes. Use `run`.

    Args:
        config: Validated; `transport_processes` is more than 1.
    """

    def __init__(self, config: ServeConfig) -> None:
        self._config = config
        self._events: SimpleQueue[Event] = SimpleQueue()
        own = Metrics(Statistics())
        self._host = Host(own)
        registry = CollectorRegistry()
        self._watch_gpus(registry)
        self._fronts: list[Front] = []
        self._front_config = config
        self._stopping = False
        self._announced = False
        self._code = 0
        Merged(lambda: [front.families() for front in list(self._fronts)], own.registry, registry)
        self._http_host, port = split_address("http_address", config.http_address)
        context = http_context(config, certificates_of(config))  # the fronts have their own, for gRPC
        self._http = HttpServer(self._http_host, port, registry, self._is_ready, context)

    def run(self) -> int:
        """Serve until SIGTERM or SIGINT; the exit code. Raises `ConfigError` where the address cannot be had."""
        held = self._hold_port()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._events.put(self._on_signal))
        log.info("loading models; HTTP on %s", joined_address(self._http_host, self._http.port))
        with held:
            self._start("front-0")  # alone, so that models are opened once and an error is said once
            while self._fronts:
                self._events.get()()
        self._host.close()
        self._http.close()
        log.info("stopped")
        return self._code

    def _watch_gpus(self, registry: CollectorRegistry) -> None:
        nvml = open_nvml() if choose_provider(self._config.provider) != CPU else None
        if nvml is not None:
            GpuMetrics(nvml.read, registry)

    def _hold_port(self) -> socket.socket:
        """Bind the port for all fronts, without listening; a server that is there already is an error."""
        host, port = split_address("grpc_address", self._config.grpc_address)
        check_free(host, port)
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        held = socket.socket(family, kind, protocol)
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        try:
            held.bind(address)
        except OSError as error:
            held.close()
            raise ConfigError(f"cannot listen for gRPC on {joined_address(host, port)}: {error}") from error
        processes = self._config.transport_processes
        self._front_config = replace(
            self._config,
            grpc_address=joined_address(host, held.getsockname()[1]),
            decode_threads=self._config.decode_threads or max(1, available_cores() // processes),
        )
        return held

    def _start(self, name: str) -> None:
        front = Front(name, self._front_config, self._host, self._events.put, self._on_change, self._on_end)
        self._fronts.append(front)

    def _is_ready(self) -> bool:
        """Whether all fronts take requests."""
        fronts = list(self._fronts)
        return (
            not self._stopping
            and len(fronts) == self._config.transport_processes
            and all(front.ready for front in fronts)
        )

    def _on_change(self, front: Front) -> None:
        if self._stopping or not front.ready:
            return
        if len(self._fronts) == 1:
            for index in range(1, self._config.transport_processes):
                self._start(f"front-{index}")
        if self._is_ready() and not self._announced:
            self._announced = True
            addresses = {"grpc": self._front_config.grpc_address,
                         "http": joined_address(self._http_host, self._http.port)}  # fmt: skip
            log.info("ready: gRPC on %s, HTTP on %s", *addresses.values())
            print(json.dumps({"event": "ready", **addresses, "models": front.models}), flush=True)

    def _on_end(self, front: Front) -> None:
        self._fronts.remove(front)
        code = front.process.returncode
        if self._stopping:
            self._code = self._code or (1 if code else 0)
        elif front.was_ready:
            log.error("%s ended with code %d; starting another", front.name, code)
            self._start(front.name)
        else:
            log.error("%s ended with code %d before it was ready", front.name, code)
            self._code = code if code > 0 else 1
            self._stop()

    def _on_signal(self) -> None:
        if self._stopping:
            log.error("second signal: exiting at once")
            self._kill()
            logging.shutdown()
            os._exit(1)
        self._stop()

    def _stop(self) -> None:
        self._stopping = True
        for front in self._fronts:
            front.process.terminate()
        patience_s = self._config.drain_delay_s + self._config.drain_timeout_s + _SLACK_S
        timer = threading.Timer(patience_s, lambda: self._events.put(self._kill))
        timer.daemon = True
        timer.start()

    def _kill(self) -> None:
        for front in self._fronts:
            log.error("%s does not end: killing it", front.name)
            front.process.kill()


def serve(config: ServeConfig) -> int:
    """Run a server of several processes until it is told to stop; returns the exit code. Raises `ConfigError`."""
    return Supervisor(config).run()
