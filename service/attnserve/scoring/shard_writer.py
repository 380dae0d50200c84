"""Scores and writes whole shards on whichever machine it is sent to.

Owns what has to be checked there, where the input, the model and the output may be missing; knows nothing of Ray.
"""

from __future__ import annotations

import pickle
import socket
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from attnserve.errors import ConfigError
from attnserve.scoring import shards
from attnserve.scoring.items import Item
from attnserve.scoring.job import Job
from attnserve.scoring.store import Store, store_of
from attnserve.scoring.workers import MOST_DEATHS, Recipe, Scorer, WorkerDied, portable

HEARD = pa.schema([("shard", pa.int64()), ("error", pa.binary())])


def packed(items: Sequence[Item]) -> bytes:
    """Items as they travel: a tenth of what they take in memory."""
    return zlib.compress(pickle.dumps(list(items)), level=1)


def unpacked(data: bytes) -> list[Item]:
    """What was packed."""
    found: list[Item] = pickle.loads(zlib.decompress(data))
    return found


@dataclass(frozen=True)
class Task:
    """What every actor has to know; picklable.

    Attributes:
        recipe: Of the scorers.
        output: URL, or absolute path of a folder that all nodes share.
        chunk: Pictures scored at once: that of the local engine, so that the rows are the same.
    """

    recipe: Recipe
    job: Job
    labels: tuple[str, ...]
    output: str
    chunk: int


class ShardWriter:
    """An actor: scores and writes the shards that it is sent, one at a time. Needs no Ray itself.

    Args:
        begun: Counts a shard as begun, and returns how often it was.
    """

    def __init__(self, task: Task, begun: Callable[[int], int]) -> None:
        self._task = task
        self._begun = begun
        self._store: Store | None = None
        self._scorer: Scorer | None = None

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Write the one shard of a table of `shard` and `items`; returns `HEARD`, with what was raised instead."""
        (row,) = batch.to_pylist()
        error = None
        try:
            self._write(row["shard"], unpacked(row["items"]))
        except Exception as failed:
            error = pickle.dumps(portable(failed))
        return pa.Table.from_pylist([{"shard": row["shard"], "error": error}], HEARD)

    def _write(self, shard: int, items: Sequence[Item]) -> None:
        task = self._task
        if self._begun(shard) > MOST_DEATHS:
            raise WorkerDied(f"{MOST_DEATHS} actors died over {items[0].id!r} to {items[-1].id!r}")
        self._check_input(items[0])
        store = self._store = self._store or self._shared_store()
        scorer = self._scorer = self._scorer or task.recipe.open()
        size = task.chunk
        chunks = (items[start : start + size] for start in range(0, len(items), size))
        results = ((chunk, scorer.score(chunk)) for chunk in chunks)
        shards.write(store, task.job, shard, task.labels, results, lambda _: None)

    def _shared_store(self) -> Store:
        store = store_of(self._task.output)
        if store.job() != self._task.job:
            raise ConfigError(
                f"--output: {store} on {socket.gethostname()} is not where the job was begun: name a URL, or a folder"
                f" that all nodes share"
            )
        return store

    def _check_input(self, item: Item) -> None:
        """Where a node lacks the input's folder, its pictures are not gone: another node has them."""
        folder = item.uri[: item.mount]
        if folder and "\\" not in folder and not Path(folder).is_dir():
            raise ConfigError(f"{folder} is not there on {socket.gethostname()}: all nodes must have the input")
