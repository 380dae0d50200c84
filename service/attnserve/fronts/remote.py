"""Engines as a front sees them: opened by the host, run through lanes."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from numpy.typing import NDArray

from attnserve.card import Explanation
from attnserve.contract import Outputs
from attnserve.engine import Engine
from attnserve.errors import ConfigError
from attnserve.fronts.lane import FrontLane, give_lane, send_with_handle
from attnserve.gpu.plan import GpuOptions
from attnserve.inference import model_config_pb2 as pb
from attnserve.latency_table import LatencyTable
from attnserve.placement import CpuOptions
from attnserve.session import Provider

LANES = 4
"""Of each model and front: so many of its batches may be with the host; what comes meanwhile makes the next larger."""


@dataclass(frozen=True)
class OpenModel:
    """Asks the host for an engine; the arguments of `engines.open_engine`."""

    path: Path
    config: bytes
    provider: str
    workers: int
    gpu: GpuOptions
    cpu: CpuOptions


@dataclass(frozen=True)
class OpenLayer:
    """Asks the host for an explaining graph; `digest` is the SHA-256 of the file that the front has verified."""

    path: Path
    digest: str
    layer: Explanation
    provider: Provider
    most: int


@dataclass(frozen=True)
class Facts:
    """What the host says of what it opened: see `Engine`."""

    outputs: Sequence[str]
    provider: str = ""
    seconds: Mapping[int, float] | None = None
    height: int = 0
    width: int = 0
    output_types: Mapping[str, str] | None = None
    output_shapes: Mapping[str, tuple[int | str, ...]] | None = None
    plan: str = ""
    cpu_nodes: int | None = None
    placement: str = ""


@dataclass(frozen=True)
class Ready:
    """Says whether a front takes requests, and for what versions by model."""

    ready: bool
    models: Mapping[str, str]


@dataclass(frozen=True)
class Refused:
    """Why it was not opened."""

    reason: str


class RemoteBackend:
    """Runs batches on the host; as many threads at once as there are lanes, more wait.

    Args:
        owner: The host keeps the engine for as long as this is open.
    """

    def __init__(self, owner: Connection, lanes: Sequence[FrontLane], outputs: Sequence[str]) -> None:
        self._owner = owner
        self._lanes = lanes
        self._free: SimpleQueue[FrontLane] = SimpleQueue()
        for lane in lanes:
            self._free.put(lane)
        self.outputs = list(outputs)

    def run(self, images: NDArray[Any], outputs: Sequence[str]) -> Outputs:
        """Compute the named outputs of the rows; blocks. Raises `RuntimeError` where the host could not."""
        lane = self._free.get()
        try:
            return lane.run(images, outputs)
        finally:
            self._free.put(lane)

    def warm_up(self, row: NDArray[Any]) -> float:
        """As `ExplainingBackend.warm_up`."""
        started = time.perf_counter()
        self.run(row, self.outputs)
        return time.perf_counter() - started

    def close(self) -> None:
        """Let the host close the engine, if no other front has it. May be called twice."""
        if self._owner.closed:
            return
        for lane in self._lanes:
            lane.close()
        self._owner.close()

    def __del__(self) -> None:
        self.close()


class RemoteEngines:
    """Has the host open what this front serves. Any thread may call it.

    Args:
        host: Where to ask.
        lock: Of what is sent there.
    """

    def __init__(self, host: Connection, lock: threading.Lock) -> None:
        self._host = host
        self._lock = lock

    def open_engine(
        self, path: Path, config: pb.ModelConfig, provider: str, workers: int, gpu: GpuOptions, cpu: CpuOptions
    ) -> Engine:
        """See `engines.open_engine`."""
        request = OpenModel(path, config.SerializeToString(), provider, workers, gpu, cpu)
        backend, facts = self._open(request, path)
        return Engine(
            [backend] * LANES,
            facts.provider,
            LatencyTable(facts.seconds),
            facts.height,
            facts.width,
            facts.output_types or {},
            facts.output_shapes or {},
            plan=facts.plan,
            cpu_nodes=facts.cpu_nodes,
            close=backend.close,
            placement=facts.placement,
            joins=True,
        )

    def open_layer(self, path: Path, data: bytes, layer: Explanation, provider: Provider, most: int) -> RemoteBackend:
        """See `ExplainingBackend`; `most` rows are run at once."""
        digest = hashlib.sha256(data).hexdigest()
        return self._open(OpenLayer(path, digest, layer, provider, most), path)[0]

    def _open(self, request: OpenModel | OpenLayer, path: Path) -> tuple[RemoteBackend, Facts]:
        """Raises `ConfigError` with the host's reason."""
        owner, theirs = Pipe()
        with theirs, self._lock:
            send_with_handle(self._host, request, theirs)
        try:
            answer: Facts | Refused = owner.recv()
        except EOFError:
            raise ConfigError(f"{path}: the process that runs the models is gone") from None
        if isinstance(answer, Refused):
            raise ConfigError(answer.reason)
        return RemoteBackend(owner, [give_lane(owner) for _ in range(LANES)], answer.outputs), answer
