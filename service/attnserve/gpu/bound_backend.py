"""Runs batches through buffers that stay: on a device, one set for each batch size of a few; knows no ONNX Runtime.

A batch is padded up to the next size (its bucket): a GPU prepares for each shape, and a CUDA graph fits only one.
See `ort_device` for the device that ONNX Runtime makes.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from attnserve.contract import Outputs
from attnserve.gpu.capture_gate import GATE, CaptureGate

NO_GRAPH = -1
GRAPHED = ("probabilities",)
"""The only outputs with graphs: nearly every request asks for just these, and others may be combined at will."""

MOST_BINDINGS = 64
"""Of combinations of outputs and buckets that are remembered: callers choose them, and could choose for ever."""

_RUNS_TO_CAPTURE = 3  # two ordinary ones, which allocate, and the one that captures
_ROUNDING = 1e-5  # of probabilities: the kernels are the same, an addition may come in another order


class Device(Protocol):
    """A session's device: memory, copies and runs. Its tensors and bindings are opaque here. Any call may raise.

    Attributes:
        staged: Whether `upload` gains from what `stage` gave; else it takes any contiguous array as well.
    """

    staged: bool

    def allocate(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
        """A tensor on the device, its content undefined; freed when nobody holds it any more."""

    def stage(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """Zeroed host memory from which `upload` is fast; valid until `close`."""

    def upload(self, host: NDArray[Any], tensor: Any) -> None:
        """Copy an array of the tensor's shape; blocks until it has arrived."""

    def bind(self, batch: int, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> Any:
        """Tie tensors of that batch size to the graph's names."""

    def run(self, binding: Any, graph_id: int) -> None:
        """Compute; blocks until the outputs are there. `NO_GRAPH`, or the graph to capture or replay."""

    def download(self, tensor: Any, rows: int) -> NDArray[Any]:
        """Its first rows, in an array of their own; blocks."""

    def close(self) -> None:
        """Free everything, the session too; nothing is called after, and staged memory is not touched."""


@dataclass(frozen=True)
class Signature:
    """What a graph takes and gives.

    Attributes:
        input: Name of the input, (batch, *`row`) of `dtype`.
        outputs: Name -> shape of one row and dtype, in the graph's order.
    """

    input: str
    row: tuple[int, ...]
    dtype: np.dtype[Any]
    outputs: Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]]


@dataclass(frozen=True)
class _Bound:
    binding: Any
    outputs: Mapping[str, Any]
    graph_id: int


def bucket_for(rows: int, buckets: Sequence[int]) -> int:
    """The smallest of the ascending buckets that holds the rows. Raises `ValueError` where none does."""
    at = bisect_left(buckets, rows)
    if at == len(buckets) or rows < 1:
        raise ValueError(f"a batch of {rows} does not fit the buckets {list(buckets)}. This is a bug.")
    return buckets[at]


class BoundBackend:
    """One slot of a device: its own buffers, and one batch at a time. Several slots may share a device.

    Args:
        device: Closed with the backend.
        buckets: Batch sizes, ascending.
        graphs: Replay a CUDA graph per bucket for the outputs `GRAPHED`. Then one thread must do everything: see
            `one_thread`.
        gate: Of the process.
    """

    def __init__(
        self,
        device: Device,
        signature: Signature,
        buckets: Sequence[int],
        *,
        graphs: bool = False,
        gate: CaptureGate = GATE,
    ) -> None:
        self._device = device
        self._signature = signature
        self._buckets = list(buckets)
        self._graphs = graphs
        self._gate = gate
        self._lock = threading.Lock()
        self._inputs: dict[int, tuple[NDArray[Any], Any]] = {}  # bucket -> staged, on the device
        self._dirty: dict[int, int] = {}  # bucket -> rows of the staged array that hold a caller's pixels
        self._tensors: dict[tuple[int, str], Any] = {}
        self._graph_ids: dict[int, int] = {}  # bucket -> id, once captured
        self._bindings: OrderedDict[tuple[int, tuple[str, ...]], _Bound] = OrderedDict()
        self._closed = False

    @property
    def outputs(self) -> Sequence[str]:
        """Names of the graph's outputs."""
        return list(self._signature.outputs)

    def run(self, images: NDArray[Any], outputs: Sequence[str]) -> Outputs:
        """Compute the named outputs for at most as many rows as the largest bucket holds; blocks."""
        with self._lock, self._gate.shared():
            return self._run(images, outputs)

    def warm_up(self, buckets: Sequence[int]) -> None:
        """Allocate everything of those buckets, the largest first, and capture their graphs; blocks.

        Raises:
            RuntimeError: A graph does not compute what the same run without it does.
        """
        descending = sorted(buckets, reverse=True)
        for bucket in descending:
            self.run(self._noise(bucket), self.outputs)
            self.run(self._noise(bucket), GRAPHED)
        for bucket in descending if self._graphs else ():
            self._capture(bucket)

    def close(self) -> None:
        """Free the buffers; a run after this raises `RuntimeError`. May be called twice."""
        with self._lock, self._gate.shared():
            if not self._closed:
                self._closed = True
                self._bindings.clear()
                self._tensors.clear()
                self._inputs.clear()
                self._device.close()

    def _run(self, images: NDArray[Any], outputs: Sequence[str]) -> Outputs:
        if self._closed:
            raise RuntimeError("the backend is closed. This is a bug.")
        rows = len(images)
        bucket = bucket_for(rows, self._buckets)
        wanted = set(outputs)
        bound = self._bound(bucket, tuple(name for name in self._signature.outputs if name in wanted))
        self._upload(images, bucket)
        self._device.run(bound.binding, bound.graph_id)
        return {name: self._device.download(bound.outputs[name], rows) for name in outputs}

    def _upload(self, images: NDArray[Any], bucket: int) -> None:
        """Copy the rows to the device, and nothing of an earlier caller's beside them."""
        rows = len(images)
        staged, tensor = self._inputs[bucket]
        if rows == bucket and not self._device.staged and images.flags.c_contiguous:
            self._device.upload(images, tensor)
            return
        staged[:rows] = images
        staged[rows : self._dirty[bucket]] = 0
        self._dirty[bucket] = rows
        self._device.upload(staged, tensor)

    def _bound(self, bucket: int, names: tuple[str, ...]) -> _Bound:
        """The binding of a combination; made on first use, and forgotten when many others came after."""
        key = (bucket, names)
        bound = self._bindings.get(key)
        if bound is None:
            tensors = {name: self._output(bucket, name) for name in names}
            binding = self._device.bind(bucket, {self._signature.input: self._input(bucket)}, tensors)
            graph_id = self._graph_ids.get(bucket, NO_GRAPH) if names == GRAPHED else NO_GRAPH
            bound = self._bindings[key] = _Bound(binding, tensors, graph_id)
        self._bindings.move_to_end(key)
        if len(self._bindings) > MOST_BINDINGS:
            self._forget_oldest()
        return bound

    def _forget_oldest(self) -> None:
        """Drop the binding used longest ago; never a graph's, which is used anew with the next small request."""
        oldest = next(key for key, bound in self._bindings.items() if bound.graph_id == NO_GRAPH)
        del self._bindings[oldest]

    def _input(self, bucket: int) -> Any:
        if bucket not in self._inputs:
            shape = (bucket, *self._signature.row)
            staged = self._device.stage(shape, self._signature.dtype)
            self._inputs[bucket] = (staged, self._device.allocate(shape, self._signature.dtype))
            self._dirty[bucket] = 0
        return self._inputs[bucket][1]

    def _output(self, bucket: int, name: str) -> Any:
        if (bucket, name) not in self._tensors:
            row, dtype = self._signature.outputs[name]
            self._tensors[bucket, name] = self._device.allocate((bucket, *row), dtype)
        return self._tensors[bucket, name]

    def _capture(self, bucket: int) -> None:
        """Capture the bucket's graph, and see that a replay reads what is uploaded then.

        It must come nearer to the plain run of other pictures than these two differ.
        """
        captured = self._noise(bucket)
        replayed = np.zeros_like(captured)
        of_captured, expected = self.run(captured, GRAPHED), self.run(replayed, GRAPHED)
        with self._lock:
            self._graph_ids[bucket] = len(self._graph_ids) + 1
            del self._bindings[bucket, GRAPHED]
            with self._gate.exclusive():
                for _ in range(_RUNS_TO_CAPTURE):
                    self._run(captured, GRAPHED)
        found = self.run(replayed, GRAPHED)
        for name in GRAPHED:
            contrast = float(np.abs(expected[name] - of_captured[name]).max())
            if not np.abs(found[name] - expected[name]).max() <= max(contrast / 4, _ROUNDING):  # NaN is refused too
                raise RuntimeError(f"the CUDA graph for batches of {bucket} computes something else")

    def _noise(self, bucket: int) -> NDArray[Any]:
        return np.random.default_rng(0).integers(0, 256, (bucket, *self._signature.row), self._signature.dtype)
