"""Proves an output: every row is there once, in its shard, as it was written."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.parquet as pq

from attnserve.errors import ConfigError
from attnserve.scoring.job import Job, shard_name, shard_number
from attnserve.scoring.rows import UNUSABLE, RowDigest, Tally, read_metadata, schema
from attnserve.scoring.store import Store

_BATCH_ROWS = 4096


@dataclass
class Verified:
    """What was found.

    Attributes:
        tally: Of the shards that are right.
        problems: In words; empty where the output is whole.
    """

    job: Job
    tally: Tally = field(default_factory=Tally)
    problems: list[str] = field(default_factory=list)


def verify(store: Store) -> Verified:
    """Read every row of an output. Raises `ConfigError` where there is no job."""
    job = store.job()
    if job is None:
        raise ConfigError(f"{store} holds no job")
    found = Verified(job)
    names = store.names()
    for name in names:
        number = shard_number(name)
        if name.endswith(".parquet") and (number is None or number >= job.shards):
            found.problems.append(f"{name} is no shard of this job")
    missing = [shard for shard in range(job.shards) if shard_name(shard) not in names]
    if missing:
        found.problems.append(f"{len(missing)} of {job.shards} shards are missing, {shard_name(missing[0])} for one")
    for shard in sorted(set(range(job.shards)) - set(missing)):
        found.problems += [f"{shard_name(shard)}: {problem}" for problem in _problems(store, job, shard, found.tally)]
    return found


def _problems(store: Store, job: Job, shard: int, counted: Tally) -> Iterator[str]:
    """What is wrong with a shard; adds what a right one counts."""
    rows = job.rows_of(shard)
    digest, expected = RowDigest(), rows.start
    try:
        with store.open(shard_name(shard)) as opened, pq.ParquetFile(opened, page_checksum_verification=True) as file:
            said = read_metadata(file.metadata.metadata)
            if said is None or (said[0].get("job"), said[0].get("shard")) != (job.digest, shard):
                yield "is no shard of this job"
                return
            if file.schema_arrow.remove_metadata() != schema(job.settings):
                yield "its columns are not those of this job"
                return
            for batch in file.iter_batches(_BATCH_ROWS):
                indices = batch.column("index").to_pylist()
                wrong = [at for at, index in enumerate(indices, start=expected) if index != at]
                if wrong:
                    yield f"row {wrong[0]} is not where it belongs"
                    return
                expected += len(indices)
                digest.add(pa.table(batch))
    except UNUSABLE as error:
        yield f"cannot be read: {error}"
        return
    if expected != rows.stop:
        yield f"has {expected - rows.start} rows, {len(rows)} belong there"
    elif digest.hex() != said[0].get("rows_sha256"):
        yield "its rows are not those that were written"
    else:
        counted.add(said[1])
