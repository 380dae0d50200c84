"""Every kind of picture becomes upright RGB; everything else is refused, and no warning gets out."""

from __future__ import annotations

import io
import os
import random
import struct
import subprocess
import sys
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from attnserve.card import Preprocessing
from attnserve.decode import (
    FORMATS,
    MOST_SCANS,
    DecodeLimits,
    Picture,
    is_view,
    picture_from_bytes,
    picture_from_pixels,
    prepare,
)
from attnserve.errors import InvalidArgument
from attnserve.preprocess import CropBox

LIMITS = DecodeLimits(max_bytes=1 << 20, max_pixels=1_000_000)
RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)
WHITE, BLACK, GREY = (255, 255, 255), (0, 0, 0), (100, 100, 100)
UPRIGHT = np.array([[RED, GREEN, BLUE], [WHITE, BLACK, GREY]], np.uint8)  # (2, 3, 3)
VIEW = Preprocessing(2, 3)


def encoded(image: Image.Image, format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


@pytest.fixture(autouse=True)
def pillow_stays_as_it_was():
    limit = Image.MAX_IMAGE_PIXELS
    yield
    Image.MAX_IMAGE_PIXELS = limit


def decoded(data: bytes, preprocessing: Preprocessing = VIEW, limits: DecodeLimits = LIMITS) -> Picture:
    """Decode as in a server process, whose warnings are printed and not raised; there must be none."""
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        prepare()
        try:
            return picture_from_bytes(data, preprocessing, limits)
        finally:
            assert [str(warning.message) for warning in heard] == []


def refusal(data: bytes, **options) -> str:
    with pytest.raises(InvalidArgument) as caught:
        decoded(data, **options)
    return str(caught.value)


def noise(height: int, width: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def blurred(height: int, width: int, seed: int = 0) -> Image.Image:
    """Something that JPEG keeps to within a few grey levels."""
    return noise(3, 3, seed).resize((width, height), Image.Resampling.BICUBIC)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, depth: int = 8, colour: int = 2, rows: bytes = b"", *extra: bytes) -> bytes:
    """A PNG file chunk by chunk, whether or not they make sense."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    body = b"".join(extra) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + body


@pytest.mark.parametrize("format", ["PNG", "WEBP"])
def test_a_lossless_file_of_the_view_s_size_is_decoded_exactly(format):
    picture = decoded(encoded(Image.fromarray(UPRIGHT), format, lossless=True))
    np.testing.assert_array_equal(picture.pixels, UPRIGHT)
    assert picture.pixels.dtype == np.uint8
    assert (picture.height, picture.width, picture.box) == (2, 3, CropBox(0, 0, 3, 2))


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
def test_a_jpeg_is_decoded_to_within_its_loss(options):
    original = blurred(20, 30)
    picture = decoded(encoded(original, "JPEG", quality=95, **options), Preprocessing(20, 30))
    assert np.abs(picture.pixels.astype(int) - np.asarray(original).astype(int)).mean() < 4


# How the pixels of UPRIGHT lie in a file with each EXIF orientation (row and column zero as the standard names them).
STORED = {
    2: UPRIGHT[:, ::-1],
    3: UPRIGHT[::-1, ::-1],
    4: UPRIGHT[::-1],
    5: UPRIGHT.transpose(1, 0, 2),
    6: np.rot90(UPRIGHT),
    7: np.rot90(UPRIGHT, 2).transpose(1, 0, 2),
    8: np.rot90(UPRIGHT, -1),
}


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("format", ["PNG", "WEBP"])
def test_exif_orientation_is_applied(orientation, format):
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = encoded(Image.fromarray(np.ascontiguousarray(STORED[orientation])), format, lossless=True, exif=exif)
    picture = decoded(file)
    np.testing.assert_array_equal(picture.pixels, UPRIGHT)
    assert (picture.height, picture.width) == (2, 3)


@pytest.mark.parametrize("orientation", STORED)
def test_exif_orientation_of_a_jpeg_is_applied(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = np.zeros((16, 32, 3), np.uint8)
    upright[:8, :8] = 255  # white in the upper left
    turned = {2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1], 5: upright.transpose(1, 0, 2),
              6: np.rot90(upright), 7: np.rot90(upright, 2).transpose(1, 0, 2), 8: np.rot90(upright, -1)}  # fmt: skip
    file = encoded(Image.fromarray(np.ascontiguousarray(turned[orientation])), "JPEG", quality=95, exif=exif)
    picture = decoded(file, Preprocessing(16, 32))
    assert (picture.height, picture.width) == (16, 32)
    assert np.abs(picture.pixels.astype(int) - upright).max() < 12


@pytest.mark.parametrize("orientation", [0, 1, 9, 255])
def test_an_orientation_that_turns_nothing_turns_nothing(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = decoded(encoded(Image.fromarray(UPRIGHT), "PNG", exif=exif))
    np.testing.assert_array_equal(picture.pixels, UPRIGHT)


@pytest.mark.parametrize("mode", ["L", "1"])
def test_grey_becomes_rgb(mode):
    grey = Image.fromarray(np.array([[0, 255, 0], [255, 0, 255]], np.uint8)).convert(mode)
    picture = decoded(encoded(grey, "PNG"))
    assert picture.pixels[:, :, 0].tolist() == [[0, 255, 0], [255, 0, 255]]
    assert (picture.pixels == picture.pixels[:, :, :1]).all()


@pytest.mark.parametrize("format", ["PNG", "WEBP"])
@pytest.mark.parametrize("alpha", [0, 1, 128, 255])
def test_alpha_is_dropped_and_not_blended(format, alpha):
    rgba = np.dstack([UPRIGHT, np.full((2, 3), alpha, np.uint8)])
    file = encoded(Image.fromarray(rgba), format, lossless=True, exact=True)
    np.testing.assert_array_equal(decoded(file).pixels, UPRIGHT)


def test_grey_with_alpha_keeps_its_grey():
    grey_alpha = np.array([[[10, 0], [20, 128], [30, 255]]] * 2, np.uint8)
    picture = decoded(encoded(Image.fromarray(grey_alpha, "LA"), "PNG"))
    assert picture.pixels[0].tolist() == [[10, 10, 10], [20, 20, 20], [30, 30, 30]]


def palette_picture() -> Image.Image:
    image = Image.new("P", (3, 2))
    image.putpalette([*RED, *GREEN, *BLUE, *WHITE, *BLACK, *GREY])
    image.putdata([0, 1, 2, 3, 4, 5])
    return image


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="opaque"),
        pytest.param({"transparency": 1}, id="one transparent colour"),
        pytest.param({"transparency": bytes([0, 128, 255, 7, 0, 9])}, id="alpha for each colour"),
    ],
)
def test_a_palette_becomes_its_colours_whatever_their_transparency(options):
    file = encoded(palette_picture(), "PNG", **options)
    np.testing.assert_array_equal(decoded(file).pixels, UPRIGHT)
    np.testing.assert_array_equal(
        picture_from_bytes(file, VIEW, LIMITS).pixels, UPRIGHT
    )  # not prepared: no noise either


@pytest.mark.parametrize(("mode", "transparent"), [("L", 7), ("RGB", (7, 7, 7))])
def test_a_transparent_colour_stays_a_colour(mode, transparent):
    file = encoded(Image.new(mode, (3, 2), transparent), "PNG", transparency=transparent)
    assert (decoded(file).pixels == 7).all()


def test_a_cmyk_jpeg_becomes_rgb():
    cmyk = Image.new("CMYK", (16, 16), (0, 255, 255, 0))  # no cyan, all magenta and yellow: red
    picture = decoded(encoded(cmyk, "JPEG", quality=95), Preprocessing(16, 16))
    assert np.abs(picture.pixels.astype(int) - RED).max() < 8


def test_16_bit_grey_keeps_its_high_byte():
    deep = np.array([[0, 255, 256], [0x1234, 0x8000, 0xFFFF]], np.uint16)
    image = Image.fromarray(deep)
    assert image.mode == "I;16"
    picture = decoded(encoded(image, "PNG"))
    assert picture.pixels[:, :, 0].tolist() == [[0, 0, 1], [0x12, 0x80, 0xFF]]
    assert (picture.pixels == picture.pixels[:, :, :1]).all()


def test_16_bit_grey_costs_no_more_memory_than_colour():
    """48 million pixels, a file of 430 kB, within 1 GiB of address space; a few 64-bit copies would take more."""
    code = """
import io, resource
import numpy as np
from PIL import Image
from attnserve.card import Preprocessing
from attnserve.decode import DecodeLimits, picture_from_bytes
buffer = io.BytesIO()
Image.fromarray(np.full((6000, 8000), 0x1234, np.uint16)).save(buffer, "PNG", compress_level=1)
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
picture = picture_from_bytes(buffer.getvalue(), Preprocessing(8, 8), DecodeLimits(1 << 20, 48_000_000))
print(picture.pixels.mean())
"""
    environment = {
        **os.environ,
        "OPENBLAS_NUM_THREADS": "1",
    }  # else its buffers alone are a gigabyte on a large machine
    arguments = [sys.executable, "-c", code]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=60, env=environment, check=False)
    assert done.stdout == "18.0\n", done.stderr


def test_16_bit_colour_keeps_its_high_bytes():
    row = b"\0" + struct.pack(">9H", 0x0102, 0x8000, 0xFFFF, 0, 255, 256, 0x1234, 0x5678, 0x9ABC)
    picture = decoded(png(3, 1, 16, 2, row), Preprocessing(1, 3))
    assert picture.pixels[0].tolist() == [[0x01, 0x80, 0xFF], [0, 0, 1], [0x12, 0x56, 0x9A]]


@pytest.mark.parametrize("format", ["PNG", "WEBP"])
def test_of_an_animation_the_first_frame_counts(format):
    first, second, third = Image.fromarray(UPRIGHT), Image.new("RGB", (3, 2), RED), Image.new("RGB", (3, 2), BLUE)
    file = encoded(first, format, save_all=True, append_images=[second, third], duration=100, lossless=True)
    with Image.open(io.BytesIO(file)) as image:
        assert image.n_frames == 3
    np.testing.assert_array_equal(decoded(file).pixels, UPRIGHT)


@pytest.mark.parametrize("format", ["GIF", "BMP", "TIFF", "ICO", "PPM", "TGA", "PCX", "EPS"])
def test_other_formats_are_refused(format):
    assert refusal(encoded(noise(16, 16), format)) == "the picture is not a JPEG, PNG or WebP file"


@pytest.mark.parametrize("data", [b"\0", b"GET / HTTP/1.1\r\n\r\n", bytes(4096), b"\xff\xd8\xff", b"RIFF\0\0\0\0WEBP"])
def test_bytes_that_are_no_picture_are_refused(data):
    refusal(data)


def test_no_bytes_are_refused():
    assert refusal(b"") == "the picture is empty"


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_a_file_cut_short_is_refused_wherever_it_is_cut(format):
    whole = encoded(noise(40, 40), format)
    for end in [1, 8, 20, 40, 100, len(whole) // 2, len(whole) * 9 // 10]:
        refusal(whole[:end])


def test_too_many_bytes_are_refused_before_anyone_looks_at_them():
    data = encoded(Image.fromarray(UPRIGHT), "PNG")
    exact = DecodeLimits(max_bytes=len(data), max_pixels=6)
    np.testing.assert_array_equal(decoded(data, limits=exact).pixels, UPRIGHT)
    short = DecodeLimits(max_bytes=len(data) - 1, max_pixels=6)
    assert refusal(data, limits=short) == f"the picture has {len(data)} bytes; at most {len(data) - 1} are accepted"


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_too_many_pixels_are_refused(format):
    data = encoded(blurred(20, 30), format)
    decoded(data, limits=DecodeLimits(1 << 20, max_pixels=600))
    message = refusal(data, limits=DecodeLimits(1 << 20, max_pixels=599))
    assert message == "the picture is 20 x 30; at most 599 pixels are accepted"


@pytest.mark.parametrize(
    ("width", "height"),
    [
        pytest.param(10_000, 10_000, id="where Pillow warns"),
        pytest.param(100_000, 100_000, id="where Pillow refuses"),
        pytest.param(2**31 - 1, 2**31 - 1, id="the most that a header can say"),
        pytest.param(2**31 - 1, 1, id="a line"),
    ],
)
def test_a_small_file_that_claims_to_be_huge_is_refused(width, height):
    assert "pixels" in refusal(png(width, height))


@pytest.mark.parametrize("side", [10_000, 100_000])
def test_without_a_server_s_preparation_too_a_huge_picture_is_refused(side):
    with pytest.raises(InvalidArgument, match="pixels"):
        picture_from_bytes(png(side, side), VIEW, LIMITS)


def test_a_limit_above_pillow_s_own_is_honoured():
    # 200 million pixels; Pillow warns above 89 million and refuses above 179. Cut short, so that this test is cheap.
    data = png(10_000, 20_000, 1, 0, b"\0" + bytes(1250))[:-20]
    limits = DecodeLimits(1 << 20, max_pixels=200_000_000)
    assert refusal(data, limits=limits) == "the picture is broken or cut short"


@pytest.mark.parametrize(("width", "height"), [(0, 1), (1, 0), (0, 0)])
def test_a_picture_without_pixels_is_refused(width, height):
    refusal(png(width, height))


def exif_of(*entries: bytes) -> bytes:
    """An EXIF block of one directory with these 12-byte entries."""
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)


ORIENTATION_6 = struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0)


@pytest.mark.parametrize(
    "exif",
    [
        pytest.param(exif_of(ORIENTATION_6)[:-12], id="ends inside an entry"),
        pytest.param(exif_of(ORIENTATION_6, struct.pack("<HHII", 0x010E, 2, 1 << 20, 1 << 20)), id="points outside"),
        pytest.param(exif_of(ORIENTATION_6, struct.pack("<HHI4s", 0x0100, 2, 4, b"abc\0")), id="text for a number"),
        pytest.param(exif_of(ORIENTATION_6, struct.pack("<HHII", 0x010F, 99, 1, 0)), id="an unknown type"),
        pytest.param(b"Exif\0\0" + b"rubbish", id="no directory"),
        pytest.param(b"Exif\0\0", id="nothing"),
    ],
)
def test_a_broken_exif_block_makes_no_noise_and_costs_at_most_the_orientation(exif):
    picture = decoded(encoded(Image.fromarray(UPRIGHT), "PNG", exif=exif))
    assert sorted([picture.height, picture.width]) == [2, 3]


def test_a_malformed_multi_picture_jpeg_is_an_ordinary_jpeg_and_makes_no_noise():
    frames = [blurred(20, 30, seed) for seed in range(2)]
    data = encoded(frames[0], "MPO", save_all=True, append_images=frames[1:])
    whole = decoded(data, Preprocessing(20, 30))
    assert b"MPF\0II*\0" in data
    broken = decoded(data.replace(b"MPF\0II*\0", b"MPF\0XX*\0"), Preprocessing(20, 30))
    np.testing.assert_array_equal(broken.pixels, whole.pixels)


def test_a_malformed_animated_png_makes_no_noise():
    control = chunk(b"acTL", struct.pack(">II", 0, 0))
    row = b"\0" + bytes(9)
    assert (decoded(png(3, 2, 8, 2, row * 2, control)).pixels == 0).all()


def test_compressed_text_that_explodes_is_refused():
    text = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(80_000_000), 9))
    refusal(png(3, 2, 8, 2, (b"\0" + bytes(9)) * 2, text))


def specimens() -> list[bytes]:
    """One small file of every kind, with EXIF and text where the format has it."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description"
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", "x" * 40, zip=True)
    colour = noise(20, 30)
    return [
        encoded(colour, "JPEG", exif=exif),
        encoded(colour.convert("L"), "JPEG", progressive=True, exif=exif),
        encoded(colour.convert("CMYK"), "JPEG"),
        encoded(colour, "PNG", exif=exif, pnginfo=text),
        encoded(colour.convert("LA"), "PNG"),
        encoded(Image.fromarray(np.full((20, 30), 40_000, np.uint16)), "PNG", exif=exif),
        encoded(colour, "PNG", save_all=True, append_images=[noise(20, 30, 1)]),
        encoded(colour, "WEBP", exif=exif),
        encoded(colour.convert("RGBA"), "WEBP", lossless=True),
        encoded(colour, "WEBP", save_all=True, append_images=[noise(20, 30, 1)]),
    ]


def with_right_checksums(data: bytes) -> bytes:
    """A damaged PNG whose chunks pass their CRC, so that the decoder looks inside."""
    if data[:8] != b"\x89PNG\r\n\x1a\n":
        return data
    repaired, position = data[:8], 8
    while position + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, position)
        if position + 12 + length > len(data):
            break
        repaired += chunk(data[position + 4 : position + 8], data[position + 8 : position + 8 + length])
        position += 12 + length
    return repaired + data[position:]


@pytest.mark.parametrize("seed", range(10))
def test_a_damaged_file_is_decoded_or_refused_and_makes_no_noise(seed):
    rng = random.Random(seed)
    files = specimens()
    for _ in range(300):
        damaged = bytearray(rng.choice(files))
        for _ in range(rng.choice([1, 1, 2, 5])):
            damaged[rng.randrange(min(len(damaged), 250))] = rng.choice([0, 1, 127, 128, 255, rng.randrange(256)])
        try:
            picture = decoded(with_right_checksums(bytes(damaged)), Preprocessing(8, 8, resize=9))
        except InvalidArgument:
            continue
        assert picture.pixels.shape == (8, 8, 3)


def test_raw_pixels_of_the_view_s_size_are_the_view_itself_and_not_copied():
    cropping = Preprocessing(2, 3, resize=4)
    picture = picture_from_pixels(UPRIGHT, cropping, LIMITS)
    assert picture.pixels is UPRIGHT
    assert (picture.height, picture.width, picture.box) == (2, 3, CropBox(0, 0, 3, 2))


def test_raw_grey_pixels_of_the_view_s_size_are_the_view_itself():
    grey = np.array([[0, 50, 100], [150, 200, 250]], np.uint8)[:, :, np.newaxis]  # (2, 3, 1)
    picture = picture_from_pixels(grey, Preprocessing(2, 3, resize=4), LIMITS)
    np.testing.assert_array_equal(picture.pixels, np.repeat(grey, 3, axis=2))
    assert picture.box == CropBox(0, 0, 3, 2)


@pytest.mark.parametrize("preprocessing", [Preprocessing(8, 8), Preprocessing(8, 8, resize=10)])
def test_raw_pixels_of_another_size_are_treated_like_a_file(preprocessing):
    image = noise(20, 30)
    raw = picture_from_pixels(np.asarray(image), preprocessing, LIMITS)
    file = decoded(encoded(image, "PNG"), preprocessing)
    np.testing.assert_array_equal(raw.pixels, file.pixels)
    assert (raw.height, raw.width, raw.box) == (file.height, file.width, file.box)


def test_raw_grey_pixels_of_another_size_are_treated_like_a_grey_file():
    grey = noise(20, 30).convert("L")
    raw = picture_from_pixels(np.asarray(grey)[:, :, np.newaxis], Preprocessing(8, 8, resize=10), LIMITS)
    np.testing.assert_array_equal(raw.pixels, decoded(encoded(grey, "PNG"), Preprocessing(8, 8, resize=10)).pixels)


def test_too_many_raw_pixels_are_refused():
    with pytest.raises(InvalidArgument, match="the picture is 2 x 3; at most 5 pixels are accepted"):
        picture_from_pixels(UPRIGHT, VIEW, DecodeLimits(1 << 20, max_pixels=5))


@pytest.mark.parametrize(("height", "width", "expected"), [(2, 3, True), (3, 2, False), (2, 4, False)])
def test_only_the_exact_size_is_a_view(height, width, expected):
    assert is_view(height, width, VIEW) is expected


def jpeg_with_scans(count: int) -> bytes:
    """A progressive JPEG whose last scan is repeated."""
    data = encoded(noise(16, 16), "JPEG", progressive=True)
    start, end = data.rindex(b"\xff\xda"), data.rindex(b"\xff\xd9")
    more = count - data.count(b"\xff\xda")
    return data[:end] + data[start:end] * more + data[end:]


def test_a_progressive_jpeg_may_have_as_many_scans_as_any_encoder_writes_and_no_more():
    """Else a file of 150 kB, a picture of 16 million pixels with two thousand scans, takes twenty seconds."""
    assert jpeg_with_scans(MOST_SCANS).count(b"\xff\xda") == MOST_SCANS
    assert decoded(jpeg_with_scans(MOST_SCANS)).pixels.shape == (2, 3, 3)
    assert refusal(jpeg_with_scans(MOST_SCANS + 1)) == "the JPEG has more than the 100 scans accepted"


def test_a_jpeg_that_lists_further_pictures_is_held_to_the_same_number_of_scans():
    """Pillow calls such a file MPO, so that a check for "JPEG" alone passes it by."""
    picture = noise(16, 16)
    data = encoded(picture, "MPO", save_all=True, append_images=[picture])
    assert Image.open(io.BytesIO(data), formats=FORMATS).format == "MPO"
    assert decoded(data).pixels.shape == (2, 3, 3)
    assert refusal(data + b"\xff\xda" * MOST_SCANS) == "the JPEG has more than the 100 scans accepted"
