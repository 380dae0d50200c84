"""Opens a model on GPUs: tries plans on the first one, runs the best on all, and says what came of it.

Joins `plan`, `tuning`, `bound_backend` and `ort_device`. Everything here works on the CPU provider too, which
is how it is tested without a GPU.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from attnserve.card import CARD_NAME, Card
from attnserve.contract import Backend
from attnserve.engine import Engine
from attnserve.errors import ConfigError
from attnserve.gpu import pinned_copies, tensorrt
from attnserve.gpu.bound_backend import GRAPHED, BoundBackend, Signature
from attnserve.gpu.nvml import open_nvml
from attnserve.gpu.one_thread import OneThread
from attnserve.gpu.ort_device import (
    Copies,
    OrtCopies,
    OrtDevice,
    nodes_by_provider,
    open_session,
    signature_of,
)
from attnserve.gpu.pinned_copies import PinnedCopies
from attnserve.gpu.plan import OVERLAP_SLOTS, OVERLAPPING, GpuOptions, Plan, cuda_options, with_workers
from attnserve.gpu.tuning import seconds_per_batch, tune
from attnserve.inference import model_config_pb2 as pb
from attnserve.latency_table import LatencyTable
from attnserve.served_graph import INPUT, warm_up_sizes
from attnserve.session import CPU, CUDA, TENSORRT, check_input

log = logging.getLogger(__name__)

_MEASURE_S = 0.25  # per batch size and plan: dozens of batches on a GPU
_TIMED_RUNS = 3


@dataclass(frozen=True)
class _Trial:
    """A plan on the first GPU; see `tuning.Trial`."""

    sessions: Sequence[dict[int, ort.InferenceSession]]  # by batch size: each slot's own, or those that all share
    backends: Sequence[BoundBackend | OneThread]
    signature: Signature
    nodes: Mapping[str, int]
    seconds: Mapping[int, float]

    def close(self) -> None:
        for backend in self.backends:
            backend.close()
        for each in self.sessions:
            each.clear()


NewCopies = Callable[[Plan, int], Copies]
"""A slot's copies, by the plan and the device."""


def new_copies(plan: Plan, device: int) -> Copies:
    """Those of the plan."""
    return PinnedCopies(device) if plan.copies == "pinned" else OrtCopies()


class _Opener:
    """Opens one model file by any plan on any device."""

    def __init__(
        self,
        path: Path,
        config: pb.ModelConfig,
        provider: str,
        options: GpuOptions,
        slots: int,
        copies: NewCopies,
    ) -> None:
        self._path = path
        self._config = config
        self._provider = provider
        self._options = options
        self._copies = copies
        self._slots = max(slots, OVERLAP_SLOTS)
        self.buckets = warm_up_sizes(config.max_batch_size)

    def attempt(self, plan: Plan) -> _Trial:
        """Open, warm and measure on the first device; raises anything, and then nothing stays open."""
        sizes = sorted({self.buckets[0], self.buckets[-1]})
        trial = self.open(plan, self._options.devices[0], sizes)
        try:
            measured = {
                size: seconds_per_batch(trial.backends, _black(size, trial.signature), _MEASURE_S) for size in sizes
            }
        except BaseException:
            trial.close()
            raise
        shown = ", ".join(f"{size}: {seconds * 1e3:.2f} ms" for size, seconds in measured.items())
        log.info("%s: plan %s takes per batch of %s", self._path, plan, shown)
        return replace(trial, seconds=measured)

    def open(self, plan: Plan, device: int, sizes: Sequence[int]) -> _Trial:
        """Open and warm, not measured, for some batch sizes."""
        slots = self._slots if plan.overlaps else 1
        sessions = [self._sessions(plan, device, sizes) for _ in range(slots if plan.graphs else 1)]
        session = sessions[0][sizes[0]]
        check_input(session, self._path)
        signature = signature_of(session, self._path)
        backends: list[BoundBackend | OneThread] = []
        trial = _Trial(sessions, backends, signature, nodes_by_provider(session), {})
        try:
            for slot in range(slots):
                make = partial(self._slot, sessions[slot % len(sessions)], signature, plan, device)
                backends.append(OneThread(make) if plan.graphs else make())
                backends[-1].warm_up(sizes)
        except BaseException:
            trial.close()
            raise
        return trial

    def complete(self, trial: _Trial, plan: Plan, device: int) -> None:
        """Open and warm the batch sizes that a trial lacks."""
        missing = [size for size in self.buckets if size not in trial.sessions[0]]
        for sessions in trial.sessions:
            sessions |= self._sessions(plan, device, missing, sessions)
        for backend in trial.backends:
            backend.warm_up(missing)

    def _sessions(
        self, plan: Plan, device: int, sizes: Sequence[int], have: Mapping[int, ort.InferenceSession] | None = None
    ) -> dict[int, ort.InferenceSession]:
        """What runs batches of those sizes, beside what there is for others.

        A session for each on CUDA: since ONNX Runtime 1.20 a convolution makes its cuDNN plan anew whenever a batch is
        not of the size of the one before, which takes ten times as long as the batch (its issue 23006).
        """
        opened = partial(open_session, str(self._path), self._provider, self._provider_options(plan, device))
        if self._provider == CUDA:
            return {size: opened() for size in sizes}
        return dict.fromkeys(sizes, next(iter(have.values())) if have else opened())

    def table(self, trial: _Trial) -> LatencyTable:
        """What one backend alone takes for each bucket."""
        seconds = {}
        for size in self.buckets:
            images = _black(size, trial.signature)
            seconds[size] = min(_timed(trial.backends[0], images) for _ in range(_TIMED_RUNS))
        return LatencyTable(seconds, padded=True)

    def _slot(
        self, sessions: Mapping[int, ort.InferenceSession], signature: Signature, plan: Plan, device: int
    ) -> BoundBackend:
        copies = self._copies(plan, device)
        kind = "cpu" if self._provider == CPU else "cuda"
        return BoundBackend(OrtDevice(sessions, kind, device, copies), signature, self.buckets, graphs=plan.graphs)

    def _provider_options(self, plan: Plan, device: int) -> dict[str, str]:
        if self._provider == TENSORRT:
            gpus = open_nvml()
            capability = ",".join(sorted({gpu.capability for gpu in gpus.read()})) if gpus else "unknown"
            profile = tensorrt.profile_options(INPUT, self._config.input[0].dims, self.buckets)
            versions = f"TensorRT {tensorrt.installed_version()}, ONNX Runtime {ort.__version__}"
            half = _precision_of(self._path) == "fp16"
            return tensorrt.tensorrt_options(self._path, profile, device, self._options, half=half, versions=versions,
                                             capability=capability)  # fmt: skip
        return cuda_options(plan, device, self._options) if self._provider == CUDA else {}


def open_on_gpus(
    path: Path,
    config: pb.ModelConfig,
    provider: str,
    workers: int,
    options: GpuOptions,
    *,
    strict: bool,
    copies: NewCopies = new_copies,
) -> Engine | None:
    """Open a model file on its GPUs and warm it at every bucket; blocks for seconds, with TensorRT for minutes.

    Args:
        provider: The execution provider.
        workers: Per GPU; 0 chooses.
        strict: Raise where it cannot be run there, instead of saying so in the log and returning None.

    Raises:
        ConfigError: The configuration contradicts itself; or as `strict` says.
    """
    fixed = with_workers(options.fixed, workers)
    barred = _barred(provider, workers, fixed)
    opener = _Opener(path, config, provider, options, workers, copies)
    opened = partial(_opened, opener, path, provider, options, barred)
    known = {dimension: word for dimension, word in options.known.items() if word not in barred}
    try:
        if known:
            try:
                return opened({**known, **fixed})
            except Exception as error:
                log.warning("%s: cannot run by the plan of the version before: %s", path, error)
        return opened(fixed)
    except Exception as error:  # onnxruntime has no one class for a provider or a graph that fails
        reason = f"{path}: {error}"
        if strict:
            raise ConfigError(reason) from error
        log.warning("%s; running on the CPU", reason)
        return None


def _opened(
    opener: _Opener, path: Path, provider: str, options: GpuOptions, barred: Collection[str], fixed: Mapping[str, str]
) -> Engine:
    plan, first = tune(opener.attempt, fixed, barred, budget_s=options.tuning_s, clock=time.monotonic)
    trials = [first]

    def close() -> None:
        for trial in trials:
            trial.close()

    try:
        opener.complete(first, plan, options.devices[0])
        for device in options.devices[1:]:
            trials += [opener.open(plan, device, opener.buckets)]
        table = opener.table(first)
    except BaseException:
        close()
        raise
    log.info("%s: runs by plan %s on GPU %s", path, plan, ", ".join(map(str, options.devices)))
    cpu_nodes = first.nodes.get(CPU, 0) if first.nodes else None
    if cpu_nodes and provider != CPU:
        log.warning("%s: %d of %d nodes run on the CPU", path, cpu_nodes, sum(first.nodes.values()))
    signature = first.signature
    names = {"float32": "tensor(float)", "float16": "tensor(float16)", "int64": "tensor(int64)"}
    return Engine(
        backends=[backend for trial in trials for backend in trial.backends],
        provider=provider,
        table=table,
        height=signature.row[0],
        width=signature.row[1],
        output_types={name: names[dtype.name] for name, (_, dtype) in signature.outputs.items()},
        output_shapes={name: ("batch", *row) for name, (row, _) in signature.outputs.items()},
        plan=str(plan),
        cpu_nodes=cpu_nodes,
        close=close,
    )


def _barred(provider: str, workers: int, fixed: Mapping[str, str]) -> set[str]:
    """Words that cannot be had. Raises `ConfigError` where one of them is asked for."""
    barred: dict[str, str] = {}
    if provider != CUDA:
        choices = ("graphs", "overlapped-graphs", "nhwc", "exhaustive")
        barred |= dict.fromkeys(choices, f"{provider} has no such choice")
    if provider == CPU or not pinned_copies.available():
        barred["pinned"] = "cuda-bindings is not installed"
    if workers == 1:
        barred |= dict.fromkeys(OVERLAPPING, "there is one worker")
    for word in fixed.values():
        if word in barred:
            raise ConfigError(f"gpu_plan: {word} cannot be had: {barred[word]}")
    return set(barred)


def _precision_of(model: Path) -> str:
    """What the card beside the model says."""
    return Card.from_json((model.parent / CARD_NAME).read_text(encoding="utf-8")).precision


def _black(size: int, signature: Signature) -> NDArray[Any]:
    return np.zeros((size, *signature.row), signature.dtype)


def _timed(backend: Backend, images: NDArray[Any]) -> float:
    started = time.perf_counter()
    backend.run(images, GRAPHED)
    return time.perf_counter() - started
