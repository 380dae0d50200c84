"""One thing before a plain wall: which pixels are the thing, and how much of a map lies on it.

The energy-based pointing game of Wang et al., "Score-CAM", CVPR workshops 2020 (arXiv:1910.01279), section 4.3, with
the thing itself in place of a bounding box.
"""

from __future__ import annotations

from collections import deque

import numpy as np
from numpy.typing import NDArray

BORDER = 16  # the border is the shorter side divided by this wide
LEAST_WALL = 0.7  # of the border: an arm that comes in takes up to a quarter of it
TOLERANCE = 10.0  # grey levels: folds and JPEG noise of a real wall stay below, skin is 30 off


class NotPlainError(ValueError):
    """The picture does not show one thing before a plain wall."""


def foreground(picture: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """(H, W): the pixels of the thing in a picture (H, W, 3).

    A pixel's distance to the wall is what of its colour no brightness of the wall's hue explains, so light that falls
    off and shadows stay wall; before a black wall it is the pixel's own brightness. Of what lies beyond Otsu's
    threshold of the distances, the largest connected component is the thing.

    Raises:
        NotPlainError: Less than 70 % of the border is wall, or nothing stands out by its hue (grey on grey for one).
    """
    pixels = picture.astype(np.float64)
    height, width = picture.shape[:2]
    edge = max(1, min(height, width) // BORDER)
    border = np.ones((height, width), bool)
    border[edge:-edge, edge:-edge] = False
    wall = hue_of(pixels[border])
    distance = np.linalg.norm(pixels - (pixels @ wall)[..., None] * wall, axis=2)
    share = float((distance[border] < TOLERANCE).mean())
    if share < LEAST_WALL:
        raise NotPlainError(f"the border is not plain: {share:.0%} of it has the wall's colour")
    threshold = otsu(distance)
    if threshold < TOLERANCE:
        raise NotPlainError("nothing stands out from the wall by its hue")
    return largest_component(distance > threshold)


def hue_of(pixels: NDArray[np.float64]) -> NDArray[np.float64]:
    """(3,) of length 1: the median direction of colours (N, 3), for their median would mix wall and thing.

    0 where most are black.
    """
    lengths = np.linalg.norm(pixels, axis=1, keepdims=True)
    middle: NDArray[np.float64] = np.median(pixels / np.maximum(lengths, TOLERANCE), axis=0)
    length = float(np.linalg.norm(middle))
    return middle / length if length > 0.5 else np.zeros(3)


def otsu(values: NDArray[np.float64]) -> float:
    """The threshold that parts values, at least 0, into the two classes furthest apart (Otsu, 1979)."""
    counts, edges = np.histogram(values, 256, (0, max(float(values.max()), 1e-9)))
    middles = (edges[1:] + edges[:-1]) / 2
    below, sums = np.cumsum(counts)[:-1], np.cumsum(counts * middles)[:-1]
    share = below / counts.sum()
    between = (counts @ middles * share - sums) ** 2 / np.maximum(below * (1 - share), 1e-9)
    return float(edges[1:-1][between == between.max()].mean())  # the middle, where nothing lies between the classes


def largest_component(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """(H, W): of the pixels of a mask that touch by their sides, the most that do."""
    height, width = mask.shape
    left = set(np.flatnonzero(mask).tolist())
    largest: list[int] = []
    while left:
        seed = left.pop()
        found, waiting = [seed], deque([seed])
        while waiting:
            row, column = divmod(waiting.popleft(), width)
            for y, x in ((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)):
                place = y * width + x
                if 0 <= x < width and 0 <= y < height and place in left:
                    left.remove(place)
                    found.append(place)
                    waiting.append(place)
        largest = max(largest, found, key=len)
    component = np.zeros(height * width, bool)
    component[largest] = True
    return component.reshape(height, width)


def energy_share(values: NDArray[np.float32], thing: NDArray[np.bool_]) -> float:
    """Share of the sum of a map (H, W), at least 0, that lies on the thing; NaN for a map that is 0 everywhere."""
    total = float(values.sum())
    return float(values[thing].sum()) / total if total else float("nan")
