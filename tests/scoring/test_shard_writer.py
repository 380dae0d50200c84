"""What a Ray actor does with a shard, without Ray: writes it whole, or says what is wrong with the whole job."""

from __future__ import annotations

import pickle
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from attnserve.errors import ConfigError
from attnserve.scoring.items import Item
from attnserve.scoring.job import Job, Settings
from attnserve.scoring.ray_engine import Begun, Cluster
from attnserve.scoring.rows import Scored
from attnserve.scoring.shard_writer import HEARD, ShardWriter, Task, packed
from attnserve.scoring.store import store_of
from attnserve.scoring.verify import verify
from attnserve.scoring.workers import WorkerDied

LABELS = ("even", "odd")
JOB = Job(Settings("parity", "1", "abc", shard_rows=10), 25, "digest")


@dataclass(frozen=True)
class Parity:
    """A model that knows numbers; fails over the one that it is told to."""

    fails_at: int | None = None

    def open(self) -> Parity:
        return self

    def close(self) -> None:
        pass

    def score(self, items) -> Scored:
        if self.fails_at in [item.index for item in items]:
            raise ConfigError("the model has changed since the job was begun")
        probabilities = np.array([[0.75, 0.25], [0.25, 0.75]], np.float32)[[item.index % 2 for item in items]]
        return Scored([None] * len(items), probabilities)


@pytest.fixture
def folder(tmp_path) -> Path:
    """Where the pictures of the job seem to lie."""
    (tmp_path / "in").mkdir()
    return tmp_path / "in"


@pytest.fixture
def write(tmp_path, folder):
    """Has a shard of the job written to `out`, where the job was begun; returns what the actor answers."""
    store_of(str(tmp_path / "out")).begin(JOB)

    def write(shard: int, *, recipe=Parity(), output="out", begun=lambda _: 1) -> Exception | None:
        items = [
            Item(index, f"{index}.png", f"{folder}/{index}.png", f"{folder}/{index}.png", None, len(f"{folder}/"))
            for index in JOB.rows_of(shard)
        ]
        writer = ShardWriter(Task(recipe, JOB, LABELS, str(tmp_path / output), 4), begun)
        answer = writer(pa.Table.from_pylist([{"shard": shard, "items": packed(items)}]))
        assert answer.schema == HEARD
        assert answer.column("shard").to_pylist() == [shard]
        (error,) = answer.column("error").to_pylist()
        return None if error is None else pickle.loads(error)

    return write


def test_a_shard_is_written_whole_with_its_rows_in_order(write, tmp_path):
    assert [write(shard) for shard in (2, 0, 1)] == [None] * 3
    found = verify(store_of(str(tmp_path / "out")))
    assert (found.problems, found.tally.labels) == ([], Counter(even=13, odd=12))
    rows = pq.read_table(tmp_path / "out/shard-00002.parquet")
    assert rows.column("label").to_pylist() == ["even", "odd", "even", "odd", "even"]


def test_a_folder_of_the_nodes_own_is_no_output(write, tmp_path):
    error = write(0, output="elsewhere")
    assert isinstance(error, ConfigError)
    assert "elsewhere on" in str(error)
    assert "is not where the job was begun" in str(error)
    assert not list(tmp_path.rglob("*.parquet"))


def test_pictures_that_a_node_has_not_are_no_broken_pictures(write, folder, tmp_path):
    folder.rmdir()
    error = write(0)
    assert isinstance(error, ConfigError)
    assert f"{folder}/ is not there on" in str(error)
    assert not list(tmp_path.rglob("*.parquet"))


def test_what_a_scorer_raises_is_the_answer_and_leaves_no_shard(write, tmp_path):
    error = write(1, recipe=Parity(fails_at=17))
    assert (type(error), str(error)) == (ConfigError, "the model has changed since the job was begun")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["job.json"]


def test_a_shard_over_which_three_actors_died_is_not_begun_again(write):
    begun = Begun()
    assert [write(0, begun=begun.count) for _ in range(3)] == [None] * 3
    error = write(0, begun=begun.count)
    assert (type(error), str(error)) == (WorkerDied, "3 actors died over '0.png' to '9.png'")
    assert write(1, begun=begun.count) is None


@pytest.mark.parametrize(("gpus", "room"), [(0, 5), (1, 3)])
def test_room_is_what_fits_on_each_node_that_is_alive(gpus, room):
    nodes = [
        {"Alive": True, "Resources": {"CPU": 1.5, "GPU": 2.0}},
        {"Alive": True, "Resources": {"CPU": 4.0, "GPU": 2.0}},
        {"Alive": True, "Resources": {"memory": 9.0}},
        {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}},
    ]
    assert Cluster(gpus=gpus).room(nodes) == room
