"""A Prometheus histogram whose values come many at a time; prometheus_client's takes a lock for each value."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString


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
        self._counts: dict[tuple[str, ...], list[int]] = {}
        self._sums: dict[tuple[str, ...], float] = {}
        registry.register(self)

    def add(self, labels: tuple[str, ...], values: NDArray[np.float32]) -> None:
        """Count finite values of any number, (N,)."""
        found = values.tolist()
        with self._lock:
            counts = self._counts.get(labels)
            if counts is None:
                counts = self._counts[labels] = [0] * (len(self._bounds) + 1)
                self._sums[labels] = 0.0
            for value in found:
                counts[bisect_left(self._bounds, value)] += 1
            self._sums[labels] += sum(found)

    def forget(self, labels: tuple[str, ...]) -> None:
        """Drop every series whose labels begin so."""
        with self._lock:
            for each in [each for each in self._counts if each[: len(labels)] == labels]:
                del self._counts[each], self._sums[each]

    def describe(self) -> Iterable[HistogramMetricFamily]:
        """Its name and type, so that the registry refuses a second one of that name."""
        return [HistogramMetricFamily(self.name, self.documentation, labels=self.labelnames)]

    def collect(self) -> Iterable[HistogramMetricFamily]:
        """For the registry."""
        family = HistogramMetricFamily(self.name, self.documentation, labels=self.labelnames)
        names = [*map(floatToGoString, self._bounds), "+Inf"]
        with self._lock:
            for labels, counts in self._counts.items():
                buckets = list(zip(names, map(float, np.cumsum(counts)), strict=True))
                family.add_metric(labels, buckets, self._sums[labels])
        return [family]
