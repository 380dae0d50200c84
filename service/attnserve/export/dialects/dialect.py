"""What is known about one source of checkpoints, as data: its names, the choices its files do not show, its pictures.

Owns the form of a row of the table and the renaming of keys; knows nothing of any particular source, nor of weights.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from attnserve.card import Preprocessing

Shapes = Mapping[str, tuple[int, ...]]
"""Key of a tensor -> its shape, in the order of the file."""

UNSEEN = {
    "plain": (),
    "cbam": ("spatial_order", "pooling", "residual"),
    "lcbam": ("residual",),
    "bam": ("combine", "dilation"),
    "vit": ("heads",),
}
"""Kind of network -> the fields of `architecture`'s nouns that change its output, but no key and no shape."""


def flag(name: str) -> str:
    """The option of `attnserve export` that sets a field."""
    return f"--{name.replace('_', '-')}"


@dataclass(frozen=True)
class Rename:
    """One row: keys that match all of `pattern` become `ours`, where `{2}` is a group and `{2-1}` a number one less."""

    pattern: str
    ours: str

    def apply(self, key: str) -> str | None:
        """Our name of the key, or None where the row does not speak of it."""
        match = re.fullmatch(self.pattern, key)
        if match is None:
            return None

        def fill(place: re.Match[str]) -> str:
            text = match.group(int(place.group(1)))
            return str(int(text) - 1) if place.group(2) else text

        return re.sub(r"\{(\d)(-1)?\}", fill, self.ours)


@dataclass(frozen=True)
class Dialect:
    """One source.

    Attributes:
        name: What `--dialect` takes.
        source: Whose code it is, for people.
        kinds: What it writes, in the words of `UNSEEN`.
        renames: Tried in this order; a key that none matches is not of this dialect.
        facts: Fields of `UNSEEN` as this source computes them, or a function that tells one from the transformer. One
            that is missing here, or told as None, must be asked for.
        views: How its pictures are prepared, by stem (`imagenet`, `small`, `patches`); a convention, never part of the
            file.
        guess: Renames keys by their shapes before `renames`; None where names alone decide.
    """

    name: str
    source: str
    kinds: tuple[str, ...]
    renames: tuple[Rename, ...]
    views: Mapping[str, Preprocessing]
    facts: Mapping[str, object] = field(default_factory=dict)
    guess: Callable[[Shapes], dict[str, str]] | None = None

    def rename(self, shapes: Shapes) -> dict[str, str]:
        """Key -> our key, for the keys that this dialect knows."""
        guessed = self.guess(shapes) if self.guess else {}
        known: dict[str, str] = {}
        for key in shapes:
            names = (rename.apply(guessed.get(key, key)) for rename in self.renames)
            if ours := next((name for name in names if name), None):
                known[key] = ours
        return known
