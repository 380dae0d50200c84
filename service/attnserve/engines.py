"""What a model version runs on: opens the backend that the configuration asks for, warms it, and says how many run.

The only place that knows which kinds of backend there are; knows no card and no scheduler.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from attnserve.contract import Backend
from attnserve.cores import available_cores
from attnserve.errors import ConfigError
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
    """

    backends: Sequence[Backend]
    provider: str
    table: LatencyTable
    height: int
    width: int
    output_types: Mapping[str, str]
    output_shapes: Mapping[str, tuple[int | str, ...]]

    @property
    def output_bytes(self) -> dict[str, int]:
        """Bytes of one image's float32 values by output; an axis without a size, but for the batch, counts as 1."""
        return {
            name: 4 * math.prod(size for size in shape[1:] if isinstance(size, int))
            for name, shape in self.output_shapes.items()
        }


def open_engine(path: Path, config: pb.ModelConfig, provider: str, workers: int) -> Engine:
    """Open a model file and warm it at every batch size; blocks for seconds.

    Args:
        path: The ONNX file.
        config: Its `instance_group` goes before the other arguments.
        provider: `auto`, `cpu` or `cuda`.
        workers: How many run at once; 0 chooses.

    Raises:
        ConfigError: It cannot be run, or not on the provider asked for.
    """
    instances = config.instance_group[0] if config.instance_group else pb.ModelInstanceGroup()
    kinds = {pb.ModelInstanceGroup.KIND_CPU: "cpu", pb.ModelInstanceGroup.KIND_GPU: "cuda"}
    wanted = kinds.get(instances.kind, provider)
    backend = OnnxBackend(path, choose_provider(wanted), strict=wanted == "cuda")
    try:
        table = LatencyTable(backend.warm_up(warm_up_sizes(config.max_batch_size)))
    except Exception as error:  # onnxruntime has no one class for a graph that fails
        raise ConfigError(f"{path}: the warm-up failed: {error}") from error
    count = instances.count or workers or (available_cores() if backend.provider == CPU else 1)
    return Engine(
        [backend] * count,
        backend.provider,
        table,
        backend.height,
        backend.width,
        backend.output_types,
        backend.output_shapes,
    )
