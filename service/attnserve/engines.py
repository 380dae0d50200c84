"""What a model version runs on: opens the backend that the configuration asks for, warms it, and says how many run.

The only place that knows which kinds of backend there are; knows no card and no scheduler.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from attnserve.contract import Backend
from attnserve.cores import available_cores
from attnserve.errors import ConfigError
from attnserve.gpu_engine import OnGpu, open_on_gpus
from attnserve.gpu_plan import GpuOptions
from attnserve.inference import model_config_pb2 as pb
from attnserve.latency_table import LatencyTable
from attnserve.session import CPU, OnnxBackend, choose_provider, warm_up_sizes


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

    @property
    def output_bytes(self) -> dict[str, int]:
        """Bytes of one image's float32 values by output; an axis without a size, but for the batch, counts as 1."""
        return {
            name: 4 * math.prod(size for size in shape[1:] if isinstance(size, int))
            for name, shape in self.output_shapes.items()
        }


def open_engine(path: Path, config: pb.ModelConfig, provider: str, workers: int, gpu: GpuOptions) -> Engine:
    """Open a model file and warm it at every batch size; blocks for seconds.

    Args:
        path: The ONNX file.
        config: Its `instance_group` goes before the other arguments.
        provider: `auto`, `cpu`, `cuda` or `tensorrt`.
        workers: How many run at once, on a GPU for each; 0 chooses.
        gpu: How it runs on GPUs.

    Raises:
        ConfigError: It cannot be run, or not on the provider asked for.
    """
    instances = config.instance_group[0] if config.instance_group else pb.ModelInstanceGroup()
    kinds = {pb.ModelInstanceGroup.KIND_CPU: "cpu"}
    if provider in ("auto", "cpu"):  # tensorrt is a way to run on a GPU
        kinds[pb.ModelInstanceGroup.KIND_GPU] = "cuda"
    wanted = kinds.get(instances.kind, provider)
    chosen = choose_provider(wanted)
    if chosen != CPU:
        found = open_on_gpus(path, config, chosen, instances.count or workers, gpu, strict=wanted != "auto")
        if found is not None:
            return _engine_of(found)
    backend = OnnxBackend(path)
    try:
        table = LatencyTable(backend.warm_up(warm_up_sizes(config.max_batch_size)))
    except Exception as error:  # onnxruntime has no one class for a graph that fails
        raise ConfigError(f"{path}: the warm-up failed: {error}") from error
    count = instances.count or workers or available_cores()
    return Engine(
        [backend] * count,
        CPU,
        table,
        backend.height,
        backend.width,
        backend.output_types,
        backend.output_shapes,
    )


def _engine_of(found: OnGpu) -> Engine:
    return Engine(**{name.name: getattr(found, name.name) for name in fields(Engine)})
