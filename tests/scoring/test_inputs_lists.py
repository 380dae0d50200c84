"""Manifests and lists on standard input."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from attnserve.errors import ConfigError
from attnserve.scoring.inputs import Reader, listed
from attnserve.scoring.items import Item, Unreadable

CSV = """\
\ufeffuri,label,id
cats/1.jpg,cat,one
"we,ird ""é"".jpg",,

/abs/2.jpg,dog,zwei
s3://bucket/key.jpg,dog,3
cats/1.jpg,cat,one
https://host/get?id=5,dog,
file:///abs/6.jpg,,
"""


def test_a_csv_manifest_keeps_its_order_its_ids_and_its_duplicates(tmp_path: Path) -> None:
    (tmp_path / "all.csv").write_text(CSV)
    items = list(listed(str(tmp_path / "all.csv")))
    assert [(item.id, item.uri) for item in items] == [
        ("one", f"{tmp_path}/cats/1.jpg"),
        ('we,ird "é".jpg', f'{tmp_path}/we,ird "é".jpg'),
        ("zwei", "/abs/2.jpg"),
        ("3", "s3://bucket/key.jpg"),
        ("one", f"{tmp_path}/cats/1.jpg"),
        ("https://host/get?id=5", "https://host/get?id=5"),
        ("file:///abs/6.jpg", "/abs/6.jpg"),
    ]
    inside = len(f"{tmp_path}/")
    assert [item.mount for item in items] == [inside, inside, 0, 0, inside, 0, 0]


@pytest.mark.parametrize("suffix", [".jsonl", ".NDJSON"])
def test_a_json_manifest_is_read_line_by_line(tmp_path: Path, suffix: str) -> None:
    lines = [
        '{"path": "1.jpg", "id": "a"}',
        "",
        '{"uri": "2.jpg", "path": "x"}',
        '{"url": "/3.jpg", "id": 7, "more": []}',
    ]
    (tmp_path / f"m{suffix}").write_text("\n".join(lines))
    items = [(item.id, item.uri) for item in listed(f"{tmp_path}/m{suffix}")]
    assert items == [("a", f"{tmp_path}/1.jpg"), ("2.jpg", f"{tmp_path}/2.jpg"), ("7", "/3.jpg")]


def test_a_parquet_manifest_names_pictures_by_its_columns(tmp_path: Path) -> None:
    pq.write_table(
        pa.table({"id": [5, None], "image_path": ["1.jpg", "2.jpg"], "image": ["no", "bytes"]}), tmp_path / "m.parquet"
    )
    items = [(item.id, item.uri) for item in listed(str(tmp_path / "m.parquet"))]
    assert items == [("5", f"{tmp_path}/1.jpg"), ("2.jpg", f"{tmp_path}/2.jpg")]


def test_names_that_are_not_utf8_lead_to_their_files_from_every_list(tmp_path: Path) -> None:
    name = b"caf\xe9.jpg"
    (tmp_path / os.fsdecode(name)).write_bytes(b"picture")
    (tmp_path / "m.csv").write_bytes(b"uri\n" + name + b"\n")
    (tmp_path / "raw.jsonl").write_bytes(b'{"uri": "' + name + b'"}\n')
    (tmp_path / "m.jsonl").write_text(json.dumps({"uri": os.fsdecode(name)}))
    pq.write_table(pa.table({"uri": [name]}), tmp_path / "m.parquet")
    lists = [listed(f"{tmp_path}/{m}") for m in ("m.csv", "raw.jsonl", "m.jsonl", "m.parquet")]
    lists.append(listed("-", stdin=[f"{tmp_path}/{os.fsdecode(name)}\n"]))
    with Reader() as reader:
        for items in lists:
            (item,) = items
            assert reader.read(item) == b"picture"
            assert item.uri == f"{tmp_path}/caf\\xe9.jpg"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("m.csv", "", "line 1: no column uri, path, image_path, url among"),
        ("m.csv", "name,id\n", "line 1: no column .* among 'name', 'id'"),
        ("m.csv", "uri,id\n1.jpg,a\n\n2.jpg\n", "line 4: 1 columns, the header has 2"),
        ("m.csv", 'uri,id\n"1\n.jpg",a\n,b\n', "line 4: no path or URI: ''"),
        ("m.csv", 'uri\n1.jpg\n"2.jpg', "line 3: unexpected end of data"),
        ("m.csv", "uri\n1.jpg\n2\0.jpg\n", "line 3: "),
        ("m.csv", "uri\nnope://x/1.jpg\n", "line 2: nope://x/1.jpg: no file system is known for nope://"),
        ("m.csv", "uri\nfile://rel.jpg\n", "line 2: not an absolute path"),
        ("m.csv", "uri,id\n", "m.csv: names no picture"),
        ("m.jsonl", '{"uri": "1.jpg"}\n{"uri": \n', "line 2: not JSON: "),
        ("m.jsonl", "[1]\n", "line 1: not a JSON object"),
        ("m.jsonl", '{"id": "1"}\n', "line 1: no column uri"),
        ("m.jsonl", '\n{"uri": null}\n', "line 2: no path or URI: None"),
        ("m.jsonl", '{"uri": "1.jpg", "id": 1.5}\n', "line 1: id must be text or a whole number, got 1.5"),
        ("m.jsonl", '{"uri": "1.jpg", "id": true}\n', "line 1: id must be text"),
        ("m.jsonl", '{"uri": "\\ud800.jpg"}\n', "line 1: holds half a character"),
        ("m.jsonl", '{"uri": "1.jpg", "id": "\\udfff"}\n', "line 1: holds half a character"),
        ("m.jsonl", '{"uri": "1\\u0000.jpg"}\n', "line 1: a path cannot hold a null character"),
        ("m.jsonl", "[" * 100_000, "line 1: not JSON"),
        ("m.parquet", "not Parquet", "m.parquet: not a Parquet file"),
    ],
)
def test_a_bad_line_is_refused_by_its_number(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=message):
        list(listed(str(tmp_path / name)))


def test_a_parquet_manifest_with_a_hole_or_without_a_column_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.parquet"
    pq.write_table(pa.table({"uri": ["1.jpg", None]}), path)
    with pytest.raises(ConfigError, match="row 1: no path or URI: None"):
        list(listed(str(path)))
    pq.write_table(pa.table({"name": ["1.jpg"]}), path)
    with pytest.raises(ConfigError, match="no column uri, path, image_path, url among 'name'; nor one of bytes"):
        list(listed(str(path)))


def test_standard_input_is_one_name_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lines = ["cats/1.jpg\n", "\n", "/abs/ 2.jpg\r\n", "memory://x/3.jpg\n", "cats/1.jpg\n", "/ 4.jpg "]
    assert list(listed("-", stdin=lines)) == [
        Item(0, "cats/1.jpg", f"{tmp_path}/cats/1.jpg", f"{tmp_path}/cats/1.jpg", None, len(f"{tmp_path}/")),
        Item(1, "/abs/ 2.jpg", "/abs/ 2.jpg", "/abs/ 2.jpg"),
        Item(2, "memory://x/3.jpg", "memory://x/3.jpg", "memory://x/3.jpg"),
        Item(3, "cats/1.jpg", f"{tmp_path}/cats/1.jpg", f"{tmp_path}/cats/1.jpg", None, len(f"{tmp_path}/")),
        Item(4, "/ 4.jpg ", "/ 4.jpg ", "/ 4.jpg "),
    ]
    for nothing in ([], ["\n"], None):
        with pytest.raises(ConfigError, match="-: names no picture"):
            list(listed("-", stdin=nothing))


def test_what_a_list_names_and_nobody_has_is_unreadable_not_an_error_of_the_list() -> None:
    (item,) = listed("-", stdin=["/nowhere/1.jpg"])
    with Reader() as reader, pytest.raises(Unreadable, match="No such file or directory"):
        reader.read(item)
