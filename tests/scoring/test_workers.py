"""Processes that score chunks: results in order, exactly one for each, whoever dies meanwhile."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from attnserve.errors import ConfigError
from attnserve.scoring.rows import Scored
from attnserve.scoring.workers import MOST_DEATHS, WorkerDied, Workers

SECONDS = {"slow": 0.5, "endless": 60.0}


@dataclass(frozen=True)
class Puppet:
    """An item that says what its worker does with it."""

    index: int
    do: str = ""

    @property
    def id(self) -> str:
        return str(self.index)


class DriverError(Exception):
    """Cannot be made anew from its words."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(f"{status}: {reason}")


@dataclass(frozen=True)
class PuppetRecipe:
    folder: Path
    fails: str = ""

    def open(self) -> PuppetScorer:
        if self.fails:
            raise ConfigError(self.fails)
        return PuppetScorer(self.folder)


class PuppetScorer:
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def close(self) -> None:
        (self._folder / f"closed-{os.getpid()}").touch()

    def score(self, items) -> Scored:
        for item in items:
            if item.do == "raise what cannot travel":
                raise DriverError(403, "denied")
            if item.do == "raise":
                raise ConfigError("the model has changed")
            if item.do == "die" or (item.do == "die once" and not (self._folder / "died").exists()):
                (self._folder / "died").touch()
                os.kill(os.getpid(), signal.SIGKILL)
            if item.do == "touch":
                (self._folder / "touched").touch()
            if item.do in SECONDS:
                time.sleep(SECONDS[item.do])
        return Scored([item.id for item in items], np.zeros((0, 1), np.float32), seconds=os.getpid())


def chunks(*actions: str) -> list[list[Puppet]]:
    """One item in each."""
    return [[Puppet(index, action)] for index, action in enumerate(actions)]


def answers(found) -> list[tuple[int, list]]:
    return [(items[0].index, scored.errors) for items, scored in found]


def test_results_come_in_the_order_of_the_chunks_and_every_worker_gets_some(tmp_path):
    with Workers(PuppetRecipe(tmp_path), 2) as workers:
        found = list(workers.scored(chunks("slow", *[""] * 9)))
    assert answers(found) == [(index, [str(index)]) for index in range(10)]
    assert len({scored.seconds for _, scored in found}) == 2
    assert len(list(tmp_path.glob("closed-*"))) == 2


def test_only_a_few_chunks_are_read_ahead(tmp_path):
    read = []

    def source():
        for chunk in chunks(*[""] * 50):
            read.append(chunk)
            yield chunk

    with Workers(PuppetRecipe(tmp_path), 2) as workers:
        found = workers.scored(source())
        next(found)
        assert len(read) <= 6
        assert len(list(found)) == 49


def test_a_worker_has_its_next_chunk_while_the_results_before_are_used(tmp_path):
    with Workers(PuppetRecipe(tmp_path), 1) as workers:
        found = workers.scored(chunks("", "touch", ""))
        next(found)
        end = time.monotonic() + 10
        while not (tmp_path / "touched").exists():
            assert time.monotonic() < end
            time.sleep(0.01)
        assert [items[0].index for items, _ in found] == [1, 2]


def test_a_worker_that_dies_is_replaced_and_nothing_is_lost_or_scored_twice(tmp_path):
    with Workers(PuppetRecipe(tmp_path), 2) as workers:
        found = list(workers.scored(chunks("", "", "die once", "", "")))
    assert answers(found) == [(index, [str(index)]) for index in range(5)]
    assert (tmp_path / "died").exists()


def test_what_kills_every_worker_stops_the_job_and_is_named(tmp_path):
    with Workers(PuppetRecipe(tmp_path), 2) as workers:
        found = workers.scored(chunks("", "die", ""))
        assert next(found)[0][0].index == 0
        with pytest.raises(WorkerDied, match=f"{MOST_DEATHS} workers died over '1' to '1'"):
            next(found)


@pytest.mark.parametrize(("recipe", "action", "text"), [("", "raise", "has changed"), ("no such model", "", "no such")])
def test_what_a_scorer_says_of_the_whole_job_is_raised(tmp_path, recipe, action, text):
    with Workers(PuppetRecipe(tmp_path, recipe), 1) as workers, pytest.raises(ConfigError, match=text):
        list(workers.scored(chunks(action)))


def test_an_error_that_cannot_be_pickled_arrives_in_words(tmp_path):
    with (
        Workers(PuppetRecipe(tmp_path), 1) as workers,
        pytest.raises(RuntimeError, match=r"^DriverError: 403: denied$"),
    ):
        list(workers.scored(chunks("raise what cannot travel")))


def test_leaving_early_ends_the_workers_at_once(tmp_path):
    left_at = []

    def leave() -> None:
        with Workers(PuppetRecipe(tmp_path), 2) as workers:
            next(workers.scored(chunks("", *["endless"] * 9)))
            left_at.append(time.monotonic())
            raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        leave()
    assert time.monotonic() - left_at[0] < 10
