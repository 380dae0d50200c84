"""Lists of pictures: CSV, JSON lines and Parquet manifests, and lines of text.

Owns their columns, how a name in one leads to a file, and that a bad line is refused by its number.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import BinaryIO

import pyarrow.parquet as pq

from attnserve.errors import ConfigError
from attnserve.scoring.inputs_files import LOCAL_SCHEMES, SCHEME, driver, joined, scheme_of
from attnserve.scoring.inputs_parquet import BYTES_COLUMNS, ID_COLUMN, values
from attnserve.scoring.items import Found, printable

URI_COLUMNS = ("uri", "path", "image_path", "url")
CSV_SUFFIXES = (".csv",)
JSON_SUFFIXES = (".jsonl", ".ndjson")

Row = tuple[str, object, object]
"""Where it stands (`FILE: line 3`), the picture's URI, its id or None."""


def uri_column(names: Iterable[str]) -> str | None:
    """The column that names the pictures, or None."""
    present = set(names)
    return next((name for name in URI_COLUMNS if name in present), None)


def csv_rows(file: BinaryIO, shown: str) -> Iterator[Row]:
    """The rows of a CSV file with a header; closes the file."""
    line = 1
    with _text(file, newline="") as text:
        reader = csv.reader(text, strict=True)
        try:
            header = next(reader, [])
            at = header.index(_required(header, f"{shown}: line 1"))
            id_at = header.index(ID_COLUMN) if ID_COLUMN in header else None
            line = reader.line_num + 1
            for cells in reader:
                where = f"{shown}: line {line}"
                line = reader.line_num + 1
                if not cells:  # an empty line is no row
                    continue
                if len(cells) != len(header):
                    raise ConfigError(f"{where}: {len(cells)} columns, the header has {len(header)}")
                yield where, cells[at], None if id_at is None else cells[id_at]
        except csv.Error as error:
            raise ConfigError(f"{shown}: line {line}: {error}") from error


def json_rows(file: BinaryIO, shown: str) -> Iterator[Row]:
    """The rows of a file with one JSON object a line; closes the file."""
    with _text(file, newline="\n") as text:
        for number, line in enumerate(text, start=1):
            if line.strip():
                yield _json_row(line, f"{shown}: line {number}")


def _json_row(line: str, where: str) -> Row:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where}: not JSON: {error}") from error
    if not isinstance(row, dict):
        raise ConfigError(f"{where}: not a JSON object")
    return where, row[_required(row, where)], row.get(ID_COLUMN)


def parquet_rows(file: pq.ParquetFile, shown: str) -> Iterator[Row]:
    """The rows of a Parquet file that names pictures."""
    names = file.schema_arrow.names
    uri = uri_column(names)
    if uri is None:
        raise ConfigError(
            f"{shown}: no column {', '.join(URI_COLUMNS)} among {', '.join(map(repr, names))};"
            f" nor one of bytes ({', '.join(BYTES_COLUMNS)})"
        )
    columns = [uri, *([ID_COLUMN] if ID_COLUMN in names else [])]
    for number, row in enumerate(values(file, columns, shown)):
        yield f"{shown}: row {number}", row[0], row[1] if len(row) > 1 else None


def text_rows(lines: Iterable[str], shown: str) -> Iterator[Row]:
    """One path or URI a line; empty lines are none."""
    for number, line in enumerate(lines, start=1):
        if name := line.rstrip("\r\n"):
            yield f"{shown}: line {number}", name, None


def found(rows: Iterable[Row], folder: str, mount: int) -> Iterator[Found]:
    """The pictures that the rows name; relative names lie in `folder`, of which a `mount` says where it is here."""
    for where, uri, name in rows:
        if isinstance(uri, bytes):
            uri = os.fsdecode(uri)
        if not isinstance(uri, str) or not uri:
            raise ConfigError(f"{where}: no path or URI: {uri!r}")
        if "\0" in uri:
            raise ConfigError(f"{where}: a path cannot hold a null character")
        yield shown_id(name, where) or shown_id(uri, where), *_located(uri, folder, mount, where)


def shown_id(value: object, where: str) -> str:
    """An id as text, empty where there is none; raises `ConfigError` where it is neither text nor a whole number."""
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ConfigError(f"{where}: {ID_COLUMN} must be text or a whole number, got {value!r}")
    try:
        return printable(str(value))
    except UnicodeEncodeError:
        raise ConfigError(f"{where}: holds half a character: {value!a}") from None


def _located(uri: str, folder: str, mount: int, where: str) -> tuple[str, str, None, int]:
    scheme = scheme_of(uri)
    if scheme in LOCAL_SCHEMES:
        path = SCHEME.sub("", uri, count=1)
        if not path.startswith("/"):
            raise ConfigError(f"{where}: not an absolute path: {uri!r}")
        return printable(path), path, None, 0
    if scheme is not None:
        try:
            driver(uri)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from error
        return printable(uri), uri, None, 0
    if uri.startswith("/"):
        return printable(uri), uri, None, 0
    path = joined(folder, uri)
    return printable(path), path, None, mount


def _text(file: BinaryIO, newline: str) -> io.TextIOWrapper:
    """Its lines as text; bytes that are not UTF-8 as `os.fsdecode` has them, for they may be a file's name."""
    return io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline=newline)


def _required(names: Sequence[str] | dict[str, object], where: str) -> str:
    name = uri_column(names)
    if name is None:
        raise ConfigError(f"{where}: no column {', '.join(URI_COLUMNS)} among {', '.join(map(repr, names))}")
    return name
