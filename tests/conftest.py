"""A real server in a process of its own, on free ports, with the committed models."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from numpy.typing import NDArray

from attnserve.client import Client

ROOT = Path(__file__).parents[1]
MODEL = "fashion-mnist-cbam"
START_TIMEOUT_S = 60


class ServerProcess:
    """`attnserve serve` until `stop`; its log is kept in `log`."""

    def __init__(self, *flags: str, repository: Path = ROOT / "model_repo", env: dict[str, str] | None = None) -> None:
        command = [sys.executable, "-m", "attnserve", "serve", "--model-repository", str(repository)]
        command += ["--grpc-address", "127.0.0.1:0", "--http-address", "127.0.0.1:0", *flags]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **(env or {})}
        )
        self._lines: list[str] = []
        self._terminated = False
        self._reader = threading.Thread(target=self._read_log, daemon=True)
        self._reader.start()
        watchdog = threading.Timer(START_TIMEOUT_S, self.process.kill)
        watchdog.start()
        line = self.process.stdout.readline()
        watchdog.cancel()
        if not line:
            self.process.wait()
            self._close()
            raise AssertionError(f"the server did not start:\n{self.log}")
        self.announced = json.loads(line)
        self.grpc: str = self.announced["grpc"]
        self.http: str = self.announced["http"]

    @property
    def log(self) -> str:
        """What it has written to stderr so far."""
        return "".join(self._lines)

    def _read_log(self) -> None:
        self._lines.extend(self.process.stderr)

    def get(self, path: str) -> tuple[int, str]:
        """Status and body of an HTTP GET."""
        try:
            with urllib.request.urlopen(f"http://{self.http}{path}", timeout=10) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def metric(self, name: str, **labels: str) -> float:
        """Sum of a metric's samples with these labels."""
        from prometheus_client.parser import text_string_to_metric_families

        samples = (s for family in text_string_to_metric_families(self.get("/metrics")[1]) for s in family.samples)
        return sum(s.value for s in samples if s.name == name and labels.items() <= s.labels.items())

    def terminate(self) -> None:
        """SIGTERM: the drain begins."""
        self._terminated = True
        self.process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it on the spot, as a crash or the kernel would."""
        self.process.kill()
        self.process.wait()
        self._close()

    def stop(self) -> int:
        """SIGTERM, unless it had one; returns the exit code."""
        if not self._terminated:
            self.terminate()
        try:
            code = self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"the server did not stop:\n{self.log}") from None
        self._close()
        return code

    def _close(self) -> None:
        self._reader.join(timeout=10)
        self.process.stdout.close()
        self.process.stderr.close()


@contextlib.contextmanager
def running_server(*flags: str, **options: object) -> Iterator[ServerProcess]:
    server = ServerProcess(*flags, **options)  # type: ignore[arg-type]
    try:
        yield server
    finally:
        code = server.stop()
    assert code == 0, server.log


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """What is marked `both_transports` runs over each, `fronts` by several processes too; the rest over the default."""
    if "transport" in metafunc.fixturenames:
        both, fronts = map(metafunc.definition.get_closest_marker, ("both_transports", "fronts"))
        names = ["grpcio", *(["native"] if both else []), *(["native, 2 processes"] if fronts else [])]
        metafunc.parametrize("transport", names, scope="session")


def _flags(transport: str) -> list[str]:
    name, _, processes = transport.partition(", ")
    return ["--transport", name, *(["--transport-processes", processes.partition(" ")[0]] if processes else [])]


@pytest.fixture(scope="session")
def server(transport: str) -> Iterator[ServerProcess]:
    """One server for all tests that leave it as they found it."""
    with running_server(*_flags(transport)) as process:
        yield process


@pytest.fixture(scope="session")
def start_server(transport: str):
    """A context manager that starts a server of the test's own: `with start_server(*flags) as server`."""
    return functools.partial(running_server, *_flags(transport))


@pytest.fixture(scope="session")
def server_process(transport: str):
    """The class itself, for tests that stop the server in their own way."""
    return functools.partial(ServerProcess, *_flags(transport))


@pytest.fixture
def client(server: ServerProcess) -> Iterator[Client]:
    with Client(server.grpc) as connected:
        yield connected


@pytest.fixture
def channel(server: ServerProcess) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(server.grpc) as opened:
        yield opened


@pytest.fixture(scope="session")
def test_set() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The first 1,000 Fashion-MNIST test pictures (1000, 28, 28) and labels (1000,)."""
    with np.load(ROOT / "tests/data/fashion_mnist_test_1000.npz") as data:
        return data["images"], data["labels"]


@pytest.fixture(scope="session")
def pictures(test_set: tuple[NDArray[np.uint8], NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """The same pictures as the model sees them, (1000, 28, 28, 3)."""
    return np.repeat(test_set[0][..., np.newaxis], 3, axis=3)
