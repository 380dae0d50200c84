"""Prometheus counters and histograms for what happens with every request: one lock a value, labels as a tuple.

prometheus_client's own walk all buckets, check their labels and take a lock for each part of a value.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar
from prometheus_client.utils import floatToGoString

Labels = tuple[str, ...]


class Tally(Collector):
    """A counter with labels. Any thread may call it."""

    def __init__(
        self, name: str, documentation: str, labelnames: Sequence[str], *, registry: CollectorRegistry
    ) -> None:
        self.name, self.documentation, self.labelnames = name, documentation, tuple(labelnames)
        self._lock = threading.Lock()
        self._counts: defaultdict[Labels, int] = defaultdict(int)
        registry.register(self)

    def add(self, labels: Labels, count: int = 1) -> None:
        """Count so many more."""
        with self._lock:
            self._counts[labels] += count

    def forget(self, labels: Labels, at: int = 0) -> None:
        """Drop every series that has these labels from the `at`-th on."""
        with self._lock:
            for each in [each for each in self._counts if each[at : at + len(labels)] == labels]:
                del self._counts[each]

    def describe(self) -> Iterable[CounterMetricFamily]:
        """Its name and type, so that the registry refuses a second one of that name."""
        return [CounterMetricFamily(self.name, self.documentation, labels=self.labelnames)]

    def collect(self) -> Iterable[CounterMetricFamily]:
        """For the registry."""
        family = CounterMetricFamily(self.name, self.documentation, labels=self.labelnames)
        with self._lock:
            for labels, count in self._counts.items():
                family.add_metric(labels, count)
        return [family]


class _Series:
    """The values of one set of labels, by bucket."""

    __slots__ = ("counts", "exemplars", "sum")

    def __init__(self, buckets: int) -> None:
        self.counts = [0] * buckets
        self.sum = 0.0
        self.exemplars: dict[int, Exemplar] = {}


class Distribution(Collector):
    """A histogram with labels. Any thread may call it.

    Args:
        bounds: Upper bounds of the buckets, ascending; one for everything above is added.
    """

    def __init__(
        self,
        name: str,
        documentation: str,
        labelnames: Sequence[str],
        *,
        bounds: Sequence[float],
        registry: CollectorRegistry,
    ) -> None:
        self.name, self.documentation, self.labelnames = name, documentation, tuple(labelnames)
        self._bounds = list(bounds)
        self._lock = threading.Lock()
        self._series: dict[Labels, _Series] = {}
        registry.register(self)

    def add(self, labels: Labels, values: NDArray[np.float32]) -> None:
        """Count finite values of any number, (N,)."""
        found = values.tolist()
        with self._lock:
            series = self._series.get(labels) or self._begun(labels)
            for value in found:
                series.counts[bisect_left(self._bounds, value)] += 1
            series.sum += sum(found)

    def observe(self, labels: Labels, value: float, exemplar: dict[str, str] | None = None) -> None:
        """Count one finite value.

        Args:
            exemplar: Labels that name where the value comes from; the newest of a bucket is shown.
        """
        at = bisect_left(self._bounds, value)
        with self._lock:
            series = self._series.get(labels) or self._begun(labels)
            series.counts[at] += 1
            series.sum += value
            if exemplar is not None:
                series.exemplars[at] = Exemplar(exemplar, value, time.time())

    def forget(self, labels: Labels, at: int = 0) -> None:
        """Drop every series that has these labels from the `at`-th on."""
        with self._lock:
            for each in [each for each in self._series if each[at : at + len(labels)] == labels]:
                del self._series[each]

    def describe(self) -> Iterable[HistogramMetricFamily]:
        """Its name and type, so that the registry refuses a second one of that name."""
        return [HistogramMetricFamily(self.name, self.documentation, labels=self.labelnames)]

    def collect(self) -> Iterable[HistogramMetricFamily]:
        """For the registry."""
        family = HistogramMetricFamily(self.name, self.documentation, labels=self.labelnames)
        names = [*map(floatToGoString, self._bounds), "+Inf"]
        with self._lock:
            for labels, series in self._series.items():
                counts = np.cumsum(series.counts, dtype=float).tolist()
                buckets = [
                    (name, count, series.exemplars[at]) if at in series.exemplars else (name, count)
                    for at, (name, count) in enumerate(zip(names, counts, strict=True))
                ]
                family.add_metric(labels, buckets, series.sum)
        return [family]

    def _begun(self, labels: Labels) -> _Series:
        series = self._series[labels] = _Series(len(self._bounds) + 1)
        return series
