"""From picture to the model's view: (H, W, 3) uint8, exactly as the card's preprocessing says.

Pure functions over Pillow images and numpy arrays; knows nothing of requests, queues or models.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from attnserve.card import Preprocessing

_RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}


_THIN = 16  # sides of a picture that is mostly outside its centre crop


class CropBox(NamedTuple):
    """The part of the upright original picture that the model sees, in its pixels (may be fractional)."""

    left: float
    top: float
    right: float
    bottom: float


def crop_box(height: int, width: int, preprocessing: Preprocessing) -> CropBox:
    """The box of a height x width picture that the model's view covers.

    Follows torchvision's Resize (shorter side to `resize`, the longer truncated) and CenterCrop (rounded offsets).
    """
    if preprocessing.resize is None:
        return CropBox(0.0, 0.0, float(width), float(height))
    (new_height, new_width), (top, left) = _resize_and_crop(height, width, preprocessing)
    x, y = width / new_width, height / new_height
    right = min((left + preprocessing.width) * x, float(width))  # min: rounding may step over the edge
    bottom = min((top + preprocessing.height) * y, float(height))
    return CropBox(left * x, top * y, right, bottom)


def view(image: Image.Image, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """The model's view of an RGB picture: (H, W, 3) uint8.

    A picture that already has the view's size and needs no crop is returned without resampling. With bilinear
    interpolation only what the crop shows is resized, which differs from resizing everything first by one grey level
    at most (by two for pictures of a few dozen pixels); the others differ by more, so there everything is resized,
    but for pictures so long that this would cost many times their own size.
    """
    size = (preprocessing.width, preprocessing.height)
    resampling = _RESAMPLING[preprocessing.interpolation]
    if preprocessing.resize is None:
        resized = image if image.size == size else image.resize(size, resampling)
    elif preprocessing.interpolation == "bilinear" or _is_thin(image):
        box = crop_box(image.height, image.width, preprocessing)
        edges = (box.left, box.top, box.right, box.bottom)
        resized = image if (*image.size, 0, 0) == (*size, *edges[:2]) else image.resize(size, resampling, edges)
    else:
        (new_height, new_width), (top, left) = _resize_and_crop(image.height, image.width, preprocessing)
        whole = image.resize((new_width, new_height), resampling)
        resized = whole.crop((left, top, left + preprocessing.width, top + preprocessing.height))
    return np.asarray(resized, dtype=np.uint8)


def _is_thin(image: Image.Image) -> bool:
    return max(image.size) > _THIN * min(image.size)


def _resize_and_crop(height: int, width: int, preprocessing: Preprocessing) -> tuple[tuple[int, int], tuple[int, int]]:
    """(height, width) after resizing the shorter side, and (top, left) of the crop in it."""
    short = preprocessing.resize or min(height, width)
    new_height, new_width = (
        (int(short * height / width), short) if width <= height else (short, int(short * width / height))
    )
    return (new_height, new_width), (
        round((new_height - preprocessing.height) / 2),
        round((new_width - preprocessing.width) / 2),
    )
