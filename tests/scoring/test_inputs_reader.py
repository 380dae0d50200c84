"""What the reader keeps open, how it is bounded, and that it is closed."""

from __future__ import annotations

import io
import os
import tarfile
import threading
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from attnserve.scoring.inputs import Reader, listed
from attnserve.scoring.inputs_leases import Closed, Leases
from attnserve.scoring.inputs_reader import MOST_TABLES, MOST_TARS
from attnserve.scoring.items import Item, Span, Unreadable


class Door:
    """Opened; tells how often it was closed."""

    def __init__(self, key: str) -> None:
        self.key = key
        self.closed = 0

    def close(self) -> None:
        self.closed += 1


class Doors:
    def __init__(self, most: int) -> None:
        self.opened: list[Door] = []
        self.leases: Leases[str, Door] = Leases(self.open, most)

    def open(self, key: str) -> Door:
        self.opened.append(Door(key))
        return self.opened[-1]

    def use(self, *keys: str) -> None:
        for key in keys:
            with self.leases.lease(key) as door:
                assert not door.closed

    @property
    def still_open(self) -> list[str]:
        return [door.key for door in self.opened if not door.closed]


def test_what_was_used_last_stays_open() -> None:
    doors = Doors(2)
    doors.use("a", "b", "a", "c", "a")
    assert [door.key for door in doors.opened] == ["a", "b", "c"]
    assert doors.still_open == ["a", "c"]


def test_what_is_in_use_is_not_closed_for_others() -> None:
    doors = Doors(1)
    with doors.leases.lease("a") as first:
        doors.use("b", "c")
        assert not first.closed
    doors.use("b")
    assert doors.still_open == ["b"]


def test_what_failed_is_opened_anew_but_not_for_an_unreadable_item() -> None:
    doors = Doors(2)
    for failure in (Unreadable("this one"), OSError("stale")):
        with pytest.raises(type(failure)), doors.leases.lease("a"):
            raise failure
    doors.use("a")
    assert [door.closed for door in doors.opened] == [1, 0]


def test_closing_closes_each_once_also_what_is_in_use() -> None:
    doors = Doors(2)
    doors.use("a")
    with doors.leases.lease("b") as second:
        doors.leases.close()
        assert (doors.still_open, second.closed) == (["b"], 0)
    doors.leases.close()
    assert [door.closed for door in doors.opened] == [1, 1]
    with pytest.raises(Closed, match="closed reader"):
        doors.use("a")


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_a_reader_keeps_a_bounded_number_of_files_open_and_closes_them(tmp_path: Path) -> None:
    for number in range(MOST_TARS + 10):
        with tarfile.open(tmp_path / f"{number:03}.tar", "w") as archive:
            header = tarfile.TarInfo("1.jpg")
            header.size = 3
            archive.addfile(header, io.BytesIO(b"%03d" % number))
    for number in range(MOST_TABLES + 3):
        pq.write_table(pa.table({"image": [b"%03d" % number]}), tmp_path / f"{number:03}.parquet")
    items = [*listed(f"{tmp_path}/*.tar"), *listed(f"{tmp_path}/*.parquet")]
    before = open_files()
    with Reader() as reader:
        assert [int(reader.read(item)) for item in items] == [*range(MOST_TARS + 10), *range(MOST_TABLES + 3)]
        assert open_files() == before + MOST_TARS + MOST_TABLES
    assert open_files() == before
    with pytest.raises(Closed, match="closed reader"):
        reader.read(items[0])


def test_many_threads_share_a_reader(tmp_path: Path) -> None:
    data = {f"{number}.jpg": os.urandom(3000) for number in range(50)}
    for shard in range(MOST_TARS + 6):
        with tarfile.open(tmp_path / f"{shard:03}.tar", "w") as archive:
            for name, content in data.items():
                header = tarfile.TarInfo(name)
                header.size = len(content)
                archive.addfile(header, io.BytesIO(content))
    items = list(listed(f"{tmp_path}/*.tar"))
    wrong = []

    def read(some: list[Item]) -> None:
        wrong.extend(item for item in some if reader.read(item) != data[f"{item.id}.jpg"])

    with Reader() as reader:
        threads = [threading.Thread(target=read, args=(items[start::8] + items[start::64],)) for start in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


def test_a_picture_beyond_the_limit_is_unreadable_wherever_it_lies(tmp_path: Path) -> None:
    path = tmp_path / "1.jpg"
    path.write_bytes(b"x" * 11)
    pq.write_table(pa.table({"image": [b"x" * 11]}), tmp_path / "p.parquet")
    with Reader(max_bytes=10) as reader:
        for item in (*listed(str(path)), Item(0, "", "", str(path), Span(0, 11)), *listed(f"{tmp_path}/p.parquet")):
            with pytest.raises(Unreadable, match="more than 10 bytes"):
                reader.read(item)
        path.write_bytes(b"x" * 10)
        assert reader.read(*listed(str(path))) == b"x" * 10


def test_what_went_since_it_was_listed_is_unreadable(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [b"x"]}), tmp_path / "p.parquet")
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        header = tarfile.TarInfo("1.jpg")
        archive.addfile(header)
    (tmp_path / "1.jpg").write_bytes(b"x")
    items = [item for name in ("p.parquet", "a.tar", "1.jpg") for item in listed(f"{tmp_path}/{name}")]
    for name in ("p.parquet", "1.jpg"):
        (tmp_path / name).unlink()
    with Reader(sleep=lambda _: pytest.fail("waited for what is gone")) as reader:
        for item in (items[0], items[2]):
            with pytest.raises(Unreadable, match=r"^No such file or directory$"):
                reader.read(item)
        (tmp_path / "p.parquet").write_bytes(b"no Parquet any more")
        with pytest.raises(Unreadable, match="Parquet magic bytes not found"):
            reader.read(items[0])
