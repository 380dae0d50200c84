"""Which font draws a line, with fonts made here."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import pytest
from PIL import Image, ImageFont

from attnserve import canvas
from attnserve.canvas import Raster, Vector, fitted, text_width
from attnserve.fonts import Fonts, fonts, has_letter

OWN = "Aa ?"


class Letters(ImageFont.FreeTypeFont):
    """Draws the letters it has as bars of so many pixels, anything else as a box of three by three."""

    def __init__(self, letters: str, advance: int) -> None:
        self.letters, self.advance = letters, advance

    def getmask(self, text: str, *_: object, **__: object) -> Image.core.ImagingCore:
        size = (self.advance, 1) if set(text) <= set(self.letters) else (3, 3)
        return Image.new("L", size, 255).im

    def getlength(self, text: str, *_: object, **__: object) -> float:
        return float(self.advance * len(text))


def missing(size: int) -> ImageFont.FreeTypeFont:
    raise OSError(f"cannot open resource of {size} pixels")


def made(*others: tuple[str, int]) -> Fonts:
    fonts: Sequence[Letters] = [Letters(OWN + "\xb7", 10), *(Letters(*other) for other in others)]
    own, *rest = ((lambda _, font=font: font) for font in fonts)
    return Fonts(own, [missing, *rest])


def test_the_own_font_draws_all_that_it_can() -> None:
    assert made((OWN + "\xe9\xb7", 20)).line("a \xb7 A", 14).width == 50


def test_the_first_font_with_every_letter_draws_the_whole_line() -> None:
    chosen = made((OWN + "\xe9", 20), (OWN + "\xe9\u732b", 30), (OWN + "\xe9\u732b", 40)).line("a \xe9\u732b", 14)
    assert (chosen.text, chosen.width, chosen.missing) == ("a \xe9\u732b", 120, "")


def test_letters_that_no_font_has_are_question_marks_and_the_rest_is_kept() -> None:
    chosen = made((OWN + "\xe9", 20)).line("a\u732b\xe9\u732b", 14)
    assert (chosen.text, chosen.width, chosen.missing) == ("a?\xe9?", 80, "\u732b")


def test_lost_letters_are_said_once_and_only_where_they_are_drawn(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    alone = Fonts(ImageFont.load_default, [missing])
    monkeypatch.setattr(canvas, "fonts", lambda: alone)
    with caplog.at_level(logging.WARNING):
        document = Vector(100, 50, (255, 255, 255))
        document.text(0, 20, "\u732b", 14, (0, 0, 0))
        assert text_width("\u732b", 14) == text_width("?", 14)
        assert ("\u732b" in document.document, caplog.messages) == (True, [])
        for _ in range(2):
            Raster(100, 50, (255, 255, 255)).text(0, 20, "\u732b", 14, (0, 0, 0))
    assert caplog.messages == ["no font that was found has \u732b: drawn as ?; --format svg keeps all text"]


def test_a_cut_title_is_measured_with_its_ending_in_one_font(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ending alone is ASCII and narrow; behind a letter of another font it is wide."""
    both = made((OWN + "\xe9.", 20))
    monkeypatch.setattr(canvas, "fonts", lambda: both)
    assert fitted("\xe9AAAAAAA", 14, 180, "aa") == "\xe9AAA...aa"


@pytest.mark.parametrize("text", ["Stra\xdfe", "\u043a\u043e\u0442", "\u732b"])
def test_a_font_of_this_system_draws_what_pillow_s_own_does_not(text: str) -> None:
    line = fonts().line(text, 20)
    if line.missing:
        pytest.skip(f"no font that was found here has {line.missing}")
    raster = Raster(200, 40, (255, 255, 255))
    raster.text(5, 30, text, 20, (0, 0, 0))
    columns = np.flatnonzero((np.asarray(raster.image) < 128).any(axis=(0, 2)))
    assert columns[0] >= 4
    assert columns[-1] <= 5 + text_width(text, 20) + 1
    assert not has_letter(ImageFont.load_default(20), max(text))
