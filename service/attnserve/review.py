"""A folder of pictures and how right a model was about them: what a report counts, and what it shows first.

Owns the walk through the folder and the order of concern; knows no server and no page. What a sub-folder's name means
is `class_folders`'.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from attnserve.class_folders import classes_of
from attnserve.client.messages import Prediction
from attnserve.errors import ConfigError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
MOST_STRAYS = 10  # folders named


@dataclass(frozen=True)
class Item:
    """One picture of the folder.

    Attributes:
        name: Its path within the folder.
        truth: The label of the class that its sub-folders stand for; None where they stand for none.
    """

    path: Path
    name: str
    truth: str | None

    @property
    def stray(self) -> str:
        """Its sub-folder, where that is no class; else empty, as for a picture in no sub-folder."""
        return "" if self.truth is not None else self.name.rpartition("/")[0]


def items(folder: Path, labels: Sequence[str]) -> list[Item]:
    """Every picture below the folder, by its suffix, sorted.

    Raises `ConfigError` where there is none, and where a sub-folder's name may be either of two labels.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder}: not a folder")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and not path.is_dir())
    if not paths:
        raise ConfigError(f"{folder}: holds no {', '.join(SUFFIXES)} files")
    names = [path.relative_to(folder) for path in paths]
    classes = classes_of((name.parent.parts for name in names), labels)
    truths = (classes.get(name.parent.parts) for name in names)
    return [
        Item(path, name.as_posix(), None if truth is None else labels[truth])
        for path, name, truth in zip(paths, names, truths, strict=True)
    ]


@dataclass(frozen=True)
class Row:
    """What the model said of one picture.

    Attributes:
        predictions: Best first; empty where there was no answer.
        error: Why not; else empty.
    """

    item: Item
    predictions: tuple[Prediction, ...] = ()
    error: str = ""

    @property
    def right(self) -> bool | None:
        """Whether the best class is the true one; None where either is unknown."""
        if self.item.truth is None or not self.predictions:
            return None
        return self.predictions[0].label == self.item.truth


def by_concern(rows: Iterable[Row]) -> list[Row]:
    """Those answered: the wrong ones first, the surest error before the others; then the least sure first."""

    def concern(row: Row) -> tuple[bool, float]:
        probability = row.predictions[0].probability
        return (False, -probability) if row.right is False else (True, probability)

    return sorted((row for row in rows if row.predictions), key=concern)


@dataclass(frozen=True)
class Summary:
    """Counts over all rows.

    Attributes:
        confusion: (true label, predicted label) -> pictures, of those with both.
        stray: Sub-folder that is no class -> pictures.
    """

    pictures: int
    answered: int
    confusion: Counter[tuple[str, str]]
    stray: Counter[str]

    @classmethod
    def of(cls, rows: Sequence[Row]) -> Summary:
        """Count the rows."""
        answered = [row for row in rows if row.predictions]
        known = ((row.item.truth, row.predictions[0].label) for row in answered)
        confusion = Counter((truth, found) for truth, found in known if truth is not None)
        return cls(len(rows), len(answered), confusion, Counter(row.item.stray for row in rows if row.item.stray))

    @property
    def failed(self) -> int:
        """Pictures without an answer."""
        return self.pictures - self.answered

    @property
    def labelled(self) -> int:
        """Pictures with an answer whose true class is known."""
        return self.confusion.total()

    @property
    def right(self) -> int:
        """Of those, the ones that were recognised."""
        return sum(pictures for (truth, found), pictures in self.confusion.items() if truth == found)

    @property
    def strays(self) -> str:
        """For people, which pictures the folder gives no class though they lie in a sub-folder; empty for none."""
        if not self.stray:
            return ""
        names, many = sorted(self.stray), self.stray.total()
        named = ", ".join(names[:MOST_STRAYS]) + (", ..." if len(names) > MOST_STRAYS else "")
        return f"{many} picture{'s' if many > 1 else ''} in folders that are no class: {named}"

    def mistakes(self) -> list[tuple[str, str, int]]:
        """True label, predicted label and pictures of every confusion, the most frequent first."""
        wrong = [(truth, found, pictures) for (truth, found), pictures in self.confusion.items() if truth != found]
        return sorted(wrong, key=lambda mistake: (-mistake[2], mistake[:2]))

    def classes(self, labels: Sequence[str]) -> list[str]:
        """The labels that occur as truth or as answer, in the model's order."""
        occurring = {label for pair in self.confusion for label in pair}
        return [label for label in dict.fromkeys(labels) if label in occurring]
