"""Deletion and insertion: how fast an answer goes when the map's pixels are taken away, and comes when they are given.

After Petsiuk, Das and Saenko, "RISE: Randomized Input Sampling for Explanation of Black-box Models", BMVC 2018
(arXiv:1806.07421), section 4.3: pixels go to the channel means of the training pictures, and come into a
blurred picture.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

BLUR = 8
"""The blur's standard deviation is the picture's shorter side divided by this: 28 pixels for a view of 224. The paper's
11-pixel kernel leaves small pictures readable."""


def transition(
    start: NDArray[np.uint8], end: NDArray[np.uint8], order: NDArray[np.intp], steps: int
) -> NDArray[np.uint8]:
    """(steps + 1, H, W, 3): from `start` to `end`, the k-th with the first k / steps of `order` from `end`.

    Deletion goes from the picture to a plain one, insertion from a blurred picture to the picture.
    """
    pixels = order.size
    on_the_way = np.repeat(start.reshape(1, pixels, 3), steps + 1, axis=0)
    for step in range(steps + 1):
        chosen = order[: round(step / steps * pixels)]
        on_the_way[step, chosen] = end.reshape(pixels, 3)[chosen]
    return on_the_way.reshape(steps + 1, *start.shape)


def area_under(scores: NDArray[np.floating]) -> float:
    """Area under scores (steps + 1,) at even steps over 0..1, by the trapezoidal rule."""
    return float((scores[1:] + scores[:-1]).mean() / 2)


def plain(picture: NDArray[np.uint8], colour: tuple[float, float, float]) -> NDArray[np.uint8]:
    """A picture of the same shape in one colour, given on the 0..1 scale."""
    return np.broadcast_to(np.rint(255 * np.array(colour)).astype(np.uint8), picture.shape)


def blurred(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(H, W, 3) under a Gaussian that keeps hardly more than where it is light and dark; the edge does not darken."""
    height, width = picture.shape[:2]
    sigma = min(height, width) / BLUR
    rows, columns = _gaussian(height, sigma), _gaussian(width, sigma)
    soft: NDArray[np.float64] = np.einsum("ij,jkc,lk->ilc", rows, picture, columns, optimize=True)
    return np.rint(soft).astype(np.uint8)


def _gaussian(size: int, sigma: float) -> NDArray[np.float64]:
    """(size, size): each row a Gaussian around its own place, of sum 1."""
    places = np.arange(size)
    weights = np.exp(-((places[:, None] - places) ** 2) / (2 * sigma**2))
    rows: NDArray[np.float64] = weights / weights.sum(1, keepdims=True)
    return rows
