"""What NVIDIA's management library says of the GPUs: memory, utilisation, capability. Knows no CUDA and no metrics."""

from __future__ import annotations

import contextlib
import logging
from dataclasses import dataclass
from typing import Any

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class GpuFacts:
    """One GPU now.

    Attributes:
        index: NVML's, which counts every GPU of the machine; CUDA_VISIBLE_DEVICES renumbers CUDA's alone.
        uuid: Tells GPUs apart for ever.
        capability: Compute capability, like `9.0`.
        busy: Share of the last sample period in which a kernel ran, 0..1.
    """

    index: int
    uuid: str
    name: str
    capability: str
    used_bytes: int
    total_bytes: int
    busy: float


class Nvml:
    """Reads the GPUs. Any thread may call it.

    Args:
        library: `pynvml`, which is initialised already.
    """

    def __init__(self, library: Any) -> None:
        self._library = library

    def read(self) -> list[GpuFacts]:
        """Every GPU that answers; one that has fallen off the bus is left out."""
        found = []
        for index in range(self._library.nvmlDeviceGetCount()):
            with contextlib.suppress(self._library.NVMLError):
                found.append(self._facts(index))
        return found

    def _facts(self, index: int) -> GpuFacts:
        library = self._library
        gpu = library.nvmlDeviceGetHandleByIndex(index)
        memory = library.nvmlDeviceGetMemoryInfo(gpu)
        major, minor = library.nvmlDeviceGetCudaComputeCapability(gpu)
        return GpuFacts(
            index,
            library.nvmlDeviceGetUUID(gpu),
            library.nvmlDeviceGetName(gpu),
            f"{major}.{minor}",
            memory.used,
            memory.total,
            library.nvmlDeviceGetUtilizationRates(gpu).gpu / 100,
        )


def open_nvml() -> Nvml | None:
    """NVML, initialised; None, and one line in the log, where nvidia-ml-py or the driver is missing."""
    try:
        import pynvml  # of the extra gpu
    except ImportError:
        log.info("no metrics of GPUs: nvidia-ml-py is not installed")
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        log.info("no metrics of GPUs: %s", error)
        return None
    return Nvml(pynvml)
