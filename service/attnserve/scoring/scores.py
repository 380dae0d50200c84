"""A job's rows as Arrow, pandas or Polars."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from attnserve.scoring.job import shard_number
from attnserve.scoring.run import Summary
from attnserve.scoring.store import store_of


@dataclass(frozen=True)
class Scores:
    """What a run leaves.

    Attributes:
        output: The folder or URL of the shards.
        summary: Counts of this run's shards.
    """

    output: str
    summary: Summary

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Every row that is written, in order, a few thousand at a time; other runs' shards too."""
        store = store_of(self.output)
        for name in store.names():
            if shard_number(name) is not None:
                with store.open(name) as file:
                    yield from pq.ParquetFile(file).iter_batches()

    def to_arrow(self) -> pa.Table:
        """All rows, in memory."""
        return pa.Table.from_batches(self.batches())

    def to_pandas(self) -> Any:
        """All rows as a `pandas.DataFrame`; needs pandas."""
        return self.to_arrow().to_pandas()

    def to_polars(self) -> Any:
        """All rows as a `polars.DataFrame`; needs polars."""
        import polars

        return polars.from_arrow(self.to_arrow())
