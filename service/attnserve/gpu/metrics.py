"""Prometheus metrics of the GPUs, read from NVML at each scrape."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector, CollectorRegistry

from attnserve.gpu.nvml import GpuFacts

LABELS = ("gpu", "uuid", "name")
DESCRIBED = (
    ("attnserve_gpu_memory_used_bytes", "gauge", "Memory in use on a GPU, by whatever process.", LABELS),
    ("attnserve_gpu_memory_bytes", "gauge", "Memory of a GPU.", LABELS),
    ("attnserve_gpu_utilization_ratio", "gauge", "Share of NVML's last sample period in which a kernel ran.", LABELS),
)
"""Name, kind, meaning and labels."""

_VALUES: tuple[Callable[[GpuFacts], float], ...] = (
    lambda gpu: gpu.used_bytes,
    lambda gpu: gpu.total_bytes,
    lambda gpu: gpu.busy,
)


class GpuMetrics(Collector):
    """Adds itself to the registry.

    Args:
        read: The GPUs now.
    """

    def __init__(self, read: Callable[[], Sequence[GpuFacts]], registry: CollectorRegistry) -> None:
        self._read = read
        registry.register(self)

    def describe(self) -> Iterable[GaugeMetricFamily]:
        """The families without samples, so that registering reads nothing."""
        return [GaugeMetricFamily(name, text, labels=labels) for name, _, text, labels in DESCRIBED]

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """One sample per GPU and metric."""
        families = list(self.describe())
        for gpu in self._read():
            for family, value in zip(families, _VALUES, strict=True):
                family.add_metric((str(gpu.index), gpu.uuid, gpu.name), value(gpu))
        return families
