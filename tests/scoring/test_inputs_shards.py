"""Tar files, WebDataset shards and Parquet files with pictures in them."""

from __future__ import annotations

import io
import os
import sys
import tarfile
import threading
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from attnserve.errors import ConfigError
from attnserve.scoring import inputs_parquet
from attnserve.scoring.inputs import Reader, listed
from attnserve.scoring.items import Cell, Item, Span, Unreadable


@pytest.fixture
def reader() -> Iterator[Reader]:
    with Reader(sleep=lambda _: None) as reader:
        yield reader


def write_tar(path: Path, members: dict[str, bytes], form: int = tarfile.GNU_FORMAT) -> None:
    with tarfile.open(path, "w", format=form) as archive:
        for name, data in members.items():
            header = tarfile.TarInfo(name)
            header.size = len(data)
            archive.addfile(header, io.BytesIO(data))


def bytes_of(reader: Reader, spec: object) -> list[bytes]:
    return [reader.read(item) for item in listed(str(spec))]


def test_a_tar_file_is_its_pictures_by_key_and_place(tmp_path: Path, reader: Reader) -> None:
    path = tmp_path / "a.tar"
    write_tar(path, {"cats/1.jpg": b"one", "cats/1.cls": b"0", "cats/2.PNG": b"two!", "./3.left.webp": b""})
    items = list(listed(str(path)))
    assert items == [
        Item(0, "cats/1", f"{path}#cats/1.jpg", str(path), Span(512, 3), len(f"{tmp_path}/")),
        Item(1, "cats/2", f"{path}#cats/2.PNG", str(path), Span(2560, 4), len(f"{tmp_path}/")),
        Item(2, "3.left", f"{path}#./3.left.webp", str(path), Span(3584, 0), len(f"{tmp_path}/")),
    ]
    assert [reader.read(item) for item in items] == [b"one", b"two!", b""]


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_repeated_and_strange_member_names_survive(tmp_path: Path, reader: Reader, form: int) -> None:
    names = ["d/" * 200 + "deep.jpg", "line\nbreak.jpg", os.fsdecode(b"caf\xe9.jpg"), "ß.jpg"]
    write_tar(tmp_path / "a.tar", {name: os.fsencode(name) for name in names}, form)
    with tarfile.open(tmp_path / "a.tar", "a", format=form) as archive:
        header = tarfile.TarInfo("ß.jpg")
        header.size = 5
        archive.addfile(header, io.BytesIO(b"again"))
    items = list(listed(str(tmp_path / "a.tar")))
    assert [item.id for item in items] == ["d/" * 200 + "deep", "line\nbreak", "caf\\xe9", "ß", "ß"]
    assert [reader.read(item) for item in items] == [*map(os.fsencode, names), b"again"]


def test_shards_are_named_by_braces_or_a_pattern_and_an_empty_one_among_them_is_none(
    tmp_path: Path, reader: Reader
) -> None:
    for shard, data in ((9, {"1.jpg": b"a"}), (10, {}), (11, {"1.jpg": b"b", "2.jpg": b"c"})):
        write_tar(tmp_path / f"t-{shard:03}.tar", data)
    assert bytes_of(reader, tmp_path / "t-{009..011}.tar") == [b"a", b"b", b"c"]
    assert [item.uri.rpartition("/")[2] for item in listed(f"{tmp_path}/*.tar")] == [
        "t-009.tar#1.jpg", "t-011.tar#1.jpg", "t-011.tar#2.jpg",
    ]  # fmt: skip
    with pytest.raises(ConfigError, match=r"t-012.tar: no such file or folder"):
        list(listed(str(tmp_path / "t-{009..012}.tar")))
    with pytest.raises(ConfigError, match="names no picture"):
        list(listed(str(tmp_path / "t-010.tar")))


def test_a_member_cut_short_is_listed_and_unreadable(tmp_path: Path, reader: Reader) -> None:
    path = tmp_path / "a.tar"
    write_tar(path, {"1.jpg": b"one", "2.jpg": b"x" * 5000})
    path.write_bytes(path.read_bytes()[:3000])
    first, second = listed(str(path))
    assert reader.read(first) == b"one"
    with pytest.raises(Unreadable, match="cut short: 1464 of 5000 bytes are there"):
        reader.read(second)


def damaged_header(data: bytearray) -> bytes:
    data[1024 + 10] ^= 0xFF  # the second member's header
    return bytes(data)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (damaged_header, "damaged, or several tar files in one: .* after the archive's end at byte 1024"),
        (lambda data: bytes(data) + bytes(data), "several tar files in one"),
        (lambda data: bytes(data)[:1100], "damaged, or several tar files in one"),
        (lambda _: b"", "a.tar: not a plain tar file"),
        (lambda _: b"\x1f\x8b" + b"gzip" * 300, "a.tar: not a plain tar file"),
    ],
)
def test_a_tar_file_that_would_lose_members_is_refused(tmp_path: Path, change, message: str) -> None:
    path = tmp_path / "a.tar"
    write_tar(path, {"1.jpg": b"one", "2.jpg": b"two"})
    path.write_bytes(change(bytearray(path.read_bytes())))
    with pytest.raises(ConfigError, match=message):
        list(listed(str(path)))


@pytest.mark.parametrize("kind", [tarfile.LNKTYPE, tarfile.SYMTYPE])
def test_a_picture_stored_as_a_link_is_refused_with_the_way_out(tmp_path: Path, kind: bytes) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        folder, link = tarfile.TarInfo("folder.jpg"), tarfile.TarInfo("1.jpg")
        folder.type, link.type, link.linkname = tarfile.DIRTYPE, kind, "2.jpg"
        archive.addfile(folder)
        archive.addfile(link)
    with pytest.raises(ConfigError, match=r"1.jpg is stored as a link.* --hard-dereference"):
        list(listed(str(tmp_path / "a.tar")))


def test_the_members_of_a_tar_file_are_not_held_in_memory(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {f"{number}.jpg": b"" for number in range(2000)})
    tracemalloc.start()
    try:
        assert sum(1 for _ in listed(str(tmp_path / "a.tar"))) == 2000
        assert tracemalloc.get_traced_memory()[1] < 500_000
    finally:
        tracemalloc.stop()


def test_a_sparse_picture_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        header = tarfile.TarInfo("1.jpg")
        header.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "9000"}
        header.size = 512
        archive.addfile(header, io.BytesIO(b"0\n".ljust(512, b"\0")))
    with pytest.raises(ConfigError, match=r"1.jpg is stored as a sparse file"):
        list(listed(str(tmp_path / "a.tar")))


@pytest.mark.parametrize("column", ["image", "bytes", "image_bytes", "jpg"])
@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary_view()])
def test_a_parquet_file_with_a_column_of_bytes_is_its_rows(
    tmp_path: Path, reader: Reader, column: str, kind: pa.DataType
) -> None:
    path = tmp_path / "p.parquet"
    table = pa.table({"uri": ["x", "y", "z"], column: pa.array([b"a", b"bb", b""], kind)})
    try:
        pq.write_table(table, path, row_group_size=2)
    except pa.ArrowNotImplementedError:
        pytest.skip(f"pyarrow {pa.__version__} writes no {kind} to Parquet")
    items = list(listed(str(path)))
    assert items == [
        Item(0, "p.parquet#0", f"{path}#0", str(path), Cell(0, 0, column), len(f"{tmp_path}/")),
        Item(1, "p.parquet#1", f"{path}#1", str(path), Cell(0, 1, column), len(f"{tmp_path}/")),
        Item(2, "p.parquet#2", f"{path}#2", str(path), Cell(1, 0, column), len(f"{tmp_path}/")),
    ]
    assert [reader.read(item) for item in items] == [b"a", b"bb", b""]


def test_a_parquet_file_of_hugging_face_is_its_structs_with_the_ids_beside_them(tmp_path: Path, reader: Reader) -> None:
    image = [{"bytes": b"a", "path": "1.jpg"}, {"bytes": None, "path": "2.jpg"}, None, {"bytes": b"d", "path": None}]
    pq.write_table(pa.table({"img": image, "id": ["eins", "zwei", None, "eins"]}), tmp_path / "p.parquet")
    items = list(listed(str(tmp_path / "p.parquet")))
    assert [item.id for item in items] == ["eins", "zwei", "p.parquet#2", "eins"]
    assert (reader.read(items[0]), reader.read(items[3])) == (b"a", b"d")
    for item in items[1:3]:
        with pytest.raises(Unreadable, match="column img is null"):
            reader.read(item)


def test_two_columns_of_structs_with_bytes_are_a_question(tmp_path: Path, reader: Reader) -> None:
    row = [{"bytes": b"a"}]
    pq.write_table(pa.table({"photo": row, "mask": row}), tmp_path / "p.parquet")
    with pytest.raises(ConfigError, match="several columns hold bytes: photo, mask"):
        list(listed(str(tmp_path / "p.parquet")))
    pq.write_table(pa.table({"mask": [{"bytes": b"m"}], "image": row}), tmp_path / "p.parquet")
    assert bytes_of(reader, tmp_path / "p.parquet") == [b"a"]


def rows_of(count: int) -> list[bytes]:
    return [b"%06d" % row * 200 for row in range(count)]


@pytest.mark.parametrize("group_rows", [37, 1000])
def test_rows_are_read_in_any_order_and_by_many_threads(
    tmp_path: Path, reader: Reader, monkeypatch: pytest.MonkeyPatch, group_rows: int
) -> None:
    monkeypatch.setattr(inputs_parquet, "BATCH_BYTES", 20_000)  # 16 rows
    rows = rows_of(1000)
    pq.write_table(pa.table({"image": rows}), tmp_path / "p.parquet", row_group_size=group_rows, use_dictionary=False)
    items = list(listed(str(tmp_path / "p.parquet")))
    for index in (999, 0, 500, 499, 501, 3, 999, 36, 37, 36, 37):
        assert reader.read(items[index]) == rows[index]
    wrong = []

    def read_every(start: int) -> None:
        wrong.extend(i for i in range(start, 1000, 7) if reader.read(items[i]) != rows[i])

    threads = [threading.Thread(target=read_every, args=(start,)) for start in range(7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_row_group_is_read_once_and_never_held_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs_parquet, "BATCH_BYTES", 20_000)
    rows = rows_of(20_000)  # 24 MB
    pq.write_table(
        pa.table({"image": rows}),
        tmp_path / "p.parquet",
        row_group_size=20_000,
        use_dictionary=False,
        compression="none",
    )
    file = CountedFile(tmp_path / "p.parquet")
    pictures = inputs_parquet.Pictures(file, "image")
    before = most = pa.total_allocated_bytes()
    for row in range(20_000):
        assert pictures.read(0, row) == rows[row]
        most = max(most, pa.total_allocated_bytes())
    pictures.close()
    assert most - before < 8_000_000
    assert file.read_bytes < 30_000_000
    assert file.most_bytes < 3_000_000
    assert file.closed


def test_threads_do_not_disturb_each_other_wherever_they_are_interrupted(tmp_path: Path) -> None:
    rows = rows_of(400)
    pq.write_table(pa.table({"image": rows}), tmp_path / "p.parquet", row_group_size=4)
    pictures = inputs_parquet.Pictures(io.FileIO(tmp_path / "p.parquet"), "image")
    interval_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            order = [row * 57 % 400 for row in range(12000)]  # far apart: what is kept changes with every read
            assert list(pool.map(lambda row: pictures.read(row // 4, row % 4), order)) == [rows[row] for row in order]
    finally:
        sys.setswitchinterval(interval_s)
    pictures.close()


class CountedFile(io.FileIO):
    read_bytes = 0
    most_bytes = 0  # at once

    def read(self, size: int = -1) -> bytes:
        data = super().read(size)
        self.read_bytes += len(data)
        self.most_bytes = max(self.most_bytes, len(data))
        return data


def test_damage_is_the_rows_fault_that_lie_behind_it(
    tmp_path: Path, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inputs_parquet, "BATCH_BYTES", 500_000)  # 10 rows
    path = tmp_path / "p.parquet"
    rows = [os.urandom(50_000) for _ in range(400)]
    pq.write_table(pa.table({"image": rows}), path, row_group_size=200, use_dictionary=False, write_batch_size=10)
    chunk = pq.ParquetFile(path).metadata.row_group(0).column(0)
    with path.open("r+b") as file:  # the second half of the first group: its page headers go
        file.seek(chunk.data_page_offset + chunk.total_compressed_size // 2)
        file.write(b"\xff" * (chunk.total_compressed_size // 2))
    items = list(listed(str(path)))
    assert reader.read(items[0]) == rows[0]
    for index in (199, 198):
        with pytest.raises(Unreadable, match="damaged Parquet"):
            reader.read(items[index])
    assert reader.read(items[200]) == rows[200]
    file = CountedFile(path)
    pictures = inputs_parquet.Pictures(file, "image")
    for _ in range(20):
        with pytest.raises(Unreadable, match="damaged Parquet"):
            pictures.read(0, 199)
    pictures.close()
    assert file.read_bytes < 15_000_000  # the group once


def test_row_groups_that_were_left_give_their_memory_back(tmp_path: Path) -> None:
    rows = [os.urandom(100_000) for _ in range(300)]
    pq.write_table(pa.table({"image": rows}), tmp_path / "p.parquet", row_group_size=10, use_dictionary=False)
    pictures = inputs_parquet.Pictures(io.FileIO(tmp_path / "p.parquet"), "image")
    before = pa.total_allocated_bytes()
    for group in range(30):
        assert pictures.read(group, 0) == rows[10 * group]
    assert pa.total_allocated_bytes() - before < 20_000_000
    pictures.close()
