"""What a model version runs on, as a noun: whoever opens one, on a CPU or on GPUs, gives this."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from attnserve.contract import Backend
from attnserve.latency_table import LatencyTable
from attnserve.openvino_backend import OPENVINO
from attnserve.session import CPU


@dataclass(frozen=True)
class Engine:
    """A model file, opened and warm.

    Attributes:
        backends: One per worker; the same object twice where it allows concurrent runs.
        provider: The execution provider that it really runs on.
        table: What its batches cost, as the warm-up measured it.
        height, width: Of its view in pixels.
        output_types: ONNX type by output.
        output_shapes: Likewise the shape, whose first axis is the batch.
        plan: How it runs there, in words; empty where there is nothing to choose.
        cpu_nodes: Nodes of the graph that a GPU's provider left to the CPU; None on a CPU, and where it is unknown.
        close: Frees what only it holds; called when no worker runs it any more.
        placement: How many workers, and how many threads share a run: `2x1`; empty on a GPU.
        joins: Whether what several workers run at once is run as one batch, so that rows need not be shared out.
        unbound: A backend that any thread may run before the workers do; None where any of `backends` is one.
    """

    backends: Sequence[Backend]
    provider: str
    table: LatencyTable
    height: int
    width: int
    output_types: Mapping[str, str]
    output_shapes: Mapping[str, tuple[int | str, ...]]
    plan: str = ""
    cpu_nodes: int | None = None
    close: Callable[[], None] = lambda: None
    placement: str = ""
    unbound: Backend | None = None
    joins: bool = False

    @property
    def onnx_provider(self) -> str:
        """ONNX Runtime's execution provider for the graphs beside the model."""
        return CPU if self.provider == OPENVINO else self.provider

    @property
    def output_bytes(self) -> dict[str, int]:
        """Bytes of one image's float32 values by output; an axis without a size, but for the batch, counts as 1."""
        return {
            name: 4 * math.prod(size for size in shape[1:] if isinstance(size, int))
            for name, shape in self.output_shapes.items()
        }
