"""How far a mean over pictures may be off: percentile bootstrap (Efron and Tibshirani, 1993, chapter 13)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000  # the ends of a 95 % interval then rest on 50 of them each
COVERAGE = 0.95
MOST_DRAWS = 2**20  # at once, for the memory that they take


@dataclass(frozen=True)
class Estimate:
    """A mean over `images` pictures with the ends of its 95 % interval; all equal pictures give one of no width."""

    mean: float
    low: float
    high: float
    images: int


def estimate(values: NDArray[np.float64], seed: int) -> Estimate | None:
    """The mean of one value per picture (N,); NaN is a picture without one. None where none has one."""
    values = values[~np.isnan(values)]
    if not values.size:
        return None
    rng = np.random.default_rng(seed)
    at_once = max(1, MOST_DRAWS // values.size)
    sizes = [min(at_once, RESAMPLES - start) for start in range(0, RESAMPLES, at_once)]
    drawn = [values[rng.integers(0, values.size, (size, values.size))].mean(1) for size in sizes]
    low, high = np.quantile(np.concatenate(drawn), ((1 - COVERAGE) / 2, (1 + COVERAGE) / 2))
    return Estimate(float(values.mean()), float(low), float(high), values.size)
