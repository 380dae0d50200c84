"""Large pictures by the strip: (rows, width, 3) uint8 of the upright picture, without a second copy of the whole.

Knows files and arrays, not tiles or servers.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

from attnserve.decode import FORMATS, rgb

log = logging.getLogger(__name__)

MOST_PIXELS = 1 << 29
"""Of a picture that must be decoded whole: Pillow keeps 4 bytes per pixel of RGB, 2 GiB, and 1 of grey."""

_ORIENTATION = 0x0112  # tag of EXIF and TIFF
_TURNS = {2: (0, 0, 1), 3: (0, 1, 1), 4: (0, 1, 0), 5: (1, 0, 0), 6: (1, 0, 1), 7: (1, 1, 1), 8: (1, 1, 0)}
"""Orientation -> whether the stored picture is transposed, then turned upside down, then mirrored, to stand upright."""


@runtime_checkable
class Source(Protocol):
    """An upright picture."""

    height: int
    width: int

    def strip(self, top: int, bottom: int) -> NDArray[np.uint8]:
        """(bottom - top, width, 3) uint8, its own memory or the picture's. Raises `OSError` where reading fails."""
        ...


Large: TypeAlias = bytes | str | Path | Any
"""Encoded bytes or the path of a file (JPEG, PNG, WebP, TIFF), or what gives rows of uint8 by slices and has shape and
dtype, such as a numpy array, a memmap or a zarr array: (H, W), (H, W, 1) or (H, W, 3)."""


@contextlib.contextmanager
def open_picture(picture: Large) -> Iterator[Source]:
    """The picture as a `Source`, until the context ends.

    Arrays and uncompressed TIFF and BigTIFF files (8-bit grey or RGB, in whole rows) are read by the strip. Every other
    file is decoded whole, once, and kept as Pillow does: 4 bytes per pixel of RGB, 1 of grey. What the pixels become is
    what the server makes of a file: EXIF orientation applied, 8-bit RGB, no alpha, the first frame.

    Pillow's own limit, `PIL.Image.MAX_IMAGE_PIXELS`, holds; raise it for pictures of more than 178 megapixels.

    Raises:
        OSError: The file cannot be read, is none of these formats, is broken or has more than `MOST_PIXELS`.
        ValueError: The array has another dtype or shape.
    """
    if not isinstance(picture, bytes | str | Path):
        yield _Rows(picture)
        return
    with contextlib.ExitStack() as stack:
        if isinstance(picture, bytes):
            yield _read(io.BytesIO(picture), stack)
        else:
            yield _read(stack.enter_context(Path(picture).open("rb")), stack)


def reduced(source: Source, most: int) -> Image.Image:
    """An RGB picture with sides of at most `most` pixels: means of squares of pixels, read by the strip."""
    factor = -(-max(source.height, source.width) // most)  # rounded up
    rows = []
    for top in range(0, source.height, factor):
        strip = source.strip(top, min(top + factor, source.height))
        rows.append(np.asarray(Image.fromarray(strip).reduce(factor)))  # (1, columns, 3)
    return Image.fromarray(np.concatenate(rows))


class _Rows:
    """What gives its rows by slices."""

    def __init__(self, pixels: Any) -> None:
        shape = tuple(pixels.shape)
        if pixels.dtype != np.uint8 or len(shape) not in (2, 3) or shape[2:] not in ((), (1,), (3,)) or 0 in shape:
            wanted = "(H, W, 3), (H, W, 1) or (H, W) uint8"
            raise ValueError(f"the picture must be {wanted}, got shape {shape} and dtype {pixels.dtype}")
        self.height, self.width = shape[:2]
        self._pixels = pixels

    def strip(self, top: int, bottom: int) -> NDArray[np.uint8]:
        return _in_colour(np.asarray(self._pixels[top:bottom]))


class _RawFile:
    """Rows that lie one after the other in a file; read, not mapped, for mapped pages count as memory."""

    def __init__(self, file: BinaryIO, offset: int, size: tuple[int, int], channels: int) -> None:
        self.width, self.height = size
        self._file, self._offset, self._channels = file, offset, channels

    def strip(self, top: int, bottom: int) -> NDArray[np.uint8]:
        row = self.width * self._channels
        self._file.seek(self._offset + top * row)
        data = self._file.read((bottom - top) * row)
        if len(data) < (bottom - top) * row:
            raise OSError("the picture is cut short")
        return _in_colour(np.frombuffer(data, np.uint8).reshape(bottom - top, self.width, self._channels))


class _Decoded:
    """A picture that Pillow has decoded; stood upright strip by strip, for that of the whole would be a copy."""

    def __init__(self, image: Image.Image) -> None:
        self._image = image
        self._transposed, self._upside_down, self._mirrored = _TURNS.get(_orientation(image), (0, 0, 0))
        self.width, self.height = image.size[::-1] if self._transposed else image.size

    def strip(self, top: int, bottom: int) -> NDArray[np.uint8]:
        if self._upside_down:
            top, bottom = self.height - bottom, self.height - top
        box = (top, 0, bottom, self.width) if self._transposed else (0, top, self.width, bottom)
        pixels = np.asarray(rgb(self._image.crop(box)))
        if self._transposed:
            pixels = pixels.transpose(1, 0, 2)
        return pixels[:: -1 if self._upside_down else 1, :: -1 if self._mirrored else 1]


def _read(file: BinaryIO, stack: contextlib.ExitStack) -> Source:
    """Whatever Pillow raises on the way is the file's fault: it has no one class for that."""
    try:
        image = stack.enter_context(Image.open(file, formats=(*FORMATS, "TIFF")))
        offset = _raw_rows(image)
        if offset is not None:
            return _RawFile(file, offset, image.size, len(image.getbands()))
        if image.width * image.height > MOST_PIXELS:
            raise OSError(f"the picture has {image.width * image.height} pixels; at most {MOST_PIXELS} are decoded")
        if image.mode == "F":
            raise OSError("the picture holds floating-point numbers, which have no one way to 8 bits")
        image.load()
        return _Decoded(image)
    except (MemoryError, Image.DecompressionBombWarning):
        raise
    except Image.DecompressionBombError as error:
        raise OSError(f"{error} Raise PIL.Image.MAX_IMAGE_PIXELS where the picture can be trusted.") from None
    except OSError:
        raise
    except Exception as error:
        log.debug("a picture could not be decoded: %r", error)
        raise OSError("the picture is broken or cut short") from None


def _raw_rows(image: ImageFile.ImageFile) -> int | None:
    """Where the pixels begin, in bytes, if the file holds them one after the other, upright; else None."""
    if image.format != "TIFF" or image.mode not in ("L", "RGB") or _orientation(image) != 1:
        return None
    row = image.width * len(image.getbands())
    begins, below = image.tile[0].offset, 0
    for tile in image.tile:
        left, top, right, bottom = tile.extents or (0, 0, 0, 0)
        whole = (left, top, right, tile.offset) == (0, below, image.width, begins + below * row)
        if tile.codec_name != "raw" or tile.args != (image.mode, 0, 1) or not whole:
            return None
        below = bottom
    return begins if below == image.height else None


def _orientation(image: Image.Image) -> int:
    """1 where the picture is stored upright, or where the EXIF block itself is broken."""
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception as error:  # like the decoders, the parser has no one class for its failures
        log.debug("an EXIF block could not be read: %r", error)
        return 1


def _in_colour(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(H, W), (H, W, 1) or (H, W, 3) -> (H, W, 3)."""
    pixels = pixels[:, :, np.newaxis] if pixels.ndim == 2 else pixels
    return pixels if pixels.shape[2] == 3 else np.repeat(pixels, 3, axis=2)
