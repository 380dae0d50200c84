"""Which font draws a line of text: Pillow's own, and for letters that it lacks one of the system's.

Owns the names of the fonts that are tried; knows no surface and no layout.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import TypeAlias

from PIL import ImageFont

Font: TypeAlias = ImageFont.FreeTypeFont | ImageFont.ImageFont

SYSTEM_FONTS = (
    "DejaVuSans.ttf",
    "NotoSans-Regular.ttf",
    "LiberationSans-Regular.ttf",
    "Arial.ttf",
    "arial.ttf",
    "NotoSansCJK-Regular.ttc",
    "NotoSansCJKjp-Regular.otf",
    "wqy-microhei.ttc",
    "Arial Unicode.ttf",
    "PingFang.ttc",
    "msyh.ttc",
    "malgun.ttf",
    "NotoSansArabic-Regular.ttf",
    "NotoSansHebrew-Regular.ttf",
    "NotoSansDevanagari-Regular.ttf",
    "NotoSansThai-Regular.ttf",
)
"""Of Linux, macOS and Windows, those of many scripts first; found by name where the system keeps its fonts."""

_NO_LETTER = "\U0010fffe"  # a noncharacter, which no font has
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Line:
    """Text as it is drawn, with `?` for each of `missing`, the letters that no font has, and the font that draws it."""

    text: str
    font: Font
    missing: str = ""

    @property
    def width(self) -> float:
        """In pixels."""
        return self.font.getlength(self.text)


class Fonts:
    """Chooses, for each line of text, the first font that has all its letters, else the one that lacks fewest.

    Args:
        own: Makes the font of so many pixels that draws whatever it can, so that figures look alike everywhere.
        others: The same of fonts for the rest; each raises `OSError` where the system does not have it.
    """

    def __init__(self, own: Callable[[int], Font], others: Sequence[Callable[[int], Font]]) -> None:
        self._own = cache(own)
        self._others = others
        self._all = cache(self._found)
        self._warned = False

    def line(self, text: str, size: int) -> Line:
        """The text in `size` pixels."""
        if text.isascii():
            return Line(text, self._own(size))
        fonts = self._all(size)
        lacks = [{letter for letter in text if not has_letter(font, letter)} for font in fonts]
        best = min(range(len(fonts)), key=lambda index: len(lacks[index]))  # the first of equals
        shown = "".join("?" if letter in lacks[best] else letter for letter in text)
        return Line(shown, fonts[best], "".join(sorted(lacks[best])))

    def drawn(self, text: str, size: int) -> Line:
        """The same; the first time that letters are lost, it is logged."""
        line = self.line(text, size)
        if line.missing and not self._warned:
            self._warned = True
            _log.warning("no font that was found has %s: drawn as ?; --format svg keeps all text", line.missing)
        return line

    def _found(self, size: int) -> list[Font]:
        made = [self._own(size)]
        for make in self._others:
            try:
                made.append(make(size))
            except OSError:
                continue
        return made


@lru_cache(4096)
def has_letter(font: Font, letter: str) -> bool:
    """Whether the font draws the letter, and not the box that stands for any it lacks."""
    if letter == " ":
        return True
    try:
        drawn = font.getmask(letter)
    except UnicodeError:  # Pillow's bitmap font, where it was built without FreeType, is Latin-1
        return False
    if isinstance(font, ImageFont.ImageFont):
        return True
    lacking = font.getmask(_NO_LETTER)
    return (drawn.size, bytes(drawn)) != (lacking.size, bytes(lacking))


@cache
def fonts() -> Fonts:
    """Those of this machine."""
    return Fonts(ImageFont.load_default, [_by_name(name) for name in SYSTEM_FONTS])


def _by_name(name: str) -> Callable[[int], Font]:
    return lambda size: ImageFont.truetype(name, size)
