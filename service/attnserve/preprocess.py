"""From picture to the model's view: (H, W, 3) uint8, exactly as the card's preprocessing says.

Pure functions over Pillow images and numpy arrays; knows nothing of requests, queues or models.
Only the part that the crop shows is resized (`Image.resize(box=...)`), which differs from resizing everything first
by at most one grey level.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from attnserve.card import Preprocessing

_RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}


@dataclass(frozen=True)
class CropBox:
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
    short = preprocessing.resize
    if width <= height:
        new_width, new_height = short, int(short * height / width)
    else:
        new_width, new_height = int(short * width / height), short
    top = round((new_height - preprocessing.height) / 2)
    left = round((new_width - preprocessing.width) / 2)
    x, y = width / new_width, height / new_height
    right = min((left + preprocessing.width) * x, float(width))  # min: rounding may step over the edge
    bottom = min((top + preprocessing.height) * y, float(height))
    return CropBox(left * x, top * y, right, bottom)


def view(image: Image.Image, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """The model's view of an RGB picture: (H, W, 3) uint8.

    A picture that already has the view's size and needs no crop is returned without resampling.
    """
    size = (preprocessing.width, preprocessing.height)
    box = crop_box(image.height, image.width, preprocessing)
    if image.size != size or (box.left, box.top, box.right, box.bottom) != (0, 0, *size):
        image = image.resize(size, _RESAMPLING[preprocessing.interpolation], (box.left, box.top, box.right, box.bottom))
    return np.asarray(image, dtype=np.uint8)
