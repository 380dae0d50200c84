"""Writes a job's shards, one after the other, and finds those that are done."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import pyarrow.parquet as pq

from attnserve.errors import ConfigError
from attnserve.scoring.items import Item, check_there
from attnserve.scoring.job import Job, shard_name
from attnserve.scoring.rows import (
    UNUSABLE,
    RowDigest,
    Scored,
    Tally,
    read_metadata,
    schema,
    shard_metadata,
    table,
    tally,
)
from attnserve.scoring.store import Store

Results = Iterator[tuple[Sequence[Item], Scored]]


def done(store: Store, job: Job) -> dict[int, Tally]:
    """The shards that are written, with what they count. Raises `ConfigError` for one that is another job's."""
    names = set(store.names())
    found: dict[int, Tally] = {}
    for shard in range(job.shards):
        name = shard_name(shard)
        if name in names:
            found[shard] = tally_of(store, job, shard)
    return found


def tally_of(store: Store, job: Job, shard: int) -> Tally:
    """What a shard counts, by its last words; raises `ConfigError` where it is not this job's."""
    name = shard_name(shard)
    try:
        with store.open(name) as file:
            metadata = pq.read_metadata(file).metadata
    except UNUSABLE as error:
        raise ConfigError(f"{store}/{name}: {error}; delete it to have it scored again") from error
    said = read_metadata(metadata)
    if said is None or (said[0].get("job"), said[0].get("shard")) != (job.digest, shard):
        raise ConfigError(f"{store}/{name} is no shard of this job; delete it to have it scored")
    return said[1]


def chunks(
    job: Job, shards: Iterable[int], items: Callable[[int, int], Iterator[Item]], size: int
) -> Iterator[list[Item]]:
    """The items of those shards in pieces of `size`; none spans two shards."""
    for shard in shards:
        rows = job.rows_of(shard)
        for start in range(rows.start, rows.stop, size):
            yield list(items(start, min(start + size, rows.stop)))


def write(
    store: Store, job: Job, shard: int, labels: Sequence[str], results: Results, heard: Callable[[Tally], None]
) -> Tally:
    """Write one shard from as many results as it has rows; returns what it counts.

    Args:
        results: Of the shard's chunks and those after it, in order; the others are left.
        heard: Called with what each chunk counts.
    """
    rows, counted, digest = job.rows_of(shard), Tally(), RowDigest()
    kinds = schema(job.settings)
    with (
        store.written(shard_name(shard)) as path,
        pq.ParquetWriter(path, kinds, compression="zstd", write_page_checksum=True) as writer,
    ):
        while counted.rows < len(rows):
            items, scored = next(results)
            if any(scored.errors):
                check_there(items[-1])
            assert items[0].index == rows.start + counted.rows
            piece = table(items, scored, labels, job.settings)
            digest.add(piece)
            writer.write_table(piece)
            part = tally(items, scored, labels)
            counted.add(part)
            heard(part)
        writer.add_key_value_metadata(_words(shard_metadata(job, shard, counted, digest.hex())))
    return counted


def _words(metadata: dict[bytes, bytes]) -> dict[Any, Any]:
    return {key.decode(): value.decode() for key, value in metadata.items()}
