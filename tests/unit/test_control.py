"""Orders and polls on one thread: who is answered what, and what happens when the server goes down meanwhile."""

from __future__ import annotations

import queue
import threading
from pathlib import Path

import pytest

from attnserve.control import IndexEntry, ModelControl
from attnserve.errors import ConfigError, FailedPrecondition, Internal, NotFound, Overloaded, Unavailable
from attnserve.lifecycle import Status
from attnserve.models import Models, Shelf

PATIENCE_S = 10.0


class PuppetKeeper:
    """Notes what it is told to do; `follow` waits for `go` where that is cleared."""

    def __init__(self) -> None:
        self.followed: queue.Queue[tuple[str, bool, bool]] = queue.Queue()
        self.names: list[str] = []
        self.reason = ""
        self.error: Exception | None = None
        self.closed = False
        self.go = threading.Event()
        self.go.set()

    def follow(self, name, look, *, retry=False) -> str:
        self.followed.put((name, look is not None, retry))
        assert self.go.wait(PATIENCE_S)
        if self.error:
            raise self.error
        return self.reason

    def unload(self, name) -> None:
        self.followed.put((name, False, False))

    def close(self) -> None:
        self.closed = True

    def next(self) -> tuple[str, bool, bool]:
        return self.followed.get(timeout=PATIENCE_S)


@pytest.fixture
def keeper():
    return PuppetKeeper()


@pytest.fixture
def models():
    return Models()


@pytest.fixture
def start(tmp_path, keeper, models):
    started = []

    def make(
        mode: str = "explicit", poll_s: float = 0.01, wanted: str = "", exit_on_error: bool = True
    ) -> ModelControl:
        control = ModelControl(tmp_path, models, lambda _: keeper, mode=mode, poll_s=poll_s)
        started.append(control)
        control.load_at_start(wanted, exit_on_error=exit_on_error)
        control.start()
        return control

    yield make
    keeper.go.set()
    for control in started:
        control.close()


@pytest.fixture
def answers():
    return queue.Queue()


def answer(answers):
    return answers.get(timeout=PATIENCE_S)


def write(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name / "1").mkdir(parents=True)


@pytest.mark.parametrize(
    ("mode", "wanted", "loaded"),
    [
        ("none", "", ["ant", "bee", "cat"]),
        ("poll", "", ["ant", "bee", "cat"]),
        ("explicit", "", []),
        ("explicit", "cat, ant,", ["cat", "ant"]),
        ("explicit", "*", ["ant", "bee", "cat"]),
    ],
)
def test_what_is_loaded_at_the_start(start, tmp_path, keeper, mode, wanted, loaded):
    write(tmp_path, "ant", "bee", "cat")
    start(mode, poll_s=60, wanted=wanted)
    assert [keeper.next()[0] for _ in loaded] == loaded
    assert keeper.followed.empty()


def test_an_empty_repository_is_refused_only_where_nothing_could_come_later(start):
    for mode in ("poll", "explicit"):
        start(mode)
    with pytest.raises(ConfigError, match="holds no model"):
        start("none")


def test_a_model_that_fails_at_the_start_ends_it_or_does_not(start, tmp_path, keeper):
    write(tmp_path, "ant", "bee")
    keeper.reason = "broken"
    start("none", exit_on_error=False)
    assert keeper.followed.qsize() == 2
    with pytest.raises(ConfigError, match="broken"):
        start("none")
    assert keeper.closed


@pytest.mark.parametrize(
    ("reason", "error", "heard", "message"),
    [
        ("", None, type(None), "None"),
        ("SHA-256", None, FailedPrecondition, "failed to load 'net': SHA-256"),
        ("", RuntimeError("secret"), Internal, "internal error"),
        ("", ConfigError("no folder"), FailedPrecondition, "no folder"),
    ],
)
def test_a_load_is_answered_with_what_came_of_it(start, tmp_path, keeper, answers, reason, error, heard, message):
    write(tmp_path, "net")
    control = start()
    keeper.reason, keeper.error = reason, error
    control.load("net", answers.put)
    assert keeper.next() == ("net", True, True)
    said = answer(answers)
    assert isinstance(said, heard)
    assert str(said) == message
    keeper.reason, keeper.error = "", None
    control.load("net", answers.put)  # the thread lives on
    assert answer(answers) is None


@pytest.mark.parametrize("name", ["nope", "", "..", "../net", ".hidden"])
def test_what_is_not_in_the_repository_is_not_found(start, tmp_path, answers, name):
    write(tmp_path, "net", ".hidden")
    control = start()
    for order in (control.load, control.unload):
        order(name, answers.put)
        assert isinstance(answer(answers), NotFound)


def test_a_loaded_model_whose_folder_is_gone_can_be_unloaded(start, keeper, answers):
    control = start()
    keeper.names = ["net"]
    control.unload("net", answers.put)
    assert answer(answers) is None
    assert keeper.next() == ("net", False, False)


@pytest.mark.parametrize("mode", ["none", "poll"])
def test_other_modes_take_no_orders(start, tmp_path, answers, mode):
    write(tmp_path, "net")
    control = start(mode)
    for order in (control.load, control.unload):
        with pytest.raises(Unavailable, match=f"model_control_mode is {mode}"):
            order("net", answers.put)


def test_at_the_end_whoever_waits_is_answered_once_and_nothing_new_begins(start, tmp_path, keeper, answers):
    write(tmp_path, "net")
    control = start()
    keeper.go.clear()
    for _ in range(3):
        control.load("net", answers.put)
    keeper.next()
    control.stop()
    assert [type(answer(answers)) for _ in range(3)] == [Unavailable] * 3
    with pytest.raises(Unavailable, match="shutting down"):
        control.load("net", answers.put)
    keeper.go.set()
    assert control.close()
    assert keeper.followed.empty()
    assert answers.empty()


def test_the_end_does_not_wait_for_a_load(start, tmp_path, keeper, answers):
    write(tmp_path, "net")
    control = start()
    keeper.go.clear()
    control.load("net", answers.put)
    keeper.next()
    assert not control.close()


def test_more_orders_than_anybody_would_wait_for_are_refused(start, tmp_path, keeper, answers):
    write(tmp_path, "net")
    control = start()
    keeper.go.clear()
    for _ in range(64):
        control.load("net", answers.put)
    with pytest.raises(Overloaded) as caught:
        control.load("net", answers.put)
    assert caught.value.retry_after_s == 1
    keeper.go.set()
    assert [answer(answers) for _ in range(64)] == [None] * 64


def test_a_poll_acts_on_what_looks_the_same_twice_and_on_what_is_gone(start, tmp_path, keeper):
    write(tmp_path, "ant")
    start("poll")
    assert {keeper.next() for _ in range(3)} == {("ant", True, False)}
    keeper.names = ["gone"]
    seen = {keeper.next() for _ in range(10)}
    assert seen == {("ant", True, False), ("gone", False, False)}


def test_a_repository_that_cannot_be_read_is_no_empty_one(tmp_path, keeper, caplog):
    write(tmp_path / "models", "ant")
    control = ModelControl(tmp_path / "models", Models(), lambda _: keeper, mode="poll", poll_s=0.01)
    control.load_at_start("", exit_on_error=True)
    keeper.names = ["ant"]
    (tmp_path / "models").rename(tmp_path / "elsewhere")
    keeper.next()
    control.start()
    with pytest.raises(queue.Empty):
        keeper.followed.get(timeout=0.2)
    control.close()
    assert "everything stays as it is" in caplog.text


def test_the_index_holds_what_lies_on_disk_and_what_is_loaded(start, tmp_path, models):
    write(tmp_path, "ant", "bee", "cat")
    control = start()
    models.put("bee", Shelf({}, {"1": Status("UNAVAILABLE", "broken"), "2": Status("READY")}))
    models.put("cat", Shelf({}, {"1": Status("UNAVAILABLE", "unloaded")}))
    models.put("gone", Shelf({}, {"1": Status("UNLOADING"), "2": Status("UNAVAILABLE", "unloaded")}))
    assert control.index() == [
        IndexEntry("ant", "", "", ""),
        IndexEntry("bee", "1", "UNAVAILABLE", "broken"),
        IndexEntry("bee", "2", "READY", ""),
        IndexEntry("cat", "1", "UNAVAILABLE", "unloaded"),
        IndexEntry("gone", "1", "UNLOADING", ""),
    ]
