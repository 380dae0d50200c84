"""Large pictures by the strip: the pixels that the server would see in the whole file."""

from __future__ import annotations

import io
import itertools
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from attnserve.decode import DecodeLimits, upright_rgb
from attnserve.tiles.source import open_picture, reduced

LIMITS = DecodeLimits(1 << 30, 1 << 28)
COLOUR = np.random.default_rng(0).integers(0, 256, (37, 53, 3), np.uint8)


def read(picture) -> np.ndarray:
    with open_picture(picture) as source:
        strips = [source.strip(top, min(top + 8, source.height)) for top in range(0, source.height, 8)]
        whole = source.strip(0, source.height)
        assert whole.shape == (source.height, source.width, 3)
    np.testing.assert_array_equal(np.concatenate(strips), whole)
    return whole


MODES = {
    "PNG": ("RGB", "L", "P", "RGBA", "LA", "1", "I;16"),
    "JPEG": ("RGB", "L", "CMYK"),
    "TIFF": ("RGB", "L", "P", "RGBA", "LA", "1", "I;16", "CMYK"),
}


@pytest.mark.parametrize(("form", "mode"), [(form, mode) for form, modes in MODES.items() for mode in modes])
def test_strips_are_those_of_the_server_s_picture(tmp_path, form, mode):
    image = Image.fromarray(COLOUR)
    image = Image.fromarray(COLOUR[..., 0].astype(np.uint16) * 200) if mode == "I;16" else image.convert(mode)
    file = io.BytesIO()
    image.save(file, form)
    truth = io.BytesIO()
    if form == "TIFF":  # the server takes none: the same pixels as it would read them from a PNG
        image.convert("RGB").save(truth, "PNG") if mode == "CMYK" else image.save(truth, "PNG")
    (tmp_path / "large").write_bytes(file.getvalue())
    expected = np.asarray(upright_rgb((truth if form == "TIFF" else file).getvalue(), LIMITS))
    np.testing.assert_array_equal(read(tmp_path / "large"), expected)
    np.testing.assert_array_equal(read(str(tmp_path / "large")), expected)
    np.testing.assert_array_equal(read(file.getvalue()), expected)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_stood_upright(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    Image.fromarray(COLOUR).save(file, "PNG", exif=exif)
    np.testing.assert_array_equal(read(file.getvalue()), np.asarray(upright_rgb(file.getvalue(), LIMITS)))


@pytest.mark.parametrize("options", [{}, {"big_tiff": True}, {"compression": "tiff_deflate"}])
@pytest.mark.parametrize("pixels", [COLOUR, COLOUR[..., 1]], ids=["rgb", "grey"])
def test_tiff_and_big_tiff_are_read(tmp_path, pixels, options):
    Image.fromarray(pixels).save(tmp_path / "large.tif", **options)
    np.testing.assert_array_equal(read(tmp_path / "large.tif"), np.asarray(Image.fromarray(pixels).convert("RGB")))


@pytest.mark.parametrize("pixels", [COLOUR, COLOUR[..., :1], COLOUR[..., 1]], ids=["rgb", "one channel", "grey"])
def test_arrays_and_mapped_files_are_read_as_they_are(tmp_path, pixels):
    np.save(tmp_path / "large.npy", pixels)
    mapped = np.load(tmp_path / "large.npy", mmap_mode="r")
    for picture in (pixels, mapped):
        found = read(picture)
        assert (found == (pixels if pixels.ndim == 3 else pixels[..., np.newaxis])).all()


@pytest.mark.parametrize("pixels", [COLOUR.astype(float), COLOUR[0, 0], COLOUR[..., :2], COLOUR[:0]])
def test_arrays_that_are_no_pictures_are_refused(pixels):
    with pytest.raises(ValueError, match="must be"), open_picture(pixels):
        pass


def test_what_cannot_be_read_is_an_os_error(tmp_path: Path):
    for content, message in ((b"no picture", "cannot identify"), (png()[:300], "truncated|broken")):
        (tmp_path / "bad.png").write_bytes(content)
        with pytest.raises(OSError, match=message), open_picture(tmp_path / "bad.png"):
            pass
    with pytest.raises(FileNotFoundError), open_picture(tmp_path / "missing.png"):
        pass
    file = io.BytesIO()
    Image.fromarray(COLOUR[..., 0].astype(np.float32)).save(file, "TIFF")
    with pytest.raises(OSError, match="floating-point"), open_picture(file.getvalue()):
        pass


def tiff_in_strips(rows: int, gap: int) -> bytes:
    """`COLOUR`, so many rows to a strip and so many bytes between strips; Pillow itself writes a single one."""
    height, width, _ = COLOUR.shape
    strips = [COLOUR[top : top + rows].tobytes() for top in range(0, height, rows)]
    begins = list(itertools.accumulate([1000] + [len(strip) + gap for strip in strips[:-1]]))
    fields = {256: [width], 257: [height], 258: [8, 8, 8], 259: [1], 262: [2], 273: begins, 277: [3], 278: [rows]}
    fields[279] = [len(strip) for strip in strips]
    head, arrays = struct.pack("<2sHIH", b"II", 42, 8, len(fields)), b""
    for tag, values in fields.items():
        packed = struct.pack(f"<{len(values)}I", *values)
        place = packed if len(values) == 1 else struct.pack("<I", 200 + len(arrays))
        arrays += b"" if len(values) == 1 else packed
        head += struct.pack("<HHI", tag, 4, len(values)) + place
    return ((head + bytes(4)).ljust(200, b"\0") + arrays).ljust(1000, b"\0") + bytes(gap).join(strips)


@pytest.mark.parametrize(("rows", "gap"), [(37, 0), (5, 0), (5, 16)])
def test_a_tiff_in_several_strips_is_put_together(tmp_path, rows, gap):
    (tmp_path / "large.tif").write_bytes(tiff_in_strips(rows, gap))
    np.testing.assert_array_equal(read(tmp_path / "large.tif"), COLOUR)


@pytest.mark.parametrize("form", ["one strip", "big", "several strips"])
def test_of_an_uncompressed_tiff_no_more_is_read_than_the_strip(tmp_path, form):
    Image.fromarray(COLOUR).save(tmp_path / "large.tif", big_tiff=form == "big")
    if form == "several strips":
        (tmp_path / "large.tif").write_bytes(tiff_in_strips(5, 0))
    os.truncate(tmp_path / "large.tif", 3000)
    with open_picture(tmp_path / "large.tif") as source:
        np.testing.assert_array_equal(source.strip(0, 8), COLOUR[:8])
        with pytest.raises(OSError, match="cut short"):
            source.strip(0, source.height)


def png() -> bytes:
    file = io.BytesIO()
    Image.fromarray(COLOUR).save(file, "PNG")
    return file.getvalue()


def test_a_reduced_picture_shows_means_of_squares():
    with open_picture(COLOUR) as source:
        assert (np.asarray(reduced(source, 53)) == COLOUR).all()
        small = np.asarray(reduced(source, 20))  # by 3
    assert small.shape == (13, 18, 3)
    means = COLOUR[:36, :51].reshape(12, 3, 17, 3, 3).mean((1, 3))
    assert np.abs(small[:12, :17] - means).max() < 1
