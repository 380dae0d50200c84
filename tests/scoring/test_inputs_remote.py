"""Object stores: S3 as moto serves it in this process, and fsspec's own memory."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import boto3
import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs
from fsspec.implementations.memory import MemoryFileSystem
from moto.server import ThreadedMotoServer

from attnserve.errors import ConfigError
from attnserve.scoring.inputs import Reader, listed
from attnserve.scoring.inputs_files import RemoteFiles, file_system
from attnserve.scoring.items import Item, Span, Unreadable


@pytest.fixture(scope="module")
def store() -> Iterator[Any]:
    """boto3's client of an S3 server with a bucket `pictures`."""
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "testing")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        s3fs.S3FileSystem.clear_instance_cache()
        client = boto3.client("s3")
        client.create_bucket(Bucket="pictures")
        yield client
        client.close()
        s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


def tar_of(**members: bytes) -> bytes:
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w") as archive:
        for name, data in members.items():
            header = tarfile.TarInfo(f"{name}.jpg")
            header.size = len(data)
            archive.addfile(header, io.BytesIO(data))
    return written.getvalue()


def parquet_of(*rows: bytes) -> bytes:
    written = io.BytesIO()
    pq.write_table(pa.table({"image": list(rows)}), written, row_group_size=2)
    return written.getvalue()


OBJECTS = {
    "photos/": b"",
    "photos/2.jpg": b"two",
    "photos/cats/": b"",
    "photos/cats/1.JPG": b"one",
    "photos/cats/ü #?.png": b"odd",
    "photos/cats/notes.txt": b"-",
    "photos/photos/3.jpg": b"three",
    "lists/m.csv": b"uri,id\n../photos/2.jpg,x\n../photos/cats/1.JPG,\ns3://pictures/photos/2.jpg,y\n",
    "lists/m.jsonl": b'{"uri": "1.jpg"}\n',
    "shards/t-00.tar": tar_of(a=b"A" * 600, b=b"B"),
    "shards/t-01.tar": tar_of(c=b"C"),
    "rows/p.parquet": parquet_of(b"r0", b"r1", b"r2"),
    "twins//1.jpg": b"hidden",
    "twins/2.jpg": b"seen",
    "empty.jpg": b"",
}


@pytest.fixture(scope="module")
def filled(store: Any) -> str:
    for key, data in OBJECTS.items():
        store.put_object(Bucket="pictures", Key=key, Body=data)
    return "s3://pictures"


def seen(spec: str) -> list[tuple[str, str, bytes]]:
    with Reader(sleep=lambda _: None) as reader:
        return [(item.id, item.uri, reader.read(item)) for item in listed(spec)]


@pytest.mark.parametrize("end", ["", "/"])
def test_a_prefix_is_a_folder_without_its_markers(filled: str, end: str) -> None:
    assert seen(f"{filled}/photos{end}") == [
        ("2.jpg", "s3://pictures/photos/2.jpg", b"two"),
        ("cats/1.JPG", "s3://pictures/photos/cats/1.JPG", b"one"),
        ("cats/ü #?.png", "s3://pictures/photos/cats/ü #?.png", b"odd"),
        ("photos/3.jpg", "s3://pictures/photos/photos/3.jpg", b"three"),
    ]


def test_a_marker_is_no_entry_of_its_folder(filled: str) -> None:
    assert RemoteFiles().entries(f"{filled}/photos") == (None, [("2.jpg", False), ("cats", True), ("photos", True)])


def test_patterns_and_single_keys_are_found_on_urls(filled: str) -> None:
    assert [found[0] for found in seen(f"{filled}/photos/**/*.[jp]*g")] == ["2.jpg", "cats/ü #?.png", "photos/3.jpg"]
    assert seen(f"{filled}/p*/*.jpg") == [("photos/2.jpg", "s3://pictures/photos/2.jpg", b"two")]
    assert seen(f"{filled}/photos/2.jpg") == [("2.jpg", "s3://pictures/photos/2.jpg", b"two")]


def test_shards_and_rows_are_read_by_ranges(filled: str) -> None:
    assert seen(f"{filled}/shards/t-{{00..01}}.tar") == [
        ("a", "s3://pictures/shards/t-00.tar#a.jpg", b"A" * 600),
        ("b", "s3://pictures/shards/t-00.tar#b.jpg", b"B"),
        ("c", "s3://pictures/shards/t-01.tar#c.jpg", b"C"),
    ]
    assert seen(f"{filled}/rows/*.parquet") == [
        ("p.parquet#0", "s3://pictures/rows/p.parquet#0", b"r0"),
        ("p.parquet#1", "s3://pictures/rows/p.parquet#1", b"r1"),
        ("p.parquet#2", "s3://pictures/rows/p.parquet#2", b"r2"),
    ]


def test_a_manifest_on_a_store_names_keys_beside_it(filled: str) -> None:
    (item,) = listed(f"{filled}/lists/m.jsonl")
    assert item == Item(0, "1.jpg", "s3://pictures/lists/1.jpg", "s3://pictures/lists/1.jpg")


def test_what_a_store_has_not_is_said(filled: str) -> None:
    for spec, message in (
        (f"{filled}/nothing", "s3://pictures/nothing: no such file or folder"),
        (f"{filled}/nothing/*.jpg", "no such folder: s3://pictures/nothing/"),
        ("s3://other-bucket/x", "no such file or folder"),
        (f"{filled}/twins", "twins: holds keys with `//`"),
    ):
        with pytest.raises(ConfigError, match=message):
            list(listed(spec))
    with Reader(sleep=lambda _: pytest.fail("a lasting failure was retried")) as reader:
        for key, message in (("gone.jpg", "No such file or directory"), ("empty.jpg", "range")):
            with pytest.raises(Unreadable, match=message):
                reader.read(Item(0, key, f"{filled}/{key}", f"{filled}/{key}"))


def test_what_was_added_since_the_last_listing_is_listed(filled: str, store: Any) -> None:
    store.put_object(Bucket="pictures", Key="new/1.jpg", Body=b"1")
    assert len(seen(f"{filled}/new")) == 1
    store.put_object(Bucket="pictures", Key="new/2.jpg", Body=b"2")
    assert len(seen(f"{filled}/new")) == 2


@pytest.fixture
def memory() -> Iterator[MemoryFileSystem]:
    memory = fsspec.filesystem("memory")
    yield memory
    memory.store.clear()
    memory.pseudo_dirs[:] = [""]


def test_any_file_system_of_fsspec_will_do(memory: MemoryFileSystem) -> None:
    memory.pipe(
        {
            "/d/a/1.jpg": b"1",
            "/d/2.png": b"2",
            "/2.jpg": b"top",
            "/d/m.csv": b"path\na/1.jpg\n",
            "/d/t.tar": tar_of(x=b"X"),
        }
    )
    memory.pipe("/d/p.parquet", parquet_of(b"r"))
    assert seen("memory://d") == [("2.png", "memory://d/2.png", b"2"), ("a/1.jpg", "memory://d/a/1.jpg", b"1")]
    assert seen("memory://*.jpg") == [("2.jpg", "memory://2.jpg", b"top")]
    assert seen("memory://d/m.csv") == [("a/1.jpg", "memory://d/a/1.jpg", b"1")]
    assert seen("memory://d/t.tar") == [("x", "memory://d/t.tar#x.jpg", b"X")]
    assert seen("memory://d/p.parquet") == [("p.parquet#0", "memory://d/p.parquet#0", b"r")]


def test_a_missing_driver_is_refused_with_what_to_install() -> None:
    with pytest.raises(ConfigError, match=r"gs://b/x: the driver of gs:// is not installed: .*gcsfs"):
        list(listed("gs://b/x"))
    with pytest.raises(ConfigError, match=r"standard input: line 2: gs://b/x.jpg: .*gcsfs"):
        list(listed("-", stdin=["/1.jpg", "gs://b/x.jpg"]))
    with pytest.raises(ConfigError, match="nope://x: no file system is known for nope://"):
        list(listed("nope://x"))


class Refused(Exception):
    """A store's HTTP failure, as drivers raise it."""

    def __init__(self, status: int) -> None:
        super().__init__(f"status {status}")
        self.status = status


class Moody(MemoryFileSystem):
    """A store that fails as it is told to, and then answers."""

    protocol = "moody"
    failures: list[Exception] = []  # noqa: RUF012 the class is the store
    tries = 0
    ranges = True

    def cat_file(self, _: str, start: int | None = None, end: int | None = None) -> bytes:
        type(self).tries += 1
        if self.failures:
            raise self.failures.pop(0)
        return b"0123456789"[start:end] if self.ranges else b"0123456789"


@pytest.fixture
def moody() -> type[Moody]:
    fsspec.register_implementation("moody", Moody, clobber=True)
    Moody.failures, Moody.tries, Moody.ranges = [], 0, True
    return Moody


ITEM = Item(0, "1.jpg", "moody://1.jpg", "moody://1.jpg")


@pytest.mark.parametrize(
    "failure", [ConnectionResetError("reset"), TimeoutError(), Refused(503), Refused(429), OSError(5, "EIO")]
)
def test_a_passing_failure_is_waited_out(moody: type[Moody], failure: Exception) -> None:
    moody.failures = [failure] * 3
    waits: list[float] = []
    with Reader(sleep=waits.append) as reader:
        assert reader.read(ITEM) == b"0123456789"
    assert len(waits) == 3
    assert waits[0] < waits[1] < waits[2] <= 3.2


def test_a_failure_that_stays_is_unreadable_in_its_own_words(moody: type[Moody]) -> None:
    moody.failures = [ConnectionResetError(104, "reset by peer")] * 9
    with Reader(sleep=lambda _: None) as reader, pytest.raises(Unreadable, match=r"^reset by peer$"):
        reader.read(ITEM)
    assert moody.tries == 4


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (FileNotFoundError("moody://1.jpg"), "No such file or directory"),
        (PermissionError("Access denied"), "Permission denied"),
        (Refused(403), "status 403"),
        (Refused(410), "status 410"),
    ],
)
def test_a_clear_no_is_not_asked_again(moody: type[Moody], failure: Exception, message: str) -> None:
    moody.failures = [failure]
    with Reader(sleep=lambda _: None) as reader, pytest.raises(Unreadable, match=message):
        reader.read(ITEM)
    assert moody.tries == 1


def test_too_many_open_files_are_nobodys_fault(moody: type[Moody]) -> None:
    moody.failures = [OSError(24, "Too many open files")]
    with Reader(sleep=lambda _: None) as reader, pytest.raises(OSError, match="Too many open files"):
        reader.read(ITEM)


def test_a_server_without_ranges_does_not_pass_a_whole_tar_file_off_as_a_member(moody: type[Moody]) -> None:
    moody.ranges = False
    with Reader() as reader, pytest.raises(Unreadable, match="gave 10 bytes where 3 were asked for"):
        reader.read(replace(ITEM, place=Span(2, 3)))
    moody.ranges = True
    with Reader() as reader:
        assert reader.read(replace(ITEM, place=Span(2, 3))) == b"234"


def test_a_file_system_is_made_once_in_a_process(moody: type[Moody]) -> None:
    assert isinstance(file_system("moody://1.jpg"), moody)
    assert file_system("moody://1.jpg") is file_system("moody://2.jpg")
