"""The input of a scoring job, written down once on local disk, so that any part of it can be had without the rest.

Owns the file's form and the digest; knows nothing of where items come from.

The file: one JSON array a line for each item.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attnserve.scoring.items import Cell, Item, Place, Span

STRIDE = 256  # lines read at most to find one
_ENCODER = json.JSONEncoder(separators=(",", ":"))  # which json.dumps would make anew for each line


@dataclass(frozen=True)
class Listing:
    """The items of an input, by index; holds 8 bytes for each `STRIDE` of them in memory. May be pickled.

    Attributes:
        count: How many items there are.
        digest: SHA-256 in hex of one line for each item, in order: a JSON array of its id, its uri and the numbers (and
            column) of its place. Of a uri it takes what follows `Item.mount`: where a local folder is mounted makes no
            difference, nor from which folder a relative path started; what is named in full is taken in full. A
            picture's content makes none either.
    """

    path: Path
    count: int
    digest: str
    starts: tuple[int, ...]

    @classmethod
    def write(cls, items: Iterable[Item], path: Path) -> Listing:
        """The listing of the items, whose indices must count from 0; `path` is whole or not there.

        Raises:
            ValueError: An index is out of order.
            OSError: The disk will not have it.
        """
        part = path.with_name(f"{path.name}.{os.getpid()}.part")
        try:
            with part.open("wb") as file:
                digest, starts, count, end = hashlib.sha256(), [], 0, 0
                for count, item in enumerate(items, start=1):
                    if item.index != count - 1:
                        raise ValueError(f"item {item.index} comes as number {count - 1}")
                    place = _place_out(item.place)
                    digest.update(_line([item.id, item.uri[item.mount :], *place]))
                    if (count - 1) % STRIDE == 0:
                        starts.append(end)
                    end += file.write(_line([item.id, item.uri, _file_out(item), item.mount, *place]))
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
        return cls(path, count, digest.hexdigest(), tuple(starts))

    def items(self, start: int, stop: int) -> Iterator[Item]:
        """The items from index `start` to before `stop`, in order.

        Raises:
            IndexError: The listing does not reach so far.
        """
        if not 0 <= start <= stop <= self.count:
            raise IndexError(f"items {start} to {stop} of {self.count}")
        return self._items(start, stop)

    def _items(self, start: int, stop: int) -> Iterator[Item]:
        if start == stop:
            return
        with self.path.open("rb") as file:
            file.seek(self.starts[start // STRIDE])
            lines = itertools.islice(file, start % STRIDE, start % STRIDE + stop - start)
            for index, line in enumerate(lines, start):
                yield _item(index, json.loads(line))


def _line(value: object) -> bytes:
    """ASCII, so that a name that is not UTF-8 survives."""
    return _ENCODER.encode(value).encode() + b"\n"


def _file_out(item: Item) -> str | None:
    return None if item.file == item.uri else item.file


def _place_out(place: Place) -> tuple[int | str, ...]:
    match place:
        case Span(offset, size):
            return offset, size
        case Cell(group, row, column):
            return group, row, column
        case _:
            return ()


def _item(index: int, fields: list[Any]) -> Item:
    an_id, uri, file, mount, *numbers = fields
    place = Cell(*numbers) if len(numbers) == 3 else Span(*numbers) if numbers else None
    return Item(index, an_id, uri, uri if file is None else file, place, mount)
