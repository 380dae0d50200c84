"""Maps as numbers and colours: normalised, resized and coloured, by the order of operations of pytorch-grad-cam.

Pure functions over numpy; knows no picture files, servers or messages.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from attnserve.preprocess import CropBox


def _jet() -> NDArray[np.uint8]:
    level = np.linspace(0.0, 1.0, 256)[:, None]  # (256, 1)
    rgb = np.clip(1.5 - np.abs(4.0 * level - (3.0, 2.0, 1.0)), 0.0, 1.0)
    return np.rint(255.0 * rgb).astype(np.uint8)


JET: NDArray[np.uint8] = _jet()
"""(256, 3) uint8 RGB, blue to red: Matlab's jet in closed form, within one grey level of OpenCV's COLORMAP_JET."""


VIRIDIS_POINTS = (
    "440154 481a6c 472f7d 414487 39568c 31688e 2a788e 23888e 1f988b 22a884 35b779 54c568 7ad151 a5db36 d2e21b fde725"
)
"""Sixteen even points of matplotlib's viridis (van der Walt and Smith, 2015, CC0): readable without colour vision."""


def _between(points: str) -> NDArray[np.uint8]:
    """(256, 3) uint8, linear between RGB points in hexadecimal."""
    known = np.array([list(bytes.fromhex(point)) for point in points.split()], np.float64)  # (points, 3)
    places = np.linspace(0, len(known) - 1, 256)
    channels = [np.interp(places, np.arange(len(known)), known[:, channel]) for channel in range(3)]
    return np.rint(np.stack(channels, axis=1)).astype(np.uint8)


COLORMAPS: dict[str, NDArray[np.uint8]] = {
    "jet": JET,
    "viridis": _between(VIRIDIS_POINTS),
    "grey": _between("000000 ffffff"),
}
"""Name -> (256, 3) uint8 RGB from the least to the greatest value."""


def normalise(values: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """(h, w) float32 from 0 (least) to 1 (greatest), 0 everywhere where all are equal; as pytorch-grad-cam does."""
    shifted: NDArray[np.float32] = values.astype(np.float32) - np.float32(values.min())
    return shifted / np.float32(1e-7 + shifted.max())


def scaled(values: NDArray[np.float32], low: float, high: float) -> NDArray[np.float32]:
    """(h, w) float32: 0 at and below `low`, 1 at and above `high`; 0 everywhere where there is nothing between."""
    span = high - low
    return np.clip((values - np.float32(low)) / np.float32(span), 0, 1) if span > 0 else np.zeros_like(values)


def resize_map(values: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    """(height, width) float32, bilinear between pixel centres, as OpenCV's INTER_LINEAR."""
    whole = CropBox(0.0, 0.0, float(width), float(height))
    return sampled(values, np.arange(height), np.arange(width), whole)


def shown(values: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    """(height, width) float32 in 0..1: normalised, resized and normalised again, as pytorch-grad-cam does."""
    return normalise(resize_map(normalise(values), height, width))


def coloured(values: NDArray[np.float32], colormap: str) -> NDArray[np.uint8]:
    """(H, W) in 0..1 -> (H, W, 3) uint8 RGB, by the name of one of `COLORMAPS`."""
    colours: NDArray[np.uint8] = COLORMAPS[colormap][np.rint(255.0 * values).astype(np.uint8)]
    return colours


def blended(photo: NDArray[np.uint8], heat: NDArray[np.uint8], alpha: float) -> NDArray[np.uint8]:
    """(H, W, 3) uint8: colours over a photo, with the weight `alpha`, 0..1."""
    return np.rint(alpha * heat + (1.0 - alpha) * photo).astype(np.uint8)


def sampled(
    values: NDArray[np.float32], rows: NDArray[np.intp], columns: NDArray[np.intp], box: CropBox
) -> NDArray[np.float32]:
    """(rows, columns) float32: the map, spread over `box`, at the centres of these pixels."""
    height, width = values.shape
    upper, lower, down = _neighbours((rows + 0.5 - box.top) * (height / (box.bottom - box.top)) - 0.5, height)
    left, right, along = _neighbours((columns + 0.5 - box.left) * (width / (box.right - box.left)) - 0.5, width)
    lines = values[upper] + (values[lower] - values[upper]) * down[:, None]  # (rows, width)
    return lines[:, left] + (lines[:, right] - lines[:, left]) * along  # (rows, columns)


def _neighbours(
    positions: NDArray[np.float64], size: int
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32]]:
    """The two samples around each position and the way from the first to the second, 0..1; the edge goes on outside."""
    positions = np.clip(positions, 0, size - 1)
    first = np.floor(positions).astype(np.intp)
    return first, np.minimum(first + 1, size - 1), (positions - first).astype(np.float32)
