"""The HAProxy of deploy/load-balancer before replicas that a test replaces and kills; skipped without the program."""

from __future__ import annotations

import contextlib
import csv
import itertools
import json
import os
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from callers import PATIENCE_S, wait_until
from tiny_models import Repository

CONFIG = Path(__file__).parents[3] / "deploy" / "load-balancer" / "haproxy.cfg"
HOSTS = ("127.0.1.1", "127.0.1.2")  # of the replicas; no outgoing connection takes a port there between two processes
FRONTS = ("127.0.0.1", "127.0.0.2", "127.0.0.3")  # of HAProxy; gRPC shares a connection between callers of one address


def _free_port(host: str) -> int:
    with socket.create_server((host, 0)) as free:
        return free.getsockname()[1]


class HAProxy:
    """Told by the environment alone where it listens and where the replicas are. Use `running`."""

    def __init__(self, folder: Path, grpc_port: int, http_port: int) -> None:
        port = _free_port(FRONTS[0])
        self.targets = [f"{host}:{port}" for host in FRONTS]
        self._stats = f"127.0.0.1:{_free_port('127.0.0.1')}"
        env = {"LISTEN": ",".join(self.targets), "STATS": self._stats}
        env |= {"GRPC_PORT": str(grpc_port), "HTTP_PORT": str(http_port)}
        env |= {f"ATTNSERVE_{number}": host for number, host in enumerate(HOSTS, 1)}
        self._log_path = folder / "haproxy.log"
        with self._log_path.open("w") as log:
            command = ["haproxy", "-db", "-f", str(CONFIG)]
            self._process = subprocess.Popen(command, env={**os.environ, **env}, stdout=log, stderr=log)

    @classmethod
    @contextlib.contextmanager
    def running(cls, *args: object) -> Iterator[HAProxy]:
        proxy = cls(*args)  # type: ignore[arg-type]
        try:
            wait_until(lambda: proxy._process.poll() is not None or proxy._answers(), "HAProxy listens")
            assert proxy._process.poll() is None, proxy.log
            yield proxy
        finally:
            proxy._process.terminate()
            proxy._process.wait(timeout=PATIENCE_S)

    @property
    def log(self) -> str:
        return self._log_path.read_text()

    def metrics(self) -> str:
        return self._get("/metrics")

    def of(self, replica: int) -> dict[str, str]:
        """What it knows of a replica: `status`, `scur` (calls there now), `wredis` (calls moved away from it), ..."""
        lines = self._get("/;csv").removeprefix("# ").splitlines()
        (row,) = (each for each in csv.DictReader(lines) if each["svname"] == f"replica{replica + 1}")
        return row

    def wait_until(self, replica: int, status: str) -> None:
        wait_until(lambda: self.of(replica)["status"] == status, f"replica {replica} is {status}")

    def _get(self, path: str) -> str:
        with urllib.request.urlopen(f"http://{self._stats}{path}", timeout=PATIENCE_S) as reply:
            return reply.read().decode()

    def _answers(self) -> bool:
        with contextlib.suppress(OSError):
            return bool(self.metrics())
        return False


class Service:
    """Two replicas behind HAProxy, each with one version of the model `net`, in a folder of its own.

    Attributes:
        proxy: In front of them.
        served: By version, when its first process was started and when its last one had ended.
        logs: Of the processes that have ended.
    """

    def __init__(self, folder: Path, server_process: Callable, flags: tuple[str, ...]) -> None:
        self._folder = folder
        self._server_process = server_process
        self._flags = flags
        self._numbers = itertools.count()
        self.grpc_port, self.http_port = _free_port(HOSTS[0]), _free_port(HOSTS[0])
        self.served: dict[int, list[float]] = {}
        self.logs: list[str] = []
        self.replicas = [self._start(host, 1) for host in HOSTS]
        self.versions = [1, 1]
        self.proxy: HAProxy

    def _start(self, host: str, version: int):
        repository = Repository(self._folder / f"models-{next(self._numbers)}")
        repository.path.mkdir()
        repository.write(version, answer=version % 10)
        addresses = ["--grpc-address", f"{host}:{self.grpc_port}", "--http-address", f"{host}:{self.http_port}"]
        self.served.setdefault(version, [time.monotonic(), float("inf")])
        return self._server_process(*addresses, *self._flags, repository=repository.path)

    def replace(self, replica: int, version: int) -> None:
        """SIGTERM, exit 0, a new process with that version, and HAProxy has seen that it is ready."""
        old = self.replicas[replica]
        code = old.stop()
        self.logs.append(old.log)
        assert code == 0, old.log
        self._ended(replica)
        self.start(replica, version)

    def start(self, replica: int, version: int) -> None:
        self.replicas[replica] = self._start(HOSTS[replica], version)
        self.versions[replica] = version
        self.proxy.wait_until(replica, "UP")

    def _ended(self, replica: int) -> None:
        version = self.versions[replica]
        self.versions[replica] = 0
        if version not in self.versions:
            self.served[version][1] = time.monotonic()

    def stop(self) -> None:
        """End what is left; asserts that it was no error."""
        codes = [each.stop() for each in self.replicas if each.process.poll() is None]
        self.logs += [each.log for each in self.replicas]
        assert not any(codes), self.logs

    def answered(self) -> list[dict]:
        """What the processes that have ended say of each call, in debug logs of the form JSON."""
        return [event for log in self.logs for line in log.splitlines() if "code" in (event := json.loads(line))]


@pytest.fixture
def service(tmp_path, server_process):
    """A context manager: `with service(*flags) as running`."""
    if shutil.which("haproxy") is None:
        pytest.skip("haproxy is not installed (apt-get install haproxy)")

    @contextlib.contextmanager
    def run(*flags: str) -> Iterator[Service]:
        running = Service(tmp_path, server_process, flags)
        try:
            with HAProxy.running(tmp_path, running.grpc_port, running.http_port) as running.proxy:
                for replica in range(len(HOSTS)):
                    running.proxy.wait_until(replica, "UP")
                yield running
        finally:
            running.stop()

    return run
