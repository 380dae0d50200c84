"""From picture bytes to the model's view: one bounded, exact decoder for everything that arrives encoded.

Pure functions; any thread may call them. Refuses what it does not know with `InvalidArgument`.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from attnserve.card import Preprocessing
from attnserve.errors import InvalidArgument
from attnserve.preprocess import CropBox, crop_box, view

FORMATS = ("JPEG", "PNG", "WEBP")


@dataclass(frozen=True)
class DecodeLimits:
    """What a picture may cost: encoded bytes, and pixels (height x width) once decoded."""

    max_bytes: int
    max_pixels: int


@dataclass(frozen=True)
class Picture:
    """One picture as the model sees it.

    Attributes:
        pixels: The view, (H, W, 3) uint8.
        height, width: Size of the upright original in pixels.
        box: The part of the original that the view shows.
    """

    pixels: NDArray[np.uint8]
    height: int
    width: int
    box: CropBox


def load_codecs() -> None:
    """Import Pillow's decoders now, which the first picture would otherwise wait for."""
    Image.init()


def picture_from_bytes(data: bytes, preprocessing: Preprocessing, limits: DecodeLimits) -> Picture:
    """Decode a JPEG, PNG or WebP file and cut out the model's view.

    EXIF orientation is applied; grey, palette, 16-bit and CMYK become 8-bit RGB; alpha is dropped; of an animation the
    first frame counts. Raises `InvalidArgument` for anything else, and for more bytes or pixels than the limits allow.
    """
    if not data:
        raise InvalidArgument("the picture is empty")
    if len(data) > limits.max_bytes:
        raise InvalidArgument(f"the picture has {len(data)} bytes; at most {limits.max_bytes} are accepted")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_pixels(image.height, image.width, limits)
            return _picture(_upright_rgb(image), preprocessing)
    except UnidentifiedImageError:
        raise InvalidArgument("the picture is not a JPEG, PNG or WebP file") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise InvalidArgument(f"the picture has more pixels than the {limits.max_pixels} accepted") from None
    except (
        OSError,
        SyntaxError,
        ValueError,
        EOFError,
        OverflowError,
        MemoryError,
    ):  # what Pillow raises for broken files
        raise InvalidArgument("the picture is broken or cut short") from None


def picture_from_pixels(pixels: NDArray[np.uint8], preprocessing: Preprocessing, limits: DecodeLimits) -> Picture:
    """Cut the model's view out of raw pixels (H, W, 3) or (H, W, 1) uint8; no copy where they already are the view."""
    height, width, channels = pixels.shape
    _check_pixels(height, width, limits)
    if channels == 3 and is_view(height, width, preprocessing):
        return Picture(pixels, height, width, CropBox(0.0, 0.0, float(width), float(height)))
    image = Image.fromarray(pixels[:, :, 0] if channels == 1 else pixels)
    return _picture(image.convert("RGB"), preprocessing)


def is_view(height: int, width: int, preprocessing: Preprocessing) -> bool:
    """Whether raw pixels of this size are taken as the model's view itself, without resizing or cropping."""
    return (height, width) == (preprocessing.height, preprocessing.width)


def _check_pixels(height: int, width: int, limits: DecodeLimits) -> None:
    if height * width > limits.max_pixels:
        raise InvalidArgument(f"the picture is {height} x {width}; at most {limits.max_pixels} pixels are accepted")


def _upright_rgb(image: Image.Image) -> Image.Image:
    image.load()
    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I"):  # 16-bit grey: keep the high byte, where convert() would clip to white
        high = np.clip(np.asarray(upright, dtype=np.int64), 0, 65535) >> 8
        upright = Image.fromarray(high.astype(np.uint8))
    return upright if upright.mode == "RGB" else upright.convert("RGB")


def _picture(image: Image.Image, preprocessing: Preprocessing) -> Picture:
    box = crop_box(image.height, image.width, preprocessing)
    return Picture(view(image, preprocessing), image.height, image.width, box)
