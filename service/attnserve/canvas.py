"""Two surfaces for one drawing: pixels, and SVG whose text stays text and whose pictures are embedded PNG files.

Owns escaping and file forms; knows nothing of maps. Both measure text by the fonts of `attnserve.fonts`, so that a
drawing has one layout.
"""

from __future__ import annotations

import base64
import io
from html import escape
from typing import Literal, Protocol, TypeAlias

from PIL import Image, ImageDraw

from attnserve.fonts import fonts

Anchor: TypeAlias = Literal["left", "middle", "right"]
Colour: TypeAlias = tuple[int, int, int]
Corners: TypeAlias = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels."""

FONTS = "Helvetica, Arial, 'Liberation Sans', sans-serif"
"""Of SVG text: about as wide as the font that it was measured by, and on every machine."""

_ELLIPSIS = "..."
_PILLOW: dict[Anchor, str] = {"left": "ls", "middle": "ms", "right": "rs"}
_SVG: dict[Anchor, str] = {"left": "start", "middle": "middle", "right": "end"}


class Canvas(Protocol):
    """A surface of fixed size in pixels, filled with one colour."""

    def text(self, x: float, y: float, text: str, size: int, colour: Colour, anchor: Anchor = "left") -> None:
        """One line of `size` pixels, its baseline at `y`."""

    def picture(self, left: int, top: int, picture: Image.Image) -> None:
        """An RGB picture at its own size."""

    def outline(self, corners: Corners, width: int, colour: Colour) -> None:
        """A rectangle's line, inside its corners."""

    def fill(self, corners: Corners, colour: Colour) -> None:
        """A rectangle."""


class Raster:
    """Draws pixels: `image`, RGB."""

    def __init__(self, width: int, height: int, paper: Colour) -> None:
        self.image = Image.new("RGB", (width, height), paper)
        self._draw = ImageDraw.Draw(self.image)

    def text(self, x: float, y: float, text: str, size: int, colour: Colour, anchor: Anchor = "left") -> None:
        """As `Canvas` says; the same goes for the others."""
        line = fonts().drawn(printable(text), size)
        self._draw.text((x, y), line.text, colour, line.font, anchor=_PILLOW[anchor])

    def picture(self, left: int, top: int, picture: Image.Image) -> None:  # noqa: D102
        self.image.paste(picture, (left, top))

    def outline(self, corners: Corners, width: int, colour: Colour) -> None:  # noqa: D102
        left, top, right, bottom = corners
        self._draw.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), outline=colour, width=width)

    def fill(self, corners: Corners, colour: Colour) -> None:  # noqa: D102
        left, top, right, bottom = corners
        self._draw.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), fill=colour)


class Vector:
    """Draws SVG: `document`, well-formed XML without any reference to the outside."""

    def __init__(self, width: int, height: int, paper: Colour) -> None:
        self._head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}"'
            f' viewBox="0 0 {width} {height}" font-family="{FONTS}">'
        )
        self._parts: list[str] = []
        self.fill((0, 0, width, height), paper)

    @property
    def document(self) -> str:
        """All that was drawn so far."""
        return "\n".join((self._head, *self._parts, "</svg>", ""))

    def text(self, x: float, y: float, text: str, size: int, colour: Colour, anchor: Anchor = "left") -> None:
        """As `Canvas` says; the same goes for the others."""
        place = f'x="{x:g}" y="{y:g}" font-size="{size}" fill="{_hexadecimal(colour)}"'
        self._parts.append(
            f'<text {place} text-anchor="{_SVG[anchor]}" xml:space="preserve">{escape(printable(text))}</text>'
        )

    def picture(self, left: int, top: int, picture: Image.Image) -> None:  # noqa: D102
        self._parts.append(
            f'<image x="{left}" y="{top}" width="{picture.width}" height="{picture.height}"'
            f' href="{data_uri(picture, "PNG")}"/>'
        )

    def outline(self, corners: Corners, width: int, colour: Colour) -> None:  # noqa: D102
        left, top, right, bottom = corners
        inner = (left + width / 2, top + width / 2, right - width / 2, bottom - width / 2)
        self._parts.append(f'<rect {_box(inner)} fill="none" stroke="{_hexadecimal(colour)}" stroke-width="{width}"/>')

    def fill(self, corners: Corners, colour: Colour) -> None:  # noqa: D102
        self._parts.append(f'<rect {_box(corners)} fill="{_hexadecimal(colour)}"/>')


def _box(corners: Corners) -> str:
    left, top, right, bottom = corners
    return f'x="{left:g}" y="{top:g}" width="{max(0, right - left):g}" height="{max(0, bottom - top):g}"'


def _hexadecimal(colour: Colour) -> str:
    return f"#{bytes(colour).hex()}"


def data_uri(picture: Image.Image, form: Literal["PNG", "WEBP"]) -> str:
    """The picture within a document: exact (PNG), or small and good to look at (WEBP)."""
    file = io.BytesIO()
    picture.save(file, form, **({"quality": 82} if form == "WEBP" else {}))
    return f"data:image/{form.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


def printable(text: str) -> str:
    """The text without what a terminal, an XML parser or a reader might obey: controls, surrogates, directions."""
    return "".join(each if each.isprintable() else "?" for each in text)


def text_width(text: str, size: int) -> float:
    """Pixels of one line."""
    return fonts().line(printable(text), size).width


def fitted(text: str, size: int, room: float, ending: str = "") -> str:
    """The text and its ending, or as much of the text as `room` pixels take, with dots for the rest."""
    if text_width(text + ending, size) <= room:
        return text + ending
    while text and text_width(text + _ELLIPSIS + ending, size) > room:
        text = text[:-1]
    return text.rstrip() + _ELLIPSIS + ending


def wrapped(text: str, size: int, room: float) -> list[str]:
    """Lines of at most `room` pixels, broken between words, and within those that are longer, as paths are."""
    lines: list[str] = []
    for word in text.split(" "):
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and text_width(longer, size) <= room:
            lines[-1] = longer
        else:
            lines += _pieces(word, size, room)
    return lines


def _pieces(word: str, size: int, room: float) -> list[str]:
    pieces = [""]
    for letter in word:
        if pieces[-1] and text_width(pieces[-1] + letter, size) > room:
            pieces.append("")
        pieces[-1] += letter
    return pieces
