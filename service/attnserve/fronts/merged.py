"""The metrics of all processes of a server as those of one.

Counts and histograms are added up. So are gauges, but for those that say the same of the same thing in every front.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

OF_THE_HOST = frozenset({"attnserve_batch_size", "attnserve_batch_duration_seconds", "attnserve_queue_depth_images"})
"""What only the process that runs the models knows; the fronts' own are of what they handed over."""

_LEAST = frozenset({"attnserve_ready", "process_start_time_seconds"})
_GREATEST = frozenset({
    "attnserve_model_info",
    "attnserve_model_load_seconds",
    "attnserve_model_memory_bytes",
    "attnserve_model_cpu_nodes",
    "attnserve_build_info",
    "python_info",
    "process_max_fds",
})  # fmt: skip
_OF_PROCESSES = ("process_", "python_")

Families = Sequence[Metric]


class Merged(Collector):
    """Adds itself to a registry.

    Args:
        fronts: The families of each front now; of a front that does not answer, none.
        host: The registry of the process that runs the models: of it are `OF_THE_HOST`, and what is of a process.
        registry: Where all of it is scraped.
    """

    def __init__(
        self, fronts: Callable[[], Sequence[Families]], host: CollectorRegistry, registry: CollectorRegistry
    ) -> None:
        self._fronts = fronts
        self._host = host
        registry.register(self)

    def describe(self) -> Iterable[Metric]:
        """Nothing: registering must not ask anybody."""
        return []

    def collect(self) -> Iterable[Metric]:
        """All families, each once."""
        own = [each for each in self._host.collect() if each.name in OF_THE_HOST or _is_of_a_process(each)]
        theirs = [[each for each in families if each.name not in OF_THE_HOST] for families in self._fronts()]
        return merged([own, *theirs])


def merged(parts: Iterable[Families]) -> list[Metric]:
    """Families of several processes as one each, in the order of their first appearance; exemplars are left out."""
    families: dict[str, Metric] = {}
    values: dict[str, dict[tuple[str, tuple[tuple[str, str], ...]], float]] = {}
    for part in parts:
        for family in part:
            families.setdefault(family.name, family)
            samples = values.setdefault(family.name, {})
            for sample in family.samples:
                key = (sample.name, tuple(sample.labels.items()))
                samples[key] = _joined(family.name, sample, samples.get(key))
    result = []
    for name, family in families.items():
        whole = Metric(name, family.documentation, family.type, family.unit)
        whole.samples = [Sample(sample, dict(labels), value) for (sample, labels), value in values[name].items()]
        result.append(whole)
    return result


def _joined(family: str, sample: Sample, before: float | None) -> float:
    if before is None:
        return sample.value
    if family in _LEAST or sample.name.endswith("_created"):
        return min(before, sample.value)
    if family in _GREATEST:
        return max(before, sample.value)
    return before + sample.value


def _is_of_a_process(family: Metric) -> bool:
    return family.name.startswith(_OF_PROCESSES)
