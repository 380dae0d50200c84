"""From picture bytes to the model's view: one bounded, exact decoder for everything that arrives encoded.

Pure functions; any thread may call them. Refuses what it does not know with `InvalidArgument`.
"""

from __future__ import annotations

import io
import logging
import warnings
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from attnserve.card import Preprocessing
from attnserve.errors import InvalidArgument
from attnserve.preprocess import CropBox, crop_box, view

log = logging.getLogger(__name__)

MOST_SCANS = 100
"""Of a progressive JPEG: encoders write about ten, and each is a pass over all pixels, however few bytes it takes."""

FORMATS = ("JPEG", "PNG", "WEBP")
_JPEGS = ("JPEG", "MPO")  # Pillow opens a JPEG that lists further pictures, as some cameras write it, as MPO
_START_OF_SCAN = b"\xff\xda"  # not in compressed data, where 0 follows 0xff; by chance in metadata, once in 64 KiB


@dataclass(frozen=True)
class DecodeLimits:
    """What a picture may cost: encoded bytes, and pixels (height x width) once decoded."""

    max_bytes: int
    max_pixels: int


class Picture(NamedTuple):
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


def prepare() -> None:
    """Set Pillow up for a process that decodes what strangers send; called once, at start.

    Imports its decoders, which the first picture would wait for; lifts its own limit on pixels, for ours is checked
    before any pixel is decoded; and silences its warnings about odd files.
    """
    Image.init()
    Image.MAX_IMAGE_PIXELS = None
    warnings.filterwarnings("ignore", module=r"PIL\.")


def picture_from_bytes(data: bytes, preprocessing: Preprocessing, limits: DecodeLimits) -> Picture:
    """Decode a JPEG, PNG or WebP file and cut out the model's view.

    EXIF orientation is applied; grey, palette, 16-bit and CMYK become 8-bit RGB; alpha is dropped; of an animation the
    first frame counts. Raises `InvalidArgument` for anything else, and for more bytes or pixels than the limits allow.
    """
    return _picture(upright_rgb(data, limits), preprocessing)


def upright_rgb(data: bytes, limits: DecodeLimits) -> Image.Image:
    """The whole picture as every view is cut from it. Raises `InvalidArgument` as `picture_from_bytes` does."""
    if not data:
        raise InvalidArgument("the picture is empty")
    if len(data) > limits.max_bytes:
        raise InvalidArgument(f"the picture has {len(data)} bytes; at most {limits.max_bytes} are accepted")
    return _opened(data, limits)


def picture_from_pixels(pixels: NDArray[np.uint8], preprocessing: Preprocessing, limits: DecodeLimits) -> Picture:
    """Cut the model's view out of raw pixels (H, W, 3) or (H, W, 1) uint8; no copy where they already are it."""
    height, width, channels = pixels.shape
    _check_pixels(height, width, limits)
    if is_view(height, width, preprocessing):
        pixels = np.repeat(pixels, 3, axis=2) if channels == 1 else pixels
        return Picture(pixels, height, width, CropBox(0.0, 0.0, float(width), float(height)))
    image = Image.fromarray(pixels[:, :, 0] if channels == 1 else pixels)
    return _picture(image.convert("RGB"), preprocessing)


def is_view(height: int, width: int, preprocessing: Preprocessing) -> bool:
    """Whether raw pixels of this size are taken as the model's view itself, without resizing or cropping."""
    return (height, width) == (preprocessing.height, preprocessing.width)


def _check_pixels(height: int, width: int, limits: DecodeLimits) -> None:
    if height * width > limits.max_pixels:
        raise InvalidArgument(f"the picture is {height} x {width}; at most {limits.max_pixels} pixels are accepted")


def _opened(data: bytes, limits: DecodeLimits) -> Image.Image:
    """The upright RGB picture. Whatever Pillow raises on the way is the file's fault: it has no one class for that."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_pixels(image.height, image.width, limits)
            if image.format in _JPEGS and data.count(_START_OF_SCAN) > MOST_SCANS:
                raise InvalidArgument(f"the JPEG has more than the {MOST_SCANS} scans accepted")
            image.load()
            return rgb(_upright(image))
    except (InvalidArgument, MemoryError):  # the size was within the limits: a shortage is ours
        raise
    except UnidentifiedImageError:
        raise InvalidArgument("the picture is not a JPEG, PNG or WebP file") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise InvalidArgument(f"the picture has more pixels than the {limits.max_pixels} accepted") from None
    except Exception as error:
        log.debug("a picture could not be decoded: %r", error)
        raise InvalidArgument("the picture is broken or cut short") from None


def _upright(image: Image.Image) -> Image.Image:
    """The picture as EXIF says it should be shown; as it is stored where the EXIF block itself is broken."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception as error:  # like the decoders, the parser has no one class for its failures
        log.debug("an EXIF block could not be read: %r", error)
        return image


def rgb(image: Image.Image) -> Image.Image:
    """The pixels as 8-bit RGB: 16-bit grey by its high byte, alpha dropped; no copy where they already are."""
    if image.mode.startswith("I"):  # 16-bit grey: keep the high byte, where convert() would clip to white
        image = Image.fromarray(_high_byte(np.asarray(image)))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image if image.mode == "RGB" else image.convert("RGB")


def _high_byte(grey: NDArray[Any]) -> NDArray[np.uint8]:
    """16-bit grey as 8-bit, row by row, for a large picture's temporary copies are larger than itself."""
    high = np.empty(grey.shape, np.uint8)
    for row, values in enumerate(grey):
        high[row] = np.clip(values, 0, 65535) >> 8
    return high


def _picture(image: Image.Image, preprocessing: Preprocessing) -> Picture:
    box = crop_box(image.height, image.width, preprocessing)
    return Picture(view(image, preprocessing), image.height, image.width, box)
