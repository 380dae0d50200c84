"""Folders, patterns and single pictures of the machine's own disk."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Iterator
from glob import glob
from pathlib import Path

import pytest

from attnserve.errors import ConfigError
from attnserve.scoring import inputs_pattern as patterns
from attnserve.scoring.inputs import Reader, listed
from attnserve.scoring.items import Item, Unreadable


@pytest.fixture
def reader() -> Iterator[Reader]:
    with Reader(sleep=lambda _: None) as reader:
        yield reader


def put(folder: Path, *names: str) -> None:
    """Files that hold their own names."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.fsencode(name))


def ids(spec: object) -> list[str]:
    return [item.id for item in listed(str(spec))]


def test_a_folder_is_its_pictures_by_suffix_at_any_depth_in_the_order_of_their_paths(
    tmp_path: Path, reader: Reader
) -> None:
    put(
        tmp_path,
        "b.JPG",
        "a/2.png",
        "a/10.webp",
        "a-1.jpeg",
        "a.jpg",
        "a/b/c.Jpeg",
        "notes.txt",
        "a/jpg",
        ".hidden.jpg",
    )
    items = list(listed(str(tmp_path)))
    assert [item.id for item in items] == [
        ".hidden.jpg", "a-1.jpeg", "a.jpg", "a/10.webp", "a/2.png", "a/b/c.Jpeg", "b.JPG",
    ]  # fmt: skip
    assert [item.index for item in items] == list(range(7))
    assert items[3] == Item(3, "a/10.webp", f"{tmp_path}/a/10.webp", f"{tmp_path}/a/10.webp", None, len(f"{tmp_path}/"))
    assert [reader.read(item).decode() for item in items] == [item.id for item in items]


def test_a_relative_folder_lists_absolute_uris(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, "in/1.jpg")
    monkeypatch.chdir(tmp_path)
    for spec in ("in", "./in/", "in/../in", f"file://{tmp_path}/in"):
        (item,) = listed(spec)
        assert item.id == "1.jpg"
        assert os.path.normpath(item.uri) == f"{tmp_path}/in/1.jpg"
    (item,) = listed(".")
    assert (item.id, item.uri) == ("in/1.jpg", f"{tmp_path}/in/1.jpg")


def test_one_picture_is_an_input_even_where_its_name_looks_like_a_pattern(tmp_path: Path) -> None:
    put(tmp_path, "a[1]{b,c}*.jpg", "a1.jpg")
    assert ids(tmp_path / "a[1]{b,c}*.jpg") == ["a[1]{b,c}*.jpg"]


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("*.jpg", ["1.jpg"]),
        ("*/*.jpg", ["a/2.jpg", "b/4.jpg"]),
        ("**/*.jpg", ["1.jpg", "a/2.jpg", "a/x/3.jpg", "b/4.jpg"]),
        ("a/**", ["2.jpg", "5.png", "x/3.jpg"]),
        ("**/x/*", ["a/x/3.jpg"]),
        ("[ab]/[!2-3].*", ["a/5.png", "b/4.jpg"]),
        ("?/?.jpg", ["a/2.jpg", "b/4.jpg"]),
        ("{b,a}/*.jpg", ["4.jpg", "2.jpg"]),
        ("{1..4}.jp*", ["1.jpg"]),
    ],
)
def test_a_pattern_is_what_it_matches_named_from_its_fixed_folder(
    tmp_path: Path, pattern: str, found: list[str]
) -> None:
    put(tmp_path, "1.jpg", "a/2.jpg", "a/5.png", "a/x/3.jpg", "b/4.jpg", "b/notes.txt")
    if pattern == "{1..4}.jp*":
        put(tmp_path, "2.jpg", "3.jpg", "4.jpg")
        found = ["1.jpg", "2.jpg", "3.jpg", "4.jpg"]
    assert ids(tmp_path / pattern) == found


def test_patterns_find_what_pythons_own_glob_finds(tmp_path: Path) -> None:
    put(tmp_path, "a.jpg", "b.jpg", "a/a.jpg", "a/b/a.jpg", "b/a/b/b.jpg", "b/b/.h/a.jpg", "a.jpg.d/b.jpg")
    parts = ["**", "*", "a", "b*", "?", "[!a]", "a.jpg"]
    for pattern in ("/".join(chosen) for n in (1, 2, 3) for chosen in itertools.product(parts, repeat=n)):
        found = glob(pattern, root_dir=tmp_path, recursive=True, include_hidden=True)
        pictures = sorted({path for path in found if (tmp_path / path).is_file() and not path.endswith("/")})
        assert [path for path in listed_or_nothing(tmp_path, pattern) if path] == pictures, pattern


def listed_or_nothing(folder: Path, pattern: str) -> list[str]:
    """Paths relative to the folder of what the pattern names in it."""
    if "*" not in pattern and "?" not in pattern and "[" not in pattern:
        pattern = f"[{pattern[0]}]{pattern[1:]}"
    try:
        return sorted(item.uri.removeprefix(f"{folder}/") for item in listed(f"{folder}/{pattern}"))
    except ConfigError:
        return []


def test_a_pattern_does_not_look_into_folders_that_cannot_match() -> None:
    pattern = ["a*", "*", "**", "x.jpg"]
    assert [patterns.may_match_below(pattern, folder) for folder in (["a1"], ["b"], ["a1", "b", "c", "d"])] == [
        True, False, True,
    ]  # fmt: skip
    assert not patterns.may_match_below(["*.jpg"], ["a"])
    assert patterns.may_match_below(["*", "*.jpg"], ["a"])
    assert not patterns.may_match_below(["*", "*"], ["a", "b"])
    assert not patterns.may_match_below(["*"], ["a", "b"])


@pytest.mark.parametrize(
    ("text", "spread"),
    [
        ("t-{08..11}.tar", ["t-08.tar", "t-09.tar", "t-10.tar", "t-11.tar"]),
        ("{2..0}", ["2", "1", "0"]),
        ("{9..10}", ["9", "10"]),
        ("{a,b}{0..1}", ["a0", "a1", "b0", "b1"]),
        ("{,x}y", ["y", "xy"]),
        ("{x}", ["{x}"]),
        ("plain", ["plain"]),
    ],
)
def test_braces_are_spread_as_a_shell_does(text: str, spread: list[str]) -> None:
    assert list(patterns.spread(text)) == spread


def test_a_range_beyond_reason_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"\{0..99999999\}: more than 1000000 names"):
        list(patterns.spread("{0..99999999}"))


def test_a_pattern_that_matches_two_kinds_of_file_is_refused(tmp_path: Path) -> None:
    put(tmp_path, "1.jpg", "all.csv")
    with pytest.raises(ConfigError, match=r"matches both pictures and CSV manifests \(all.csv\)"):
        list(listed(f"{tmp_path}/*"))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("gone", "gone: no such file or folder"),
        ("gone/*.jpg", "gone/.*: no such folder: .*/gone"),
        ("*.jpg", r"\*.jpg: names no picture; looked for pictures \(.jpg .jpeg .png .webp\); CSV manifests"),
        ("empty", "empty: names no picture; looked for"),
        ("notes.txt", "notes.txt: unknown kind of file; looked for pictures"),
        ("notes.txt/1.jpg", "no such file or folder"),
        ("all.tar.gz", "all.tar.gz: a packed tar file can only be read from its start"),
        ("nul\0.jpg", "embedded null byte"),
        ("a" * 300 + ".jpg", "no such file or folder"),
        ("a" * 5000 + ".jpg", "no such file or folder"),
    ],
)
def test_what_cannot_be_an_input_is_refused_with_what_was_looked_for(tmp_path: Path, spec: str, message: str) -> None:
    put(tmp_path, "notes.txt", "all.tar.gz")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=message):
        list(listed(f"{tmp_path}/{spec}"))


def test_links_to_folders_are_followed_and_loops_end(tmp_path: Path, reader: Reader) -> None:
    put(tmp_path, "in/a/1.jpg", "outside/2.jpg")
    (tmp_path / "in/a/up").symlink_to("..")
    (tmp_path / "in/out").symlink_to("../outside")
    (tmp_path / "outside/back").symlink_to("../in")
    (tmp_path / "in/self").symlink_to("self")
    (tmp_path / "in/self.jpg").symlink_to("self.jpg")
    (tmp_path / "in/gone.jpg").symlink_to("nowhere")
    items = list(listed(str(tmp_path / "in")))
    assert [item.id for item in items] == ["a/1.jpg", "gone.jpg", "out/2.jpg", "self.jpg"]
    with pytest.raises(Unreadable, match="No such file or directory"):
        reader.read(items[1])
    with pytest.raises(Unreadable, match="Too many levels of symbolic links"):
        reader.read(items[3])


def test_a_folder_that_cannot_be_listed_is_an_error_that_names_it(tmp_path: Path) -> None:
    put(tmp_path, "a/1.jpg", "locked/2.jpg")
    (tmp_path / "locked").chmod(0)
    try:
        if os.access(tmp_path / "locked", os.R_OK):
            pytest.skip("this user may read every folder")
        with pytest.raises(ConfigError, match="locked: Permission denied"):
            list(listed(str(tmp_path)))
    finally:
        (tmp_path / "locked").chmod(0o700)


def test_a_folder_that_goes_while_it_is_listed_is_an_error_that_names_it(tmp_path: Path) -> None:
    put(tmp_path, "a/1.jpg", "b/2.jpg")
    items = listed(str(tmp_path))
    assert next(items).id == "a/1.jpg"
    shutil.rmtree(tmp_path / "b")
    with pytest.raises(ConfigError, match="b: No such file or directory"):
        next(items)


def test_names_of_any_kind_survive_and_are_valid_utf8(tmp_path: Path, reader: Reader) -> None:
    names = [
        "line\nbreak.jpg",
        " space .jpg",
        "#1?.jpg",
        "übel/ß.jpg",
        "日本.png",
        os.fsdecode(b"caf\xe9.jpg"),
        "a\\xe9.jpg",
    ]
    put(tmp_path, *names)
    items = list(listed(str(tmp_path)))
    assert {item.id for item in items} == {*names[:5], "caf\\xe9.jpg", "a\\xe9.jpg"}
    for item in items:
        item.id.encode()
        item.uri.encode()
    assert {reader.read(item) for item in items} == {os.fsencode(name) for name in names}


def test_a_path_longer_than_the_kernel_takes_at_once_is_listed_and_read(tmp_path: Path, reader: Reader) -> None:
    part = "ä" * 100
    here = os.open(tmp_path, os.O_RDONLY)
    for _ in range(30):  # 6000 bytes
        os.mkdir(part, dir_fd=here)
        inner = os.open(part, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inner
    with os.fdopen(os.open("1.jpg", os.O_CREAT | os.O_WRONLY, dir_fd=here), "wb") as file:
        file.write(b"deep")
    os.close(here)
    (item,) = listed(str(tmp_path))
    assert item.id == f"{part}/" * 30 + "1.jpg"
    assert reader.read(item) == b"deep"
    (alone,) = listed(item.uri)
    assert reader.read(alone) == b"deep"
    shutil.rmtree(tmp_path / part)


def test_what_is_no_regular_file_is_unreadable_and_nobody_waits_for_it(tmp_path: Path, reader: Reader) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (item,) = listed(str(tmp_path))
    with pytest.raises(Unreadable, match="not a regular file"):
        reader.read(item)
    with pytest.raises(Unreadable, match="a folder"):
        reader.read(Item(0, "", "", str(tmp_path)))
