"""Loads one model version: checks that it fits and is what its card says, warms it, and starts its workers."""

from __future__ import annotations

import hashlib
import logging
import stat
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from attnserve import engines, memory
from attnserve.batch_queue import BatchQueue
from attnserve.card import LAST, Explanation
from attnserve.contract import Backend, Entry, Listener
from attnserve.engine import Engine
from attnserve.errors import ConfigError, DoesNotFit
from attnserve.explain import FEATURES, Explainers, record_of
from attnserve.gpu.plan import GpuOptions, parse_plan, provider_of_layers
from attnserve.inference import model_config_pb2 as pb
from attnserve.latency_table import LatencyTable
from attnserve.listeners import QuietListener
from attnserve.model_config import policy_of
from attnserve.models import Model
from attnserve.placement import CpuOptions
from attnserve.repository import MODEL_NAME, VersionFiles, read_version
from attnserve.scheduler import Scheduler
from attnserve.session import ExplainingBackend, Provider
from attnserve.signers import Signers

OpenEngine = Callable[[Path, pb.ModelConfig, str, int, GpuOptions, CpuOptions], Engine]
"""As `engines.open_engine`."""

OpenLayer = Callable[[Path, bytes, Explanation, Provider, int], "Explains"]
"""As `open_layer`."""

_ROUNDING = 0.01  # of a sum of probabilities; half precision is far within it

log = logging.getLogger(__name__)


class Explains(Backend, Protocol):
    """What runs an explaining graph; see `ExplainingBackend`."""

    def warm_up(self, row: NDArray[Any]) -> float:
        """Run one row; returns the seconds."""


def open_layer(path: Path, data: bytes, layer: Explanation, provider: Provider, most: int) -> Explains:  # noqa: ARG001
    """An explaining graph from a file's verified bytes; `most` rows are run at once."""
    return ExplainingBackend(path, data, layer, provider)


class Loader:
    """Makes `Model`s of files. One thread at a time may call it.

    Args:
        provider: `auto`, `cpu`, `openvino`, `cuda` or `tensorrt`.
        workers: Per model, on GPUs for each of them; 0 chooses.
        gpu: How models run on GPUs; the first one's best measured way where it is None.
        cpu: How models run on a CPU; a worker for each core where it is None.
        listener: For the workers.
        reserve_bytes: Memory that must stay free.
        signers: One of whom must have signed a model's card; None asks for no signature.
        available_bytes: How much memory there is; None where nobody knows.
        open_engine, open_layer: By whom models and explaining graphs are opened.
    """

    def __init__(
        self,
        *,
        provider: str,
        workers: int,
        listener: Listener,
        reserve_bytes: int,
        signers: Signers | None = None,
        gpu: GpuOptions | None = None,
        cpu: CpuOptions | None = None,
        available_bytes: Callable[[], int | None] = memory.available_bytes,
        open_engine: OpenEngine = engines.open_engine,
        open_layer: OpenLayer = open_layer,
    ) -> None:
        self._open_engine = open_engine
        self._open_layer = open_layer
        self._provider = provider
        self._workers = workers
        self._listener = listener
        self._reserve_bytes = reserve_bytes
        self._signers = signers
        self._gpu = gpu or GpuOptions()
        self._cpu = cpu or CpuOptions()
        self._available_bytes = available_bytes

    def load(self, folder: Path, version: str, config: pb.ModelConfig, previous: Model | None) -> Model:
        """Load and warm one version of the model in `folder`; blocks for seconds.

        Args:
            previous: Another version of it that is loaded; what that one measured tells what this one will take, and
                by what plan it runs on a GPU.

        Raises:
            ConfigError: It cannot be served; `DoesNotFit` where that is for want of memory.
        """
        started = time.monotonic()
        file_bytes = self._check_it_fits(folder / version / MODEL_NAME, config, previous)
        files = read_version(folder, version, config, self._signers)
        memory.give_back()
        resident_before = memory.resident_bytes()
        known = parse_plan(previous.plan) if previous is not None and previous.plan else {}
        gpu = replace(self._gpu, known=known)
        engine = self._open_engine(files.model_path, config, self._provider, self._workers, gpu, self._cpu)
        try:
            _check_outputs(files, engine)
            _check_probabilities(files, engine)
        except BaseException:
            engine.close()
            raise
        memory.give_back()
        memory_bytes = max(memory.resident_bytes() - resident_before, file_bytes)
        count = len(engine.backends)
        policy = replace(policy_of(config), shares_out=not engine.joins)
        queue: BatchQueue[Entry] = BatchQueue(policy, engine.table, count)
        scheduler = Scheduler(files.key, engine.backends, queue, self._listener)
        load_s = time.monotonic() - started
        placed = f"placement {engine.placement}" if engine.placement else f"{count} workers"
        log.info("model %s version %s: %s, %s, batches up to %d, took %.0f MiB, loaded in %.2f s", *files.key,
                 engine.provider, placed, config.max_batch_size, memory_bytes / (1 << 20), load_s)  # fmt: skip
        return Model(
            files,
            scheduler,
            engine.provider,
            engine.output_bytes,
            load_s,
            memory_bytes,
            file_bytes,
            explainers=Explainers(
                [
                    (layer, partial(self._load_layer, files, layer, engine.onnx_provider, count))
                    for layer in files.card.explain
                ]
            ),
            plan=engine.plan,
            placement=engine.placement,
            cpu_nodes=engine.cpu_nodes,
            close_engine=engine.close,
        )

    def _load_layer(self, files: VersionFiles, layer: Explanation, provider: str, workers: int) -> Scheduler:
        """Load one explaining graph, verify it once more, and start its workers; blocks."""
        path = files.folder / layer.file
        try:
            status = path.stat()
            reason = memory.refusal(
                int(memory.FILE_FACTOR * status.st_size), self._reserve_bytes, self._available_bytes()
            )
            if reason:
                raise DoesNotFit(f"{path}: {reason}")
            if not stat.S_ISREG(status.st_mode):  # a pipe would be waited for
                raise ConfigError(f"{path}: it is no file")
            data = path.read_bytes()
        except OSError as error:
            raise ConfigError(f"{path}: {error}") from error
        if hashlib.sha256(data).hexdigest() != files.card.files[layer.file]:
            raise ConfigError(f"{path}: it is not the file any more whose SHA-256 the card says")
        started = time.monotonic()
        provided = provider_of_layers(provider, self._gpu)
        backend = self._open_layer(path, data, layer, provided, files.config.max_batch_size)
        view = files.card.preprocessing
        row = np.zeros(1, record_of(layer, view.height, view.width))
        try:
            table = LatencyTable({1: backend.warm_up(row)})  # the larger sizes are learned as they come
        except Exception as error:  # onnxruntime has no one class for a graph that fails
            raise ConfigError(f"{path}: the warm-up failed: {error}") from error
        queue: BatchQueue[Entry] = BatchQueue(replace(policy_of(files.config), max_queue_delay_s=0.0), table, workers)
        log.info("model %s version %s: explains by %s, loaded in %.2f s", *files.key, layer.layer,
                 time.monotonic() - started)  # fmt: skip
        silent = QuietListener()  # batches and drops are none of the model's own
        return Scheduler(files.key, [backend] * workers, queue, silent)

    def _check_it_fits(self, path: Path, config: pb.ModelConfig, previous: Model | None) -> int:
        """The file's size; raises `DoesNotFit`."""
        try:
            file_bytes = path.stat().st_size
        except OSError as error:
            raise ConfigError(f"{path}: {error}") from error
        height, width = config.input[0].dims[:2]
        pixels = height * width * config.max_batch_size
        if previous is not None and previous.files.config.max_batch_size == config.max_batch_size:
            beyond_file = previous.memory_bytes - previous.file_bytes
            needed = memory.estimate_bytes(file_bytes, pixels, measured_beyond_file=beyond_file)
        else:
            needed = memory.estimate_bytes(file_bytes, pixels)
        reason = memory.refusal(needed, self._reserve_bytes, self._available_bytes())
        if reason:
            raise DoesNotFit(f"{path}: {reason}")
        return file_bytes


def _check_outputs(files: VersionFiles, engine: Engine) -> None:
    """The graph must give what the card and config.pbtxt promise, at the shapes they say."""
    size = (engine.height, engine.width)
    if size != (files.card.preprocessing.height, files.card.preprocessing.width):
        raise ConfigError(f"{files.model_path}: takes pictures of {size}, not what the card says")
    promised: dict[str, tuple[int, ...]] = {"probabilities": (len(files.labels),), "logits": (len(files.labels),)}
    for site in files.card.sites:
        if site.channel:
            promised[site.channel] = (site.channels,)
        if site.spatial:
            promised[site.spatial] = (site.height, site.width)
    for layer in files.card.explain:
        if layer.layer == LAST:
            promised[FEATURES] = (layer.channels, layer.height, layer.width)
    for name, shape in promised.items():
        found = engine.output_shapes.get(name)
        if found is None or found[1:] != shape:
            raise ConfigError(f"{files.model_path}: output {name!r} should be (batch, {shape}), found {found}")
    for name, kind in engine.output_types.items():
        if kind != "tensor(float)":
            raise ConfigError(f"{files.model_path}: output {name!r} must be tensor(float), found {kind}")


def _check_probabilities(files: VersionFiles, engine: Engine) -> None:
    """What the graph calls probabilities must be some: for a black picture they are finite and add up to 1."""
    black = np.zeros((1, engine.height, engine.width, 3), np.uint8)
    probabilities = (engine.unbound or engine.backends[0]).run(black, ["probabilities"])["probabilities"]
    if not (probabilities.min() >= 0 and abs(float(probabilities.sum()) - 1) < _ROUNDING):  # NaN fails both
        raise ConfigError(f"{files.model_path}: `probabilities` are none for a black picture: {probabilities}")
