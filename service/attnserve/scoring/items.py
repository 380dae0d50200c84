"""One picture of a scoring job's input: its name, and where its bytes lie.

Owns the nouns that the listing, the readers and the job share; opens nothing.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


class InputGone(Exception):
    """The folder of the input is not there: it was unmounted or moved, and none of its pictures is to blame."""


class Unreadable(Exception):
    """This one picture's bytes cannot be had; the message says why, and is valid UTF-8."""


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of a tar file."""

    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class Cell:
    """A value of a Parquet file: its row group, its row within that group, and its column."""

    group: int
    row: int
    column: str


Place = Span | Cell | None
"""Where in its file a picture lies; None: it is the whole file."""

Found = tuple[str, str, str, Place, int]
"""An `Item` that has no index yet: `id`, `uri`, `file`, `place`, `mount`."""


@dataclass(frozen=True, slots=True)
class Item:
    """One picture of the input.

    Attributes:
        index: Position in the input, from 0.
        id: The manifest's `id`, or else the path or URI as a person would name it: as written in a list, relative to
            the folder, a tar member's name without its suffix, `file.parquet#row`. Need not be unique. Valid UTF-8.
        uri: Absolute path or URL of the picture, or of its container, `#` and the member or row. Valid UTF-8: bytes
            of a file name that are not UTF-8 are written `\\xe9`.
        file: What to open: a URL, or an absolute path as `os.fsdecode` gives it.
        place: Where in `file` the picture lies.
        mount: So many characters at the start of `uri` say where on this machine the input lies; 0 where it is named
            in full or is no local file.
    """

    index: int
    id: str
    uri: str
    file: str
    place: Place = None
    mount: int = 0


def check_there(item: Item) -> None:
    """Raise `InputGone` where the item's input is a local folder that is not there."""
    folder = item.uri[: item.mount]
    if folder and "\\" not in folder and not os.path.isdir(folder):  # one with a backslash may be named otherwise
        raise InputGone(f"{folder.rstrip('/')} is not there any more")


def printable(text: str) -> str:
    """The text as valid UTF-8, with `\\xe9` for each byte that `os.fsdecode` could not decode.

    Raises:
        UnicodeEncodeError: It holds half a character that stands for no byte either.
    """
    if text.isascii():
        return text
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def is_picture(name: str) -> bool:
    """Whether the file's name has a picture's suffix."""
    return name.lower().endswith(PICTURE_SUFFIXES)
