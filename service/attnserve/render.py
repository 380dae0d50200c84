"""Pictures of attention maps: a map laid over the photo it belongs to, and one figure of all maps of a photo.

Pillow and numpy only; knows nothing of servers, models or files.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from attnserve.heat import JET, blended, coloured, normalise, sampled
from attnserve.preprocess import CropBox

SMALLEST_PANEL = 256
"""Pixels of a panel's longer side below which a photo is enlarged: smaller, and no text fits beside it."""

LARGEST_PANEL = 1024
"""Pixels of a panel's longer side above which a photo is reduced: sixteen panels of a camera's picture fill memory."""

_INK, _FAINT, _PAPER = (28, 28, 32), (112, 112, 120), (255, 255, 255)


@dataclass(frozen=True)
class Panel:
    """One map of a figure.

    Attributes:
        title: What it shows, e.g. the name of the attention site.
        values: (h, w) float32 at feature resolution.
        box: The part of the photo, in its pixels, that the map covers.
    """

    title: str
    values: NDArray[np.float32]
    box: CropBox


def overlay(image: Image.Image, values: NDArray[np.float32], box: CropBox, alpha: float = 0.5) -> Image.Image:
    """The photo with the normalised map over `box` in jet colours: RGB of the photo's own size.

    Pixels whose centre lies outside the box keep their value. `alpha` is the weight of the map, 0..1.
    """
    photo = np.array(image.convert("RGB"))  # (H, W, 3) uint8
    rows, columns = _within(box.top, box.bottom, image.height), _within(box.left, box.right, image.width)
    heat = coloured(sampled(normalise(values), rows, columns, box), "jet")  # (rows, columns, 3)
    inside = np.ix_(rows, columns)
    photo[inside] = blended(photo[inside], heat, alpha)
    return Image.fromarray(photo)


def _within(start: float, stop: float, size: int) -> NDArray[np.intp]:
    """Indices of the pixels of 0..size whose centre lies in [start, stop)."""
    return np.arange(max(0, math.ceil(start - 0.5)), min(size, math.ceil(stop - 0.5)))


def figure(image: Image.Image, title: str, panels: Sequence[Panel]) -> Image.Image:
    """One RGB picture on white: the photo and, for each panel, its map over the photo with a colour bar.

    The first line of `title` is the heading, the others stand below it; long lines wrap. Photos are shown at their own
    size, tiny ones enlarged by a whole factor (pixels stay pixels), those above `LARGEST_PANEL` reduced. Where the
    first panel's box is only a part of the photo, it is outlined there.
    """
    photo, scale = _at_panel_size(image.convert("RGB"))
    sheet = _Sheet(photo.size, 1 + len(panels), title)
    sheet.photo(photo, f"{image.width} x {image.height}", _scaled(panels[0].box, scale) if panels else None)
    for position, panel in enumerate(panels, start=1):
        sheet.map(position, overlay(photo, panel.values, _scaled(panel.box, scale)), panel)
    return sheet.canvas


def _at_panel_size(photo: Image.Image) -> tuple[Image.Image, float]:
    """The photo as the figure shows it, and pixels shown per pixel of the photo."""
    longer = max(photo.size)
    if longer > LARGEST_PANEL:
        scale = LARGEST_PANEL / longer
        size = (max(1, round(photo.width * scale)), max(1, round(photo.height * scale)))
        return photo.resize(size, Image.Resampling.LANCZOS), scale
    factor = math.ceil(SMALLEST_PANEL / longer)
    return photo.resize((photo.width * factor, photo.height * factor), Image.Resampling.NEAREST), float(factor)


def _scaled(box: CropBox, scale: float) -> CropBox:
    return CropBox(box.left * scale, box.top * scale, box.right * scale, box.bottom * scale)


class _Sheet:
    """A white sheet with a header and a grid of tiles; every space is a multiple of `em`, the size of its text."""

    def __init__(self, panel_size: tuple[int, int], tiles: int, title: str) -> None:
        self.width, self.height = panel_size
        self.em = min(28, max(14, round(self.width / 20)))
        self.text = ImageFont.load_default(self.em)
        self.small = ImageFont.load_default(round(0.85 * self.em))
        self.heading = ImageFont.load_default(round(1.5 * self.em))
        self.margin = 2 * self.em
        self.tile_width, self.tile_height = self.width + 6 * self.em, self.height + 3 * self.em
        self.columns = tiles if tiles <= 4 else math.ceil(math.sqrt(tiles))
        width = 2 * self.margin + self.columns * self.tile_width - self.em  # the last column needs no gap
        first, *rest = title.split("\n")
        room = width - 2 * self.margin
        head = _wrapped(first, self.heading, room)
        body = [line for text in rest for line in _wrapped(text, self.text, room)]
        self.top = self.margin + round(2.2 * self.em) * len(head) + round(1.5 * self.em) * len(body) + self.em
        height = self.top + math.ceil(tiles / self.columns) * self.tile_height + self.em
        self.canvas = Image.new("RGB", (width, height), _PAPER)
        self.draw = ImageDraw.Draw(self.canvas)
        self._header(head, body)

    def _header(self, head: Sequence[str], body: Sequence[str]) -> None:
        y = self.margin
        for line in head:
            self.draw.text((self.margin, y), line, _INK, self.heading)
            y += round(2.2 * self.em)
        for line in body:
            self.draw.text((self.margin, y), line, _INK, self.text)
            y += round(1.5 * self.em)

    def photo(self, photo: Image.Image, note: str, box: CropBox | None) -> None:
        """The first tile: the photo itself; a box that is only a part of it is outlined."""
        if box is None or _covers(box, photo.size):
            self._tile(0, "photo", note, photo)
            return
        left, top = self._tile(0, "photo", f"{note}, the model's view outlined", photo)
        right, bottom = max(box.left, box.right - 1), max(box.top, box.bottom - 1)  # a thin photo's box may be thinner
        corners = (left + box.left, top + box.top, left + right, top + bottom)
        line = max(1, self.em // 12)
        self.draw.rectangle(corners, outline=_INK, width=2 * line)
        self.draw.rectangle(corners, outline=_PAPER, width=line)

    def map(self, position: int, picture: Image.Image, panel: Panel) -> None:
        """One map's tile: title, shape and range of values, the picture and a colour bar."""
        low, high = _numbers(float(panel.values.min()), float(panel.values.max()))
        rows, columns = panel.values.shape
        left, top = self._tile(position, panel.title, f"{rows} x {columns}, {low} to {high}", picture)
        x = left + self.width + self.em // 2
        self.canvas.paste(_colour_bar(self.em * 3 // 4, self.height), (x, top))
        x += round(1.1 * self.em)
        self.draw.text((x, top), high, _INK, self.small, anchor="lt")
        self.draw.text((x, top + self.height), low, _INK, self.small, anchor="lb")

    def _tile(self, position: int, title: str, note: str, picture: Image.Image) -> tuple[int, int]:
        """Draw caption and picture; returns the picture's left and top."""
        row, column = divmod(position, self.columns)
        left, top = self.margin + column * self.tile_width, self.top + row * self.tile_height
        base = top + self.em
        self.draw.text((left, base), title, _INK, self.text, anchor="ls")
        if self.text.getlength(title) + self.em + self.small.getlength(note) <= self.width:
            self.draw.text((left + self.width, base), note, _FAINT, self.small, anchor="rs")
        top += round(1.5 * self.em)
        self.canvas.paste(picture, (left, top))
        return left, top


def _covers(box: CropBox, size: tuple[int, int]) -> bool:
    """Whether the box is the whole picture, but for less than half a pixel."""
    return max(box.left, box.top, size[0] - box.right, size[1] - box.bottom) < 0.5


def _colour_bar(width: int, height: int) -> Image.Image:
    """Jet from red (top) to blue."""
    levels = np.linspace(255, 0, height).astype(np.uint8)
    return Image.fromarray(np.repeat(JET[levels][:, None], width, axis=1))  # (height, width, 3)


def _numbers(low: float, high: float) -> tuple[str, str]:
    """Both with as many decimals as tell a hundredth of their distance."""
    decimals = min(6, max(0, 1 - math.floor(math.log10(high - low)))) if high > low else 3
    return f"{low:.{decimals}f}", f"{high:.{decimals}f}"


def _wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, room: int) -> list[str]:
    """Lines of at most `room` pixels, broken between words; a longer word keeps a line of its own."""
    lines: list[str] = []
    for word in text.split(" "):
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= room:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines
