"""Average drop and increase in confidence: what is left of an answer when only what the map marks can be seen.

After Chattopadhay, Sarkar, Howlader and Balasubramanian, "Grad-CAM++", WACV 2018 (arXiv:1710.11063), section 4.1.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def seen_through(picture: NDArray[np.uint8], values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The picture (H, W, 3) times a map (H, W) in 0..1: black where the map is 0."""
    seen: NDArray[np.float32] = picture * values[..., None]
    return np.rint(seen).astype(np.uint8)


def drop(full: float, seen: float) -> float:
    """Share of the class's probability `full` that is lost, 0..1, where `seen` is that of what the map lets through."""
    return max(0.0, full - seen) / full


def increase(full: float, seen: float) -> float:
    """1 where the class became more probable, else 0; its mean over pictures is the paper's figure."""
    return float(seen > full)
