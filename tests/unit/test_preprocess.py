"""The model's view: torchvision's Resize and CenterCrop, computed from the part that the crop shows."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from attnserve.card import Preprocessing
from attnserve.preprocess import CropBox, crop_box, view

PILLOW = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def resized_size(height: int, width: int, short: int) -> tuple[int, int]:
    """As torchvision's Resize: the longer side is truncated."""
    return (int(short * height / width), short) if width <= height else (short, int(short * width / height))


def resized_then_cropped(image: Image.Image, preprocessing: Preprocessing) -> np.ndarray:
    """torchvision's `Resize(resize)` and `CenterCrop((height, width))` on a Pillow image, step by step."""
    height, width = resized_size(image.height, image.width, preprocessing.resize)
    resized = image.resize((width, height), PILLOW[preprocessing.interpolation])
    top = round((height - preprocessing.height) / 2.0)
    left = round((width - preprocessing.width) / 2.0)
    return np.asarray(resized.crop((left, top, left + preprocessing.width, top + preprocessing.height)))


def largest_difference(image: Image.Image, preprocessing: Preprocessing) -> int:
    expected = resized_then_cropped(image, preprocessing).astype(int)
    return int(np.abs(view(image, preprocessing).astype(int) - expected).max())


SIZES = [(300, 400), (400, 300), (256, 256), (375, 500), (500, 333), (1024, 768), (257, 256), (200, 150), (97, 641)]


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("interpolation", PILLOW)
def test_the_view_is_what_resizing_everything_and_cropping_gives_within_one_grey_level(height, width, interpolation):
    preprocessing = Preprocessing(224, 224, resize=256, interpolation=interpolation)
    assert largest_difference(picture(height, width), preprocessing) <= 1


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(20, 200),
    width=st.integers(20, 200),
    resize=st.integers(16, 64),
    margin=st.tuples(st.integers(0, 8), st.integers(0, 8)),
    seed=st.integers(0, 9),
)
def test_it_is_so_at_any_size_within_the_rounding_of_two_passes(height, width, resize, margin, seed):
    preprocessing = Preprocessing(resize - margin[0], resize - margin[1], resize=resize)
    assert largest_difference(picture(height, width, seed), preprocessing) <= 2


@pytest.mark.parametrize(
    ("height", "width", "resize", "crop", "new_size", "offset"),
    [
        # torchvision 0.28: F.resize -> int(size * long / short), F.center_crop -> int(round((size - crop) / 2))
        (375, 500, 256, 224, (256, 341), (16, 58)),  # 341.33 is cut; 58.5 is rounded to even
        (500, 375, 256, 224, (341, 256), (58, 16)),
        (480, 640, 256, 224, (256, 341), (16, 58)),
        (300, 451, 256, 224, (256, 384), (16, 80)),  # 384.85 is cut
        (100, 103, 224, 224, (224, 230), (0, 3)),
        (100, 101, 225, 224, (225, 227), (0, 2)),  # 0.5 is rounded to 0, 1.5 to 2
        (224, 224, 224, 224, (224, 224), (0, 0)),
    ],
)
def test_sizes_and_offsets_are_rounded_as_torchvision_rounds_them(height, width, resize, crop, new_size, offset):
    box = crop_box(height, width, Preprocessing(crop, crop, resize=resize))
    y, x = height / new_size[0], width / new_size[1]
    top, left = offset
    assert (box.left, box.top) == pytest.approx((left * x, top * y))
    assert (box.right, box.bottom) == pytest.approx(((left + crop) * x, (top + crop) * y))


@given(
    height=st.integers(1, 5000),
    width=st.integers(1, 5000),
    resize=st.integers(1, 600),
    crop=st.tuples(st.integers(1, 600), st.integers(1, 600)),
)
def test_the_box_lies_in_the_picture_and_is_not_empty(height, width, resize, crop):
    preprocessing = Preprocessing(min(crop[0], resize), min(crop[1], resize), resize=resize)
    box = crop_box(height, width, preprocessing)
    assert 0 <= box.left < box.right <= width
    assert 0 <= box.top < box.bottom <= height


@settings(max_examples=60, deadline=None)
@given(
    size=st.sampled_from([(1, 1), (1, 2000), (2000, 1), (3, 997), (997, 3), (2, 2)]),
    resize=st.sampled_from([None, 9, 33]),
    interpolation=st.sampled_from(sorted(PILLOW)),
)
def test_any_shape_of_picture_gives_a_view(size, resize, interpolation):
    seen = view(picture(*size), Preprocessing(7, 9, resize=resize, interpolation=interpolation))
    assert (seen.shape, seen.dtype) == ((7, 9, 3), np.uint8)


@pytest.mark.parametrize("interpolation", PILLOW)
@pytest.mark.parametrize("size", [(40, 400_000), (400_000, 40), (1, 10_000_000)])
def test_a_long_thin_picture_does_not_cost_its_length_times_the_view(interpolation, size):
    """Within 1 GiB of address space; resized whole, the first one has 256 x 2.56 million pixels."""
    code = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
from PIL import Image
from attnserve.card import Preprocessing
from attnserve.preprocess import view
height, width, interpolation = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
image = Image.new("RGB", (width, height), (1, 2, 3))
print(view(image, Preprocessing(224, 224, resize=256, interpolation=interpolation)).mean(axis=(0, 1)))
"""
    arguments = [sys.executable, "-c", code, *map(str, size), interpolation]
    environment = {
        **os.environ,
        "OPENBLAS_NUM_THREADS": "1",
    }  # else its buffers alone are a gigabyte on a large machine
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=60, env=environment, check=False)
    assert done.stdout == "[1. 2. 3.]\n", done.stderr


def test_without_a_crop_the_whole_picture_is_resized():
    image, preprocessing = picture(50, 70), Preprocessing(24, 32, interpolation="bicubic")
    np.testing.assert_array_equal(view(image, preprocessing), np.asarray(image.resize((32, 24), PILLOW["bicubic"])))
    assert crop_box(50, 70, preprocessing) == CropBox(0, 0, 70, 50)


@pytest.mark.parametrize("resize", [None, 24])
@pytest.mark.parametrize("interpolation", PILLOW)
def test_a_picture_of_the_right_size_is_left_as_it_is(resize, interpolation):
    image = picture(24, 24)
    np.testing.assert_array_equal(view(image, Preprocessing(24, 24, resize, interpolation)), np.asarray(image))


def test_a_picture_of_the_view_s_size_is_still_cropped_where_the_card_says_so():
    image = picture(24, 24)
    assert largest_difference(image, Preprocessing(24, 24, resize=32)) <= 1
    assert crop_box(24, 24, Preprocessing(24, 24, resize=32)) == CropBox(3, 3, 21, 21)


def test_a_picture_resized_already_is_only_cropped():
    image = picture(32, 40)
    seen = view(image, Preprocessing(24, 24, resize=32))
    np.testing.assert_array_equal(seen, np.asarray(image)[4:28, 8:32])
