"""The input written down: random access, the digest, memory."""

from __future__ import annotations

import contextlib
import os
import pickle
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attnserve.scoring.inputs import listed
from attnserve.scoring.items import Cell, Item, Span
from attnserve.scoring.listing import STRIDE, Listing

NUMBERS = st.integers(0, 2**40)
PLACES = st.none() | st.builds(Span, NUMBERS, NUMBERS) | st.builds(Cell, NUMBERS, NUMBERS, st.text())
NAMES = st.text(st.characters(exclude_categories=["Cs"]))
FILES = st.binary().map(os.fsdecode)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(NAMES, NAMES, FILES, PLACES, st.integers(0, 9)), max_size=20), st.data())
def test_any_part_of_a_listing_is_that_part_of_the_items(entries: list[tuple], data: st.DataObject) -> None:
    repeats = data.draw(st.sampled_from([1, 40]))  # past the stride
    items = [Item(index, *entry) for index, entry in enumerate(entries * repeats)]
    with TemporaryDirectory() as folder:
        written = Listing.write(items, Path(folder) / "listing")
        listing = data.draw(st.sampled_from([written, pickle.loads(pickle.dumps(written))]))
        assert listing == written
        assert listing.count == len(items)
        start = data.draw(st.integers(0, len(items)))
        stop = data.draw(st.integers(start, len(items)))
        assert list(listing.items(start, stop)) == items[start:stop]


def items_of(count: int) -> Iterator[Item]:
    return (Item(i, f"{i:09}.jpg", f"/data/{i:09}.jpg", f"/data/{i:09}.jpg", None, 6) for i in range(count))


def test_a_listing_reaches_no_further_than_its_items(tmp_path: Path) -> None:
    listing = Listing.write(items_of(STRIDE + 1), tmp_path / "listing")
    assert [item.index for item in listing.items(STRIDE - 1, STRIDE + 1)] == [STRIDE - 1, STRIDE]
    for start, stop in ((0, STRIDE + 2), (-1, 1), (2, 1)):
        with pytest.raises(IndexError, match=f"items {start} to {stop} of {STRIDE + 1}"):
            listing.items(start, stop)


def test_items_out_of_order_leave_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="item 5 comes as number 1"):
        Listing.write([*items_of(1), *list(items_of(6))[5:]], tmp_path / "listing")
    assert list(tmp_path.iterdir()) == []


def write_input(folder: Path) -> None:
    for name in ("cats/1.jpg", "ß.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    (folder / "m.csv").write_text("uri,id\ncats/1.jpg,one\n/else/2.jpg,two\n")


@pytest.mark.parametrize("spec", ["", "m.csv", "**/*.jpg", "cats/1.jpg"])
def test_the_digest_does_not_know_where_a_folder_is_mounted(tmp_path: Path, spec: str) -> None:
    digests = set()
    for mount in ("a", "other/b/ü"):
        write_input(tmp_path / mount)
        digests.add(Listing.write(listed(f"{tmp_path}/{mount}/{spec}"), tmp_path / "listing").digest)
    assert len(digests) == 1


def test_the_digest_is_the_one_that_the_docstring_describes(tmp_path: Path) -> None:
    items = [
        Item(0, "ß", "/m/ß.jpg", "/m/ß.jpg", None, 3),
        Item(1, "b", "s3://x#b.jpg", "s3://x", Span(512, 3)),
        Item(2, "c", "s3://y#0", "s3://y", Cell(0, 1, "image")),
    ]
    # printf '["\\u00df","\\u00df.jpg"]\n["b","s3://x#b.jpg",512,3]\n["c","s3://y#0",0,1,"image"]\n' | sha256sum
    expected = "d35976a5c4169e020beb3e2f31e241e975bd32c7117c54615044849070d1e096"
    assert Listing.write(items, tmp_path / "listing").digest == expected


def test_the_digest_changes_with_anything_but_the_mount(tmp_path: Path) -> None:
    def digest(items: list[Item]) -> str:
        return Listing.write((replace(item, index=i) for i, item in enumerate(items)), tmp_path / "listing").digest

    first, second = Item(0, "a", "/m/a#x", "/m/a", Span(512, 3), 3), Item(1, "b", "/m/b", "/m/b", None, 3)
    whole = digest([first, second])
    changed = [
        [second, first],
        [first],
        [first, second, second],
        [replace(first, id="A"), second],
        [replace(first, uri="/m/A#x"), second],
        [replace(first, place=Span(513, 3)), second],
        [replace(first, place=Span(512, 4)), second],
        [replace(first, place=Cell(512, 3, "image")), second],
        [replace(first, place=None), second],
        [replace(first, mount=0), second],
    ]
    assert len({whole, *map(digest, changed)}) == len(changed) + 1
    assert digest([replace(first, uri="/elsewhere/a#x", file="/elsewhere/a", mount=11), second]) == whole


@contextlib.contextmanager
def most_bytes() -> Iterator[Callable[[], int]]:
    """How many bytes the block held at most so far."""
    tracemalloc.start()
    try:
        yield lambda: tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_does_not_grow_with_the_number_of_items(tmp_path: Path) -> None:
    held = []
    for count in (2_000, 20_000):
        with most_bytes() as most:
            listing = Listing.write(items_of(count), tmp_path / "listing")
            for _ in listing.items(count - 1000, count):
                pass
            held.append(most())
    assert held[1] < held[0] + 10_000  # half a byte an item: a number for each 256 of them


def test_a_listing_of_a_manifest_does_not_hold_it_in_memory(tmp_path: Path) -> None:
    with (tmp_path / "m.csv").open("w") as file:
        file.write("uri\n")
        file.writelines(f"{number:09}.jpg\n" for number in range(10_000))
    with most_bytes() as most:
        assert Listing.write(listed(str(tmp_path / "m.csv")), tmp_path / "listing").count == 10_000
        assert most() < 1_000_000
