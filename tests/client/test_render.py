"""Pictures of maps, by their pixels."""

from __future__ import annotations

import base64
import io
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from attnserve.canvas import text_width
from attnserve.heat import JET, normalise, resize_map
from attnserve.preprocess import CropBox
from attnserve.render import LARGEST_PANEL, Panel, figure, figure_svg, overlay

RAMP = np.array([[0.0, 1.0], [2.0, 3.0]], np.float32)
WHOLE = CropBox(0.0, 0.0, 28.0, 28.0)


@pytest.mark.parametrize(
    ("level", "rgb"),
    [
        (0, (0, 0, 128)),
        (32, (0, 0, 255)),
        (96, (2, 255, 254)),
        (128, (130, 255, 126)),
        (160, (255, 252, 0)),
        (224, (252, 0, 0)),
        (255, (128, 0, 0)),
    ],
)
def test_jet_is_opencvs_to_within_a_grey_level(level: int, rgb: tuple[int, int, int]) -> None:
    assert np.abs(JET[level].astype(int) - rgb).max() <= 1


def test_a_normalised_map_goes_from_zero_to_one() -> None:
    np.testing.assert_allclose(normalise(2 * RAMP - 5), [[0, 1 / 3], [2 / 3, 1]], atol=1e-6)


def test_a_map_without_contrast_is_all_zero() -> None:
    assert not normalise(np.full((2, 2), 0.7, np.float32)).any()


def test_a_constant_map_stays_constant_when_resized() -> None:
    assert (resize_map(np.full((3, 5), 0.7, np.float32), 17, 31) == np.float32(0.7)).all()


def test_a_map_is_resized_between_pixel_centres() -> None:
    np.testing.assert_allclose(resize_map(np.array([[0.0, 4.0]], np.float32), 1, 4), [[0.0, 1.0, 3.0, 4.0]])
    np.testing.assert_allclose(resize_map(np.array([[0.0], [4.0]], np.float32), 4, 1), [[0.0], [1.0], [3.0], [4.0]])


def test_an_overlay_leaves_every_pixel_outside_its_box_untouched() -> None:
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8))
    painted = np.array(overlay(photo, RAMP, CropBox(5.0, 4.0, 25.0, 16.0)))
    changed = (painted != np.array(photo)).any(axis=-1)
    assert not changed[:4].any()
    assert not changed[16:].any()
    assert not changed[:, :5].any()
    assert not changed[:, 25:].any()
    assert changed[4:16, 5:25].mean() > 0.9


def test_a_map_is_spread_over_exactly_its_box() -> None:
    heat = np.array(
        overlay(Image.new("RGB", (40, 20)), np.array([[0.0, 1.0]], np.float32), CropBox(10, 0, 30, 20), 1.0)
    )
    assert heat[10, [10, 14, 25, 29]].tolist() == [[0, 0, 128], [0, 0, 128], [128, 0, 0], [128, 0, 0]]
    heat = np.array(
        overlay(Image.new("RGB", (20, 40)), np.array([[0.0], [1.0]], np.float32), CropBox(0, 10, 20, 30), 1.0)
    )
    assert heat[[10, 14, 25, 29], 10].tolist() == [[0, 0, 128], [0, 0, 128], [128, 0, 0], [128, 0, 0]]


def test_a_pixel_belongs_to_a_fractional_box_by_its_centre() -> None:
    painted = np.array(overlay(Image.new("RGB", (4, 1)), np.ones((1, 1), np.float32), CropBox(0.6, 0.0, 2.6, 1.0)))
    assert painted.any(axis=-1).tolist() == [[False, True, True, False]]


def test_an_overlay_mixes_photo_and_colour_by_alpha() -> None:
    photo = Image.new("RGB", (2, 2), (200, 100, 50))
    box = CropBox(0.0, 0.0, 2.0, 2.0)
    assert np.array(overlay(photo, RAMP, box, alpha=0.0)).tolist() == np.array(photo).tolist()
    painted = np.array(overlay(photo, RAMP, box, alpha=1.0))
    assert painted[0, 0].tolist() == [0, 0, 128]
    half = np.array(overlay(photo, RAMP, box))
    assert half[0, 0].tolist() == [100, 50, 89]


def test_a_grey_photo_is_painted_in_colour() -> None:
    assert overlay(Image.new("L", (28, 28)), RAMP, WHOLE).mode == "RGB"


def test_a_tiny_photo_is_enlarged_with_its_pixels_kept() -> None:
    pixels = np.arange(784, dtype=np.uint32).astype(np.uint8).reshape(28, 28)
    sheet = np.array(figure(Image.fromarray(pixels), "tiny.png", [Panel("site", RAMP, WHOLE)]))
    enlarged = np.repeat(np.repeat(pixels, 10, axis=0), 10, axis=1)  # 280 is the first multiple above 256
    top = next(row for row in range(sheet.shape[0] - 280) if (sheet[row : row + 280, 28:308, 0] == enlarged).all())
    assert (sheet[top : top + 280, 28:308] == enlarged[..., None]).all()


def grid(columns: int, rows: int) -> tuple[int, int]:
    """Size of a sheet of so many photos of 300 x 200 under one line of heading."""
    em = max(14, 5 * columns)  # the text: a 60th of all photos' width
    return columns * (300 + 6 * em) + 3 * em, rows * (200 + 4 * em) + 3 * em + round(2.2 * em) + em


@pytest.mark.parametrize(("sites", "columns", "rows"), [(1, 2, 1), (3, 4, 1), (4, 3, 2), (8, 3, 3), (16, 5, 4)])
def test_a_figure_wraps_its_panels_into_rows(sites: int, columns: int, rows: int) -> None:
    photo = Image.new("RGB", (300, 200), "black")
    sheet = figure(photo, "a.png", [Panel(f"site{index}", RAMP, CropBox(0, 0, 300, 200)) for index in range(sites)])
    assert sheet.size == grid(columns, rows)


def test_a_figure_grows_with_its_title_and_never_beyond_its_width() -> None:
    photo = Image.new("RGB", (300, 200), "black")
    short, long = figure(photo, "a.png\ncat 99%", []), figure(photo, "a.png\n" + "cat 99%  ·  " * 30, [])
    assert long.width == short.width
    assert long.height > short.height


def test_a_huge_photo_is_reduced() -> None:
    sheet = figure(Image.new("RGB", (6000, 3000)), "huge.jpg", [])
    assert LARGEST_PANEL <= sheet.width < 1.3 * LARGEST_PANEL
    assert sheet.height < LARGEST_PANEL


@pytest.mark.parametrize("panels", [1, 2, 3, 9, 24])
def test_text_of_a_camera_s_figure_can_be_read_at_the_width_of_a_column(panels: int) -> None:
    """Of 800 pixels: the smallest text is 7 of them, and the figure has no more than a screen shows."""
    photo = Image.new("RGB", (4000, 3000))
    document = figure_svg(photo, "a.jpg", [Panel("site", RAMP, CropBox(0, 0, 4000, 3000))] * panels)
    width = int(re.findall(r' width="(\d+)"', document)[0])
    smallest = min(map(int, re.findall(r'font-size="(\d+)"', document)))
    assert smallest * 800 / width > 7
    assert width < 3840


def test_the_part_that_the_model_saw_is_outlined_only_where_it_is_a_part() -> None:
    photo = Image.new("RGB", (300, 200), "black")
    part = np.array(figure(photo, "a.png", [Panel("site", RAMP, CropBox(50, 0, 250, 200))]))
    whole = np.array(figure(photo, "a.png", [Panel("site", RAMP, CropBox(0, 0, 300, 200))]))
    tops = [int(np.flatnonzero((sheet[:, 40] == 0).all(axis=-1))[0]) for sheet in (part, whole)]
    first_tiles = [sheet[top : top + 200, 28:328] for sheet, top in zip((part, whole), tops, strict=True)]
    assert first_tiles[0].any()
    assert not first_tiles[1].any()


@pytest.mark.parametrize("size", [(60_000, 1), (1, 60_000), (3, 900)])
def test_a_picture_of_any_shape_has_a_figure(size: tuple[int, int]) -> None:
    photo = Image.new("RGB", size)
    middle = CropBox(size[0] * 0.4999, size[1] * 0.4999, size[0] * 0.5001, size[1] * 0.5001)
    assert figure(photo, "thin", [Panel("site", np.eye(3, dtype=np.float32), middle)]).size > (0, 0)


def test_groups_begin_rows_unless_all_fit_one() -> None:
    photo = Image.new("RGB", (300, 200), "black")

    def size(*groups: int) -> tuple[int, int]:
        first, *later = ([Panel("map", RAMP, CropBox(0, 0, 300, 200))] * panels for panels in groups)
        return figure(photo, "a.png", first, later).size

    assert size(1, 2) == grid(4, 1)
    assert size(4, 2) == grid(5, 2)
    assert size(3, 2, 2) == grid(4, 3)
    assert size(7, 2) == grid(5, 3)


def test_maps_on_one_scale_have_one_colour_for_one_value() -> None:
    photo, scale = Image.new("RGB", (28, 28)), (0.0, 8.0)
    low, high = (
        np.array(overlay(photo, np.full((2, 2), value, np.float32), WHOLE, 1.0, scale)) for value in (4.0, 8.0)
    )
    assert low[5, 5].tolist() == JET[128].tolist()
    assert high[5, 5].tolist() == JET[255].tolist()
    assert (np.array(overlay(photo, RAMP * 0, WHOLE, 1.0, (0.0, 0.0))) == JET[0]).all()


@pytest.mark.parametrize("fill", [0.0, np.nan])
def test_a_remark_stands_on_the_photo_where_there_is_no_map(fill: float) -> None:
    photo = Image.new("RGB", (300, 200), (9, 120, 77))
    panel = Panel("dog", np.full((2, 2), fill, np.float32), CropBox(0, 0, 300, 200), remark="nothing spoke for it")
    sheet = np.array(figure(photo, "a.png", [panel]))
    green = (sheet == (9, 120, 77)).all(axis=-1)
    assert 1.8 * 300 * 200 < green.sum() < 2 * 300 * 200  # twice, less the strip with the words
    assert "nan" not in panel.note
    assert "nothing spoke for it" in figure_svg(photo, "a.png", [panel])


def test_an_svg_figure_holds_text_and_pictures_and_nothing_from_outside() -> None:
    photo = Image.new("RGB", (300, 200), (9, 120, 77))
    title = 'a<b>&"c\x00\udcff.png\nlow & high'
    document = figure_svg(photo, title, [Panel("<script>", RAMP, CropBox(50, 0, 250, 200))], notes=["the foot"])
    root = ElementTree.fromstring(document.encode())
    svg = "{http://www.w3.org/2000/svg}"
    texts = [element.text for element in root.iter(f"{svg}text")]
    assert {'a<b>&"c??.png', "low & high", "<script>", "2 x 2", "0.0", "3.0", "the foot"} <= set(texts)
    assert {element.tag.removeprefix(svg) for element in root.iter()} == {"svg", "rect", "text", "image"}
    pictures = [element.get("href", "") for element in root.iter(f"{svg}image")]
    sizes = []
    for picture in pictures:
        data = base64.b64decode(picture.removeprefix("data:image/png;base64,"), validate=True)
        sizes.append(Image.open(io.BytesIO(data)).size)
    assert sizes[:2] == [(300, 200), (300, 200)]  # photo and map; then the colour bar
    assert len(sizes) == 3
    assert re.findall(r"https?://[^\"]*", document) == ["http://www.w3.org/2000/svg"]
    raster = figure(photo, title, [Panel("<script>", RAMP, CropBox(50, 0, 250, 200))], notes=["the foot"])
    assert (root.get("width"), root.get("height")) == (str(raster.width), str(raster.height))


def test_a_heading_without_spaces_is_broken_within_the_figure() -> None:
    path = "photos/" * 40 + "cat.png"
    document = figure_svg(Image.new("RGB", (300, 200)), path, [])
    lines = re.findall(r'font-size="21"[^>]*>([^<]*)<', document)
    assert "".join(lines) == path
    width = int(re.findall(r' width="(\d+)"', document)[0])
    assert all(text_width(line, 21) <= width - 2 * 28 for line in lines)


def test_a_long_title_ends_before_the_next_panel_begins() -> None:
    photo = Image.new("RGB", (300, 200))
    document = figure_svg(photo, "a", [Panel("very long " * 20, RAMP, CropBox(0, 0, 300, 200), " (85.2%)")])
    (title,) = re.findall(r">(very long[^<]*)<", document)
    assert title.endswith("... (85.2%)")
    assert 20 < len(title) < 70
