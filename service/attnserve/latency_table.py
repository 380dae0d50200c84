"""What a batch of each size costs: learned at the warm-up, kept true while serving. A plain object without a clock.

A table rather than a line, because engines have steps: a GPU fills up, a CPU falls out of its cache.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping

WORTH_IT = 1.03  # a larger batch that gains less throughput than this only makes its images wait
_AROUND_S = 100e-6  # what taking a batch, handing out its rows and waking its callers costs, whatever its size
_PACE_WEIGHT = 0.2  # of the newest batch: how fast the table follows the load of the machine, which moves all sizes
_SHAPE_WEIGHT = 0.05  # and how fast one size moves against the others, which is rare


class LatencyTable:
    """Predicts seconds for a batch from those of the sizes that were measured.

    Args:
        seconds: Batch size -> seconds, as the warm-up measured them; empty where there was none.
        padded: Whether the engine pads a batch up to the next of these sizes, so that one between costs the same.
    """

    def __init__(self, seconds: Mapping[int, float] | None = None, *, padded: bool = False) -> None:
        self._padded = padded
        known = dict(sorted((seconds or {}).items()))
        self._sizes = list(known)
        self._seconds = list(known.values())
        self._pace = 1.0
        self._efficient: dict[int, int] = {}  # answers of `efficient_size` until the shape changes: asked per request

    @property
    def sizes(self) -> dict[int, float]:
        """Batch size -> seconds as predicted now."""
        return {size: self._pace * seconds for size, seconds in zip(self._sizes, self._seconds, strict=True)}

    def predicted_s(self, rows: int) -> float:
        """Seconds for a batch of that many images; 0 while nothing is known."""
        if not self._sizes:
            return 0.0
        return self._pace * self._shape_at(rows)

    def observe(self, rows: int, seconds: float) -> None:
        """A batch of `rows` took `seconds`."""
        if seconds <= 0:
            return
        if not self._sizes:
            self._sizes, self._seconds = [rows], [seconds]
            return
        ratio = seconds / self.predicted_s(rows)
        self._pace *= ratio**_PACE_WEIGHT
        if self._padded:
            nearest = min(bisect_left(self._sizes, rows), len(self._sizes) - 1)
        else:
            nearest = min(range(len(self._sizes)), key=lambda i: abs(self._sizes[i] - rows))
        self._seconds[nearest] *= ratio**_SHAPE_WEIGHT
        self._efficient.clear()

    def efficient_size(self, most: int) -> int:
        """The smallest batch, of at most `most`, whose throughput no larger one beats by more than `WORTH_IT`.

        `most` itself where that large a batch was never measured: nothing is known against it.
        """
        if not self._sizes or self._sizes[-1] < most:
            return most
        if most not in self._efficient:
            candidates = [size for size in self._sizes if size < most]
            rates = {size: size / (self._shape_at(size) + _AROUND_S) for size in [*candidates, most]}
            enough = max(rates.values()) / WORTH_IT
            self._efficient[most] = min(size for size, rate in rates.items() if rate >= enough)
        return self._efficient[most]

    def worth_taking(self, rows: int) -> int:
        """How many of so many rows to take at once: fewer where padding would cost more than leaving some for later.

        That is the largest measured size below, where its throughput beats that of all rows by more than `WORTH_IT`.
        """
        at = bisect_left(self._sizes, rows)
        if not self._padded or at in (0, len(self._sizes)) or self._sizes[at] == rows:
            return rows
        below = self._sizes[at - 1]
        gain = below / (self._seconds[at - 1] + _AROUND_S) / (rows / (self._seconds[at] + _AROUND_S))
        return below if gain > WORTH_IT else rows

    def largest_within(self, budget_s: float, most: int) -> int:
        """The largest batch, of at most `most`, that ends within the budget; 0 where not even one image does."""
        if not self._sizes or self.predicted_s(most) <= budget_s:
            return most
        low, high = 0, most  # 0 fits, `most` does not; between them the table rises
        while high - low > 1:
            middle = (low + high) // 2
            if self.predicted_s(middle) <= budget_s:
                low = middle
            else:
                high = middle
        return low

    def _shape_at(self, rows: int) -> float:
        """Flat below the first measured size, proportional above the last; between them as the engine is."""
        sizes, seconds = self._sizes, self._seconds
        at = bisect_left(sizes, rows)
        if at == len(sizes):
            return seconds[-1] * rows / sizes[-1]
        if at == 0 or sizes[at] == rows or self._padded:
            return seconds[at]
        share = (rows - sizes[at - 1]) / (sizes[at] - sizes[at - 1])
        return seconds[at - 1] + share * (seconds[at] - seconds[at - 1])
