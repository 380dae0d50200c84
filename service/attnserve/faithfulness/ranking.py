"""Pixels in the order of a map: what is removed first, and what last."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def ranked(values: NDArray[np.floating], rng: np.random.Generator) -> NDArray[np.intp]:
    """Flat indices (H * W,) of a map (H, W) from its greatest value to its least.

    Equal values come in random order, so that a map without content ranks as a random one does and not by rows.
    """
    flat = values.ravel()
    return np.lexsort((rng.random(flat.size), -flat))
