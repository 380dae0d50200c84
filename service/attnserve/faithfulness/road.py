"""ROAD: the answer after the most, and after the least, relevant pixels were replaced by what surrounds them.

After Rong, Leemann, Borisov, Kasneci and Kasneci, "A Consistent and Efficient Evaluation Strategy for Attribution
Methods", ICML 2022 (arXiv:2202.00449). Every removed pixel becomes the weighted mean of its eight neighbours, removed
ones too (a sparse linear system), plus noise, so that the shape of what was removed does not give the class away.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

PERCENTILES = tuple(range(10, 100, 10))
NOISE = 2.55  # grey levels: 0.01 on the 0..1 scale, as in the paper's code
TOLERANCE = 0.02  # grey levels that a pixel may differ from the mean of its neighbours
MOST_ITERATIONS = 1000
TINY = np.float32(1e-20)  # for a channel that is solved before the others


def most_relevant(order: NDArray[np.intp], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """(9, H, W): the first 10, 20 .. 90 % of the pixels in `order` (MoRF)."""
    removed = np.zeros((len(PERCENTILES), order.size), bool)
    for mask, percentile in zip(removed, PERCENTILES, strict=True):
        mask[order[: round(percentile / 100 * order.size)]] = True
    return removed.reshape(-1, *shape)


def least_relevant(order: NDArray[np.intp], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """(9, H, W): the last 10, 20 .. 90 % of the pixels in `order` (LeRF)."""
    return most_relevant(order[::-1], shape)


def combined(after_most: Sequence[float], after_least: Sequence[float]) -> float:
    """(LeRF - MoRF) / 2 of the class's mean probabilities, -0.5..0.5: more is better, and 0 is what chance gives."""
    return float(np.mean(after_least) - np.mean(after_most)) / 2


def imputed(
    picture: NDArray[np.uint8], removed: NDArray[np.bool_], rng: np.random.Generator, noise: float = NOISE
) -> NDArray[np.uint8]:
    """The picture (H, W, 3) with the pixels of the mask (H, W) imputed; `noise` is a standard deviation in grey levels.

    Raises:
        ValueError: The mask removes every pixel.
    """
    if removed.all():
        raise ValueError("nothing is left to impute from")
    filled = _filled(picture.transpose(2, 0, 1).astype(np.float32), ~removed)
    filled += removed * rng.normal(0, noise, filled.shape).astype(np.float32)
    whole: NDArray[np.uint8] = np.rint(filled.clip(0, 255)).astype(np.uint8).transpose(1, 2, 0)
    return whole


def _filled(values: NDArray[np.float32], known: NDArray[np.bool_]) -> NDArray[np.float32]:
    """(3, H, W) with every unknown pixel the mean of its neighbours; at half the size first, which is a good guess."""
    if known.all():
        return values
    height, width = known.shape
    even = ((0, height % 2), (0, width % 2))
    counts = _squares(np.pad(known.astype(np.float32), even))
    sums = _squares(np.pad(np.where(known, values, np.float32(0)), ((0, 0), *even)))
    means: NDArray[np.float32] = np.divide(sums, np.maximum(counts, 1), dtype=np.float32)
    coarse = _filled(means, counts > 0)
    guess = coarse.repeat(2, axis=1).repeat(2, axis=2)[:, :height, :width]
    return _solved(np.where(known, values, guess), (~known).astype(np.float32))


def _squares(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Sums over squares of 2 x 2 pixels of (..., H, W)."""
    sums: NDArray[np.float32] = x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]
    return sums


def _solved(x: NDArray[np.float32], gone: NDArray[np.float32]) -> NDArray[np.float32]:
    """The system's solution from the guess `x` (3, H, W), which holds the known pixels, by conjugate gradients;
    `gone` (H, W) is 1 at the unknown ones and else 0.

    A pixel weighs in another what that one weighs in it, so the matrix is symmetric; it is positive definite, for
    something is known.
    """
    total = _neighbours(np.ones(gone.shape, np.float32))  # less than 1 at the edge
    diagonal = gone * total
    x = x.copy()
    residual: NDArray[np.float32] = gone * (_neighbours(x) - total * x)
    direction = residual.copy()
    size = _products(residual, residual)
    for _ in range(MOST_ITERATIONS):
        if np.abs(residual).max() < TOLERANCE:
            break
        step = diagonal * direction - gone * _neighbours(direction)
        length = size / np.maximum(_products(direction, step), TINY)
        x += length * direction
        residual -= length * step
        before, size = size, _products(residual, residual)
        direction *= size / np.maximum(before, TINY)
        direction += residual
    return x


def _products(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    """(3, 1, 1): the inner product of each channel, which is a system of its own."""
    products: NDArray[np.float32] = np.einsum("chw,chw->c", a, b)[:, None, None]
    return products


def _neighbours(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Weighted sums over the eight neighbours of (..., H, W): a sixth of each beside, a twelfth of each diagonal."""
    rows: NDArray[np.float32] = 2 * x
    rows[..., 1:, :] += x[..., :-1, :]
    rows[..., :-1, :] += x[..., 1:, :]
    sums: NDArray[np.float32] = 2 * rows
    sums[..., 1:] += rows[..., :-1]
    sums[..., :-1] += rows[..., 1:]
    sums -= 4 * x
    sums /= 12
    return sums
