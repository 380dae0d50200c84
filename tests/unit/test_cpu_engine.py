"""Opening and measuring placements, with sessions that compute nothing."""

from __future__ import annotations

import os
import threading

import numpy as np
import pytest

from attnserve import cpu_engine
from attnserve.cpu_engine import BUDGET_S, PinnedBackend, best_crew, measured, open_crew
from attnserve.placement import Measured, Node, Placement

ONE = [Node(frozenset(range(4)), 4)]
LEFT, RIGHT = frozenset({0, 1, 2, 3}), frozenset({4, 5, 6, 7})
TWO = [Node(LEFT, 4), Node(RIGHT, 4)]


class Puppet:
    """A session that remembers what it ran."""

    provider, height, width, output_types, output_shapes = "Puppet", 2, 2, {}, {}
    outputs = ("probabilities", "features")

    def __init__(self, workers: int, threads: int) -> None:
        self.workers, self.threads = workers, threads
        self.runs: list[tuple[int, tuple[str, ...]]] = []
        self.threads_that_ran: set[int] = set()

    def backend(self):
        return self

    def run(self, images, outputs):
        self.threads_that_ran.add(threading.get_ident())
        self.runs.append((len(images), tuple(outputs)))
        return {name: np.zeros((len(images), 1)) for name in outputs}

    def warm_up(self, batch_sizes):
        return dict.fromkeys(batch_sizes, 0.5)


def opened(placement: str, nodes=ONE, **kwargs):
    crew = open_crew(Puppet, Placement(*map(int, placement.split("x"))), nodes, **kwargs)
    return [(session.workers, session.threads) for session in crew.sessions], crew


def test_workers_of_one_thread_share_a_session():
    sessions, crew = opened("4x1")
    assert sessions == [(4, 1)]
    assert crew.backends == [crew.sessions[0]] * 4


def test_workers_whose_runs_are_shared_by_threads_have_a_session_each():
    sessions, crew = opened("2x2")
    assert sessions == [(1, 2), (1, 2)]
    assert crew.backends == crew.sessions


def test_an_engine_with_streams_of_its_own_serves_all_workers_by_one_session():
    assert opened("2x2", pools=False)[0] == [(2, 2)]


def test_each_node_has_its_session_opened_and_run_by_threads_that_stay_on_it():
    pinned: list[tuple[frozenset[int], int]] = []
    here, before = threading.get_ident(), frozenset(os.sched_getaffinity(0))
    sessions, crew = opened("4x1", TWO, pin=lambda cpus: pinned.append((cpus, threading.get_ident())))
    assert sessions == [(2, 1), (2, 1)]
    assert pinned == [(LEFT, here), (before, here), (RIGHT, here), (before, here)]
    pinned.clear()
    for backend in crew.backends:
        for _ in range(2):
            worker = threading.Thread(target=lambda backend=backend: [backend.run([0], []) for _ in range(3)])
            worker.start()
            worker.join()
    assert [cpus for cpus, _ in pinned] == [LEFT, LEFT, LEFT, LEFT, RIGHT, RIGHT, RIGHT, RIGHT]
    assert here not in {thread for _, thread in pinned}


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two CPUs")
def test_the_system_keeps_a_worker_and_what_its_session_starts_where_they_belong():
    before = os.sched_getaffinity(0)
    first, second = sorted(before)[:2]
    opened_on = []

    def open_session(workers: int, threads: int) -> Puppet:
        starter = threading.Thread(target=lambda: opened_on.append(os.sched_getaffinity(0)))  # as a pool's would
        starter.start()
        starter.join()
        return Puppet(workers, threads)

    crew = open_crew(open_session, Placement(2, 1), [Node(frozenset({first}), 1), Node(frozenset({second}), 1)])
    assert opened_on == [{first}, {second}]
    ran_on = []

    def work(backend) -> None:
        backend.run([0], [])
        ran_on.append(os.sched_getaffinity(0))

    for backend in crew.backends:
        worker = threading.Thread(target=work, args=(backend,))
        worker.start()
        worker.join()
    assert ran_on == [{first}, {second}]
    assert os.sched_getaffinity(0) == before


def test_a_pinned_backend_gives_what_the_backend_gives():
    backend = PinnedBackend(Puppet(1, 1), LEFT, pin=lambda _: None)
    assert backend.outputs == ("probabilities", "features")
    assert backend.run(np.zeros((3, 2, 2, 3), np.uint8), ["features"])["features"].shape == (3, 1)


def chosen(profile: str, figures: dict[str, tuple[float, float]], clock=lambda: 0.0):
    tried = []

    def measure(crew):
        tried.append(str(crew.placement))
        return Measured(*figures[tried[-1]])

    best = str(best_crew(Puppet, profile, ONE, measure=measure, clock=clock).placement)
    assert tried[0::8] == tried[2::8] == tried[4::8] == tried[6::8]  # by turns
    assert tried[1::8] == tried[3::8] == tried[5::8] == tried[7::8]
    return best, [placement for start in range(0, len(tried), 8) for placement in tried[start : start + 2]]


def test_the_best_round_of_each_counts():
    rates = iter([10.0, 40.0, 50.0, 30.0, 20.0, 35.0, 10.0, 20.0, *[1.0, 50.0] * 4])
    best = best_crew(Puppet, "throughput", ONE, measure=lambda _: Measured(next(rates), 1.0))
    assert str(best.placement) == "2x2"


FIGURES = {"4x1": (40.0, 0.10), "2x2": (50.0, 0.06), "1x4": (30.0, 0.04)}


def test_the_best_by_measurement_is_kept_and_each_is_measured_beside_the_best_before_it():
    assert chosen("throughput", FIGURES) == ("2x2", ["2x2", "4x1", "1x4", "2x2"])
    assert chosen("latency", FIGURES) == ("1x4", ["1x4", "4x1", "2x2", "1x4"])


def test_one_worker_per_core_stays_where_nothing_is_clearly_better():
    assert chosen("throughput", {"4x1": (40.0, 0.1), "2x2": (43.0, 0.1), "1x4": (20.0, 0.1)})[0] == "4x1"


def test_no_further_placement_is_tried_when_the_time_is_over(caplog):
    caplog.set_level("INFO", cpu_engine.__name__)
    times = iter([0.0, 0.0, BUDGET_S + 0.1])
    assert chosen("throughput", FIGURES, lambda: next(times)) == ("2x2", ["2x2", "4x1"])
    assert "placements not tried, as the time for it is over: 1x4" in caplog.text


def test_a_crew_is_measured_with_all_its_workers_and_with_one_by_threads_of_its_own():
    crew = opened("2x2")[1]
    found = measured(crew)
    threads = {thread for session in crew.sessions for thread in session.threads_that_ran}
    assert found.images_per_s > 0
    assert 0 < found.image_s < 0.1
    assert {size for session in crew.sessions for size, _ in session.runs} == {1, 8}
    assert all(session.runs for session in crew.sessions)
    assert threading.get_ident() not in threads


@pytest.mark.parametrize(("placement", "largest"), [("4x1", []), ("2x2", [(8, Puppet.outputs)])])
def test_the_table_is_the_first_sessions_and_the_others_run_their_largest_batch(placement, largest):
    crew = opened(placement)[1]
    assert cpu_engine.warm_up(crew, [1, 8]) == {1: 0.5, 8: 0.5}
    assert crew.sessions[-1].runs == largest
