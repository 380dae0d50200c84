"""Maps that know nothing of the picture: what any other map has to beat."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

GAUSSIAN = "gaussian"


def random_map(height: int, width: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """(height, width) even in 0..1.

    Drawn on the grid of the map that it is compared with: taking away scattered pixels harms a network more than taking
    away blobs, whatever they show.
    """
    return rng.random((height, width), np.float32)


def random_name(shape: tuple[int, ...]) -> str:
    """What the random map of a grid is called."""
    return f"random/{'x'.join(map(str, shape))}"


def centred_gaussian(height: int, width: int) -> NDArray[np.float32]:
    """(height, width): the photographer's bias, a Gaussian of a quarter of each side about the centre."""
    y, x = (np.arange(size) - (size - 1) / 2 for size in (height, width))
    bell = np.exp(-(y[:, None] ** 2) / (2 * (height / 4) ** 2) - x**2 / (2 * (width / 4) ** 2))
    return bell.astype(np.float32)
