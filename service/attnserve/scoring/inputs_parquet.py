"""Parquet files that hold pictures: which column, which rows, and the bytes of a row.

Owns reading a column's values in bounded memory; knows no URL.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from attnserve.errors import ConfigError
from attnserve.scoring.items import Unreadable

PARQUET_SUFFIXES = (".parquet", ".pq")
BYTES_COLUMNS = ("image", "bytes", "image_bytes", "jpg")
ID_COLUMN = "id"
LIST_ROWS = 4096
BATCH_BYTES = 8 * 2**20  # so much of a column is decoded at a time, but at least one of the file's pages
MOST_BATCHES = 8  # kept: readers in several threads are seldom further apart
MOST_GROUPS = 2  # read at once: the readers of a job cross from one to the next together


def opened(file: BinaryIO, shown: str) -> pq.ParquetFile:
    """The Parquet file, its footer read; raises `ConfigError` where it is none."""
    try:
        return _opened(file)
    except (pa.ArrowException, OSError) as error:
        raise ConfigError(f"{shown}: not a Parquet file, or damaged: {error}") from error


def _opened(file: BinaryIO) -> pq.ParquetFile:
    return pq.ParquetFile(file, buffer_size=2**20, pre_buffer=False)


def bytes_column(schema: pa.Schema, shown: str) -> str | None:
    """The column that holds pictures' bytes, as such or as `bytes` in a struct (Hugging Face), or None."""
    named = [name for name in BYTES_COLUMNS if name in schema.names and _holds_bytes(schema.field(name).type)]
    if named:
        return named[0]
    structs = [field.name for field in schema if pa.types.is_struct(field.type) and _holds_bytes(field.type)]
    if len(structs) > 1:
        raise ConfigError(f"{shown}: several columns hold bytes: {', '.join(structs)}; call one {BYTES_COLUMNS[0]}")
    return structs[0] if structs else None


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        place = kind.get_field_index("bytes")
        return place >= 0 and _holds_bytes(kind.field(place).type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def values(file: pq.ParquetFile, columns: list[str], shown: str) -> Iterator[tuple[object, ...]]:
    """The rows of those columns, in order, as Python values."""
    try:
        for batch in file.iter_batches(LIST_ROWS, columns=columns, use_threads=False):
            yield from zip(*(batch.column(name).to_pylist() for name in columns), strict=True)
    except (pa.ArrowException, OSError, UnicodeDecodeError, KeyError) as error:
        raise ConfigError(f"{shown}: damaged: {error}") from error


def places(file: pq.ParquetFile, shown: str) -> Iterator[tuple[int, int, object]]:
    """Row group, row within it, and the value of the column `id` (None where there is none), of every row."""
    groups = range(file.metadata.num_row_groups)
    rows = ((group, row) for group in groups for row in range(file.metadata.row_group(group).num_rows))
    if ID_COLUMN not in file.schema_arrow.names:
        return ((group, row, None) for group, row in rows)
    ids = values(file, [ID_COLUMN], shown)
    return ((group, row, name) for (group, row), (name,) in zip(rows, ids, strict=True))


class Pictures:
    """The bytes in one column of a Parquet file, for several threads.

    A row group is read from its start onwards, a few megabytes at a time, so rows asked for in about the file's order
    cost little, and no group is held whole; going back costs reading the group again. Owns the file, also if it fails.
    """

    def __init__(self, file: BinaryIO, column: str) -> None:
        self._file = file
        self._column = column
        self._lock = threading.Lock()
        try:
            self._parquet = _opened(file)
        except Exception:
            file.close()
            raise
        self._under_way: OrderedDict[int, tuple[int, Iterator[pa.RecordBatch]]] = OrderedDict()
        self._batches: OrderedDict[tuple[int, int], pa.Array] = OrderedDict()
        self._damage: dict[int, tuple[int, str]] = {}

    def read(self, group: int, row: int) -> bytes:
        """The bytes of that row.

        Raises:
            Unreadable: There are none, or the file is damaged before them or among those decoded with them.
            Exception: What the file system raises; reading again may help.
        """
        with self._lock:
            value = self._value(group, row)
        if isinstance(value, pa.StructScalar):
            value = value["bytes"] if value.is_valid else value
        if not value.is_valid:
            raise Unreadable(f"column {self._column} is null")
        return bytes(value.as_buffer())

    def close(self) -> None:
        """Nothing can be read any more."""
        with self._lock:
            self._under_way.clear()
            self._batches.clear()
            self._parquet.close()
            self._file.close()

    def _value(self, group: int, row: int) -> pa.Scalar:
        for (within, start), batch in self._batches.items():
            if within == group and start <= row < start + len(batch):
                self._batches.move_to_end((within, start))
                return batch[row - start]
        damaged_from, damage = self._damage.get(group, (row + 1, ""))
        if damaged_from <= row:
            raise Unreadable(damage)
        start, rest = self._under_way.pop(group, (0, None))
        if rest is None or start > row:
            start, rest = 0, self._from_the_start(group)
        while True:
            batch = self._next(group, start, rest)
            end = start + len(batch)
            self._batches[group, start] = batch
            while len(self._batches) > MOST_BATCHES:
                self._batches.popitem(last=False)
            if row < end:
                self._under_way[group] = end, rest
                while len(self._under_way) > MOST_GROUPS:
                    self._under_way.popitem(last=False)
                return batch[row - start]
            start = end

    def _from_the_start(self, group: int) -> Iterator[pa.RecordBatch]:
        held = self._parquet.metadata.row_group(group)
        chunks = (held.column(i) for i in range(held.num_columns))
        size = sum(
            chunk.total_uncompressed_size
            for chunk in chunks
            if f"{chunk.path_in_schema}.".startswith(f"{self._column}.")
        )
        rows = max(1, min(LIST_ROWS, BATCH_BYTES * held.num_rows // max(1, size)))
        yield from self._parquet.iter_batches(rows, row_groups=[group], columns=[self._column], use_threads=False)

    def _next(self, group: int, start: int, rest: Iterator[pa.RecordBatch]) -> pa.Array:
        """The values from `start` onwards; damage is remembered, for each row after it would meet it again."""
        try:
            return next(rest).column(0)
        except StopIteration:
            damage = "the row group ends before this row"
        except (pa.ArrowException, OSError) as error:
            if not isinstance(error, pa.ArrowException) and not is_arrows(error):
                raise
            damage = f"damaged Parquet: {error}"
        self._damage[group] = start, damage
        raise Unreadable(damage)


def is_arrows(error: OSError) -> bool:
    """Whether Arrow says with it that the file is damaged; a system's or driver's own has a number or a class."""
    return type(error) is OSError and error.errno is None
