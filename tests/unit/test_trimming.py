"""Freed memory goes back when the server is idle and has grown, and at no other time."""

from __future__ import annotations

from concurrent.futures import Future

import pytest

from attnserve.trimming import CALM_S, WORTH_BYTES, Trimmer

START = 200 << 20


class Loop:
    """An event loop whose timers and threads run when the test says so."""

    def __init__(self) -> None:
        self.timers: list[tuple[float, object]] = []
        self.jobs: list[tuple[object, Future[None]]] = []

    def call_soon_threadsafe(self, callback):
        callback()

    def call_later(self, delay_s, callback):
        self.timers.append((delay_s, callback))

    def run_in_executor(self, _, job):
        self.jobs.append((job, Future()))
        return self.jobs[-1][1]

    def ring(self) -> None:
        """The time of every timer has come."""
        timers, self.timers = self.timers, []
        for _, callback in timers:
            callback()

    def work(self) -> None:
        """The thread does what it was given."""
        jobs, self.jobs = self.jobs, []
        for job, future in jobs:
            job()
            future.set_result(None)


class House:
    """A server that is idle and has grown by more than is worth giving back."""

    def __init__(self) -> None:
        self.idle = True
        self.resident_bytes = self.stays = START
        self.given_back = 0
        self.loop = Loop()
        self.trimmer = Trimmer(
            self.loop, lambda: self.idle, resident_bytes=lambda: self.resident_bytes, give_back=self._give_back
        )
        self.resident_bytes += WORTH_BYTES + 1

    def _give_back(self) -> None:
        self.given_back += 1
        self.resident_bytes = self.stays


@pytest.fixture
def house():
    return House()


def test_an_idle_server_that_has_grown_gives_memory_back_after_a_while_on_another_thread(house):
    house.trimmer.on_idle()
    assert [delay_s for delay_s, _ in house.loop.timers] == [CALM_S]
    house.loop.ring()
    assert house.given_back == 0
    house.loop.work()
    assert house.given_back == 1


def test_a_server_in_use_keeps_its_memory_until_it_is_idle_again(house):
    house.trimmer.on_idle()
    house.idle = False
    house.loop.ring()
    assert house.loop.jobs == []
    house.idle = True
    house.trimmer.on_idle()
    house.loop.ring()
    assert len(house.loop.jobs) == 1


def test_a_little_growth_is_not_worth_it(house):
    house.resident_bytes = START + WORTH_BYTES
    house.trimmer.on_idle()
    house.loop.ring()
    assert house.loop.jobs == []


def test_growth_counts_from_what_stayed_when_memory_was_given_back(house):
    house.stays = START + 2 * WORTH_BYTES
    for _ in range(2):
        house.trimmer.on_idle()
        house.loop.ring()
        house.loop.work()
    assert house.given_back == 1


def test_many_idle_moments_are_one_look(house):
    for _ in range(3):
        house.trimmer.on_idle()
    assert len(house.loop.timers) == 1
    house.loop.ring()
    house.trimmer.on_idle()  # while memory is being given back
    assert house.loop.timers == []
    house.loop.work()
    house.trimmer.on_idle()
    assert len(house.loop.timers) == 1
