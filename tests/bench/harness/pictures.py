"""What is sent, and what is the right answer: pictures that a model tells apart, and what `session.run` says of them.

A check that takes one picture's answer for another's proves nothing, so pictures are chosen by their answers.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from PIL import Image

from attnserve.decode import DecodeLimits, picture_from_bytes

from .entries import ROOT, Entry

TOLERANCE = 1e-3
"""Relative, of a probability. A batch changes the seventh digit, fp16 the fourth."""
APART = 10 * TOLERANCE
FEWEST = 8
LIMITS = DecodeLimits(1 << 24, 1 << 24)


@dataclass(frozen=True)
class Pictures:
    """N pictures for one model.

    Attributes:
        views: (N, H, W, 3) uint8, as the model sees them.
        files: Their JPEG files; none where they are sent as raw pixels.
        probabilities: (N, K) float32, by ONNX Runtime, each view on its own.
    """

    views: NDArray[np.uint8]
    files: tuple[bytes, ...]
    probabilities: NDArray[np.float32]


def pictures(entry: Entry, form: str, count: int = 16) -> Pictures:
    """Up to `count` pictures as `raw` pixels or `jpeg` files, whose best probabilities lie apart."""
    session = ort.InferenceSession(entry.file, providers=["CPUExecutionProvider"])
    preprocessing = entry.card.preprocessing
    found: list[tuple[NDArray[np.uint8], bytes, NDArray[np.float32]]] = []
    for pixels in _candidates(preprocessing.height, preprocessing.width, form):
        file = _jpeg(pixels) if form == "jpeg" else b""
        view = picture_from_bytes(file, preprocessing, LIMITS).pixels if file else pixels
        (row,) = session.run(["probabilities"], {"images": view[np.newaxis]})[0]
        if all(abs(row.max() / other.max() - 1) > APART for _, _, other in found):
            found.append((view, file, row))
        if len(found) == count:
            break
    if len(found) < FEWEST:
        raise RuntimeError(f"{entry.name} tells only {len(found)} pictures apart")
    views, files, rows = zip(*found, strict=True)
    return Pictures(np.stack(views), files if form == "jpeg" else (), np.stack(rows))


def _candidates(height: int, width: int, form: str) -> Iterator[NDArray[np.uint8]]:
    """Fashion-MNIST's test pictures for its own size; else noise under gradients, as photos of 500 x 375 for JPEG."""
    if (height, width) == (28, 28):
        with np.load(ROOT / "tests/data/fashion_mnist_test_1000.npz") as data:
            yield from np.repeat(data["images"][..., np.newaxis], 3, axis=3)
        return
    random = np.random.default_rng(0)
    size = (375, 500) if form == "jpeg" else (height, width)
    for _ in range(100):
        coarse = random.integers(0, 256, (random.integers(2, 40), random.integers(2, 40), 3), np.uint8)
        smooth = Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BICUBIC)
        noise = random.normal(0, random.uniform(0, 20), (*size, 3))
        yield np.clip(np.asarray(smooth) * random.uniform(0.2, 1) + noise, 0, 255).astype(np.uint8)


def _jpeg(pixels: NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=90)
    return file.getvalue()
