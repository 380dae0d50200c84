"""Pictures of maps: a map laid over the photo it belongs to, and one figure of all maps of a photo.

Owns the layout; `attnserve.canvas` draws it as pixels or as SVG. Knows nothing of servers, models or files.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from attnserve.canvas import Canvas, Colour, Raster, Vector, fitted, text_width, wrapped
from attnserve.heat import JET, blended, coloured, normalise, sampled, scaled
from attnserve.preprocess import CropBox

SMALLEST_PANEL = 256
"""Pixels of a panel's longer side below which a photo is enlarged: smaller, and no text fits beside it."""

LARGEST_PANEL = 448
"""Pixels of a panel's longer side above which a photo is reduced: twice what most models see, and five in a row with
their text are some 3,400 pixels, which a page still shows."""

SMALLEST_TEXT = 14
"""Pixels of a figure's text; more in a wide one, so that it can be read where the figure is as wide as a column."""

WIDEST = 5
"""Panels of a row where rows belong together: more, and a page shows none of them well."""

_INK, _FAINT, _PAPER = (28, 28, 32), (112, 112, 120), (255, 255, 255)

AnyCanvas = TypeVar("AnyCanvas", bound=Canvas)


@dataclass(frozen=True)
class Panel:
    """One map of a figure.

    Attributes:
        title: What it shows, e.g. the name of the attention site.
        values: (h, w) float32 at feature resolution.
        box: The part of the photo, in its pixels, that the map covers.
        ending: What ends the title, and is kept where a long title is cut.
        detail: What else is to be said of it, before its columns x rows (width first, as a photo's size).
        scale: The values of the first and the last colour; None for the map's own least and greatest.
        remark: What stands on the photo in the place of a map that has nothing to show; empty where it has.
    """

    title: str
    values: NDArray[np.float32]
    box: CropBox
    ending: str = ""
    detail: str = ""
    scale: tuple[float, float] | None = None
    remark: str = ""

    @property
    def note(self) -> str:
        """The detail, columns x rows, and on a scale of others the own least and greatest value, which no bar says."""
        rows, columns = self.values.shape
        values = () if self.remark or self.scale is None else (" to ".join(numbers(*self._range)),)
        return ", ".join((*filter(None, [self.detail]), f"{columns} x {rows}", *values))

    @property
    def ends(self) -> tuple[str, str]:
        """What the first and the last colour mean."""
        return numbers(*(self.scale or self._range))

    @property
    def _range(self) -> tuple[float, float]:
        return float(self.values.min()), float(self.values.max())

    def over(self, photo: Image.Image, box: CropBox) -> Image.Image:
        """The photo with the map over the box; the photo alone where there is a remark instead."""
        return photo if self.remark else overlay(photo, self.values, box, scale=self.scale)


def overlay(
    image: Image.Image,
    values: NDArray[np.float32],
    box: CropBox,
    alpha: float = 0.5,
    scale: tuple[float, float] | None = None,
) -> Image.Image:
    """The photo with the map over `box` in jet colours: RGB of the photo's own size.

    Pixels whose centre lies outside the box keep their value. `alpha` is the weight of the map, 0..1; `scale` as of
    `Panel`.
    """
    photo = np.array(image.convert("RGB"))  # (H, W, 3) uint8
    rows, columns = _within(box.top, box.bottom, image.height), _within(box.left, box.right, image.width)
    levels = normalise(values) if scale is None else scaled(values, *scale)
    heat = coloured(sampled(levels, rows, columns, box), "jet")  # (rows, columns, 3)
    inside = np.ix_(rows, columns)
    photo[inside] = blended(photo[inside], heat, alpha)
    return Image.fromarray(photo)


def _within(start: float, stop: float, size: int) -> NDArray[np.intp]:
    """Indices of the pixels of 0..size whose centre lies in [start, stop)."""
    return np.arange(max(0, math.ceil(start - 0.5)), min(size, math.ceil(stop - 0.5)))


def figure(
    image: Image.Image,
    title: str,
    panels: Sequence[Panel],
    groups: Sequence[Sequence[Panel]] = (),
    notes: Sequence[str] = (),
    size: tuple[int, int] | None = None,
) -> Image.Image:
    """One RGB picture on white: the photo and, for each panel, its map over the photo with a colour bar.

    The first line of `title` is the heading, the others stand below it; long lines wrap. Photos are shown at their own
    size, tiny ones enlarged by a whole factor (pixels stay pixels), those above `LARGEST_PANEL` reduced. Where the
    first panel's box is only a part of the photo, it is outlined there. Each of `groups` begins a row, unless
    everything fits one; `notes` are lines at the foot; `size` is the width and height that the photo is said to have,
    where it was made small before.
    """
    return _drawn(image, title, (panels, *groups), notes, size, Raster).image


def figure_svg(
    image: Image.Image,
    title: str,
    panels: Sequence[Panel],
    groups: Sequence[Sequence[Panel]] = (),
    notes: Sequence[str] = (),
    size: tuple[int, int] | None = None,
) -> str:
    """The same figure as an SVG document, with text as text, and photo, maps and bars as embedded PNG files."""
    return _drawn(image, title, (panels, *groups), notes, size, Vector).document


def _drawn(
    image: Image.Image,
    title: str,
    groups: Sequence[Sequence[Panel]],
    notes: Sequence[str],
    size: tuple[int, int] | None,
    canvas: Callable[[int, int, Colour], AnyCanvas],
) -> AnyCanvas:
    photo, scale = at_panel_size(image.convert("RGB"))
    sheet = _Sheet(photo.size, _places(1 + len(groups[0]), *map(len, groups[1:])), title, notes, canvas)
    panels = [panel for group in groups for panel in group]
    sheet.photo(photo, "{} x {}".format(*(size or image.size)), shrunk(panels[0].box, scale) if panels else None)
    for position, panel in enumerate(panels, start=1):
        sheet.map(position, panel.over(photo, shrunk(panel.box, scale)), panel)
    return sheet.canvas


def at_panel_size(
    photo: Image.Image, smallest: int = SMALLEST_PANEL, largest: int = LARGEST_PANEL
) -> tuple[Image.Image, float]:
    """The photo as a figure shows it, its longer side within the bounds, and pixels shown per pixel of the photo."""
    longer = max(photo.size)
    if longer > largest:
        scale = largest / longer
        size = (max(1, round(photo.width * scale)), max(1, round(photo.height * scale)))
        return photo.resize(size, Image.Resampling.LANCZOS), scale
    factor = math.ceil(smallest / longer)
    return photo.resize((photo.width * factor, photo.height * factor), Image.Resampling.NEAREST), float(factor)


def shrunk(box: CropBox, scale: float) -> CropBox:
    """The box in pixels shown."""
    return CropBox(box.left * scale, box.top * scale, box.right * scale, box.bottom * scale)


def _places(*groups: int) -> list[tuple[int, int]]:
    """Row and column of each tile of groups of so many: one row, a square for a long one, or rows for each group."""
    tiles = sum(groups)
    if tiles <= 4 or len(groups) == 1:
        columns = tiles if tiles <= 4 else math.ceil(math.sqrt(tiles))
        return [divmod(tile, columns) for tile in range(tiles)]
    columns = min(WIDEST, max(groups))
    first_rows = accumulate((math.ceil(group / columns) for group in groups), initial=0)
    return [
        (row + tile // columns, tile % columns)
        for row, group in zip(first_rows, groups, strict=False)
        for tile in range(group)
    ]


class _Sheet(Generic[AnyCanvas]):
    """A white sheet with a header, a grid of tiles and a foot.

    Every space is a multiple of `em`, the size of its text: a sixtieth of the width of a row of photos, which is some
    ten pixels where the figure is shown in 800.
    """

    def __init__(
        self,
        panel_size: tuple[int, int],
        places: Sequence[tuple[int, int]],
        title: str,
        notes: Sequence[str],
        canvas: Callable[[int, int, Colour], AnyCanvas],
    ) -> None:
        self.width, self.height = panel_size
        self.places = places
        rows, columns = (1 + max(place) for place in zip(*places, strict=True))
        self.em = max(SMALLEST_TEXT, round(self.width * columns / 60))
        self.small, self.heading = round(0.85 * self.em), round(1.5 * self.em)
        self.margin = 2 * self.em
        self.tile_width, self.tile_height = self.width + 6 * self.em, self.height + 4 * self.em
        width = 2 * self.margin + columns * self.tile_width - self.em  # the last column needs no gap
        first, *rest = title.split("\n")
        room = width - 2 * self.margin
        head = wrapped(first, self.heading, room)
        body = [line for text in rest for line in wrapped(text, self.em, room)]
        foot = [line for text in notes for line in wrapped(text, self.small, room)]
        self.top = self.margin + round(2.2 * self.em) * len(head) + round(1.5 * self.em) * len(body) + self.em
        bottom = self.top + rows * self.tile_height
        height = bottom + round(1.3 * self.em) * len(foot) + self.em
        self.canvas = canvas(width, height, _PAPER)
        self._lines(head, self.margin + round(1.4 * self.em), round(2.2 * self.em), self.heading, _INK)
        y = self.margin + round(2.2 * self.em) * len(head) + self.em
        self._lines(body, y, round(1.5 * self.em), self.em, _INK)
        self._lines(foot, bottom + self.em // 2, round(1.3 * self.em), self.small, _FAINT)

    def _lines(self, lines: Sequence[str], y: int, step: int, size: int, colour: Colour) -> None:
        for index, line in enumerate(lines):
            self.canvas.text(self.margin, y + index * step, line, size, colour)

    def photo(self, photo: Image.Image, note: str, box: CropBox | None) -> None:
        """The first tile: the photo itself; a box that is only a part of it is outlined."""
        if box is None or covers(box, photo.size):
            self._tile(0, "photo", note, photo)
            return
        left, top = self._tile(0, "photo", f"{note}, the model's view outlined", photo)
        corners = (left + box.left, top + box.top, left + box.right, top + box.bottom)
        line = max(1, self.em // 12)
        self.canvas.outline(corners, 2 * line, _INK)
        self.canvas.outline(corners, line, _PAPER)

    def map(self, position: int, picture: Image.Image, panel: Panel) -> None:
        """One map's tile: title, note, the picture and a colour bar; or its remark."""
        left, top = self._tile(position, panel.title, panel.note, picture, panel.ending)
        if panel.remark:
            self._remark(left, top, panel.remark)
            return
        low, high = panel.ends
        x = left + self.width + self.em // 2
        self.canvas.picture(x, top, _colour_bar(self.em * 3 // 4, self.height))
        x += round(1.1 * self.em)
        self.canvas.text(x, top + round(0.72 * self.small), high, self.small, _INK)
        self.canvas.text(x, top + self.height, low, self.small, _INK)

    def _remark(self, left: int, top: int, text: str) -> None:
        """A line in the middle of a picture, on paper."""
        text = fitted(text, self.small, self.width - self.em)
        x, y, half = left + self.width / 2, top + self.height / 2, (text_width(text, self.small) + self.em) / 2
        self.canvas.fill((x - half, y - 0.9 * self.em, x + half, y + 0.7 * self.em), _PAPER)
        self.canvas.text(x, y + 0.2 * self.em, text, self.small, _INK, "middle")

    def _tile(self, position: int, title: str, note: str, picture: Image.Image, ending: str = "") -> tuple[int, int]:
        """Draw caption and picture; returns the picture's left and top."""
        row, column = self.places[position]
        left, top = self.margin + column * self.tile_width, self.top + row * self.tile_height
        room = self.tile_width - self.em
        self.canvas.text(left, top + self.em, fitted(title, self.em, room, ending), self.em, _INK)
        self.canvas.text(left, top + round(2.15 * self.em), fitted(note, self.small, room), self.small, _FAINT)
        top += round(2.6 * self.em)
        self.canvas.picture(left, top, picture)
        return left, top


def covers(box: CropBox, size: tuple[int, int]) -> bool:
    """Whether the box is the whole picture (width, height), but for less than half a pixel."""
    return max(box.left, box.top, size[0] - box.right, size[1] - box.bottom) < 0.5


def _colour_bar(width: int, height: int) -> Image.Image:
    """Jet from red (top) to blue."""
    levels = np.linspace(255, 0, height).astype(np.uint8)
    return Image.fromarray(np.repeat(JET[levels][:, None], width, axis=1))  # (height, width, 3)


def numbers(low: float, high: float) -> tuple[str, str]:
    """Both with as many decimals as tell a hundredth of their distance."""
    decimals = min(6, max(0, 1 - math.floor(math.log10(high - low)))) if high > low else 3
    return f"{low:.{decimals}f}", f"{high:.{decimals}f}"
