"""Goodput under more load than there is capacity, for clients of many kinds: the policy and admission, simulated."""

from __future__ import annotations

import heapq
import itertools
import random

import pytest

from attnserve.admission import Admission
from attnserve.batch_queue import BatchQueue, Policy
from attnserve.errors import Overloaded
from attnserve.latency_table import LatencyTable

WORKERS = 2
LIMITS = (100_000, 1)


class House:
    """Two workers, their queue and admission on a simulated clock; clients that ask again as soon as they may."""

    def __init__(self, new_entry, max_batch_size: int, seconds_per_batch: float, seconds_per_row: float) -> None:
        sizes = [size for size in (1, 2, 4, 8, 16, 32, 64) if size <= max_batch_size]
        self.table = LatencyTable({size: seconds_per_batch + seconds_per_row * size for size in sizes})
        self.rows_per_s = WORKERS * max_batch_size / self.table.predicted_s(max_batch_size)
        self._queue = BatchQueue(Policy(max_batch_size), self.table, WORKERS)
        self._admission = Admission(*LIMITS)
        self._random = random.Random(0)
        self._new_entry = new_entry
        self._events: list = []
        self._numbers = itertools.count()
        self._ends: dict[int, float] = {}  # by busy worker
        self._now = 0.0
        self.answered: dict[str, list[float]] = {}  # by client: the seconds that each answer in time took
        self.good_rows = 0

    def _at(self, when: float, what, *arguments) -> None:
        heapq.heappush(self._events, (when, next(self._numbers), what, arguments))

    def add_client(self, name: str, rows: int, timeout_s: float, pause_s: float = 0.0) -> None:
        self.answered[name] = []
        self._at(self._random.random() / 20, self._ask, name, rows, timeout_s, pause_s)

    def run(self, seconds: float) -> None:
        while self._events[0][0] < seconds:
            self._now, _, what, arguments = heapq.heappop(self._events)
            what(*arguments)
            self._launch()

    def _ask(self, name: str, rows: int, timeout_s: float, pause_s: float) -> None:
        again = (name, rows, timeout_s, pause_s)
        limit, total = self._queue.limit, self._queue.rows_ahead(name, 1, rows) + rows
        free = sorted(max(0.0, self._ends.get(worker, 0.0) - self._now) for worker in range(WORKERS))
        rounds, turn = divmod((total - 1) // limit, WORKERS)
        wait_s, run_s = free[turn] + rounds * self.table.predicted_s(limit), self.table.predicted_s(min(limit, total))
        try:
            self._admission.admit(name, rows, 0, wait_s, run_s, timeout_s)
        except Overloaded as error:
            self._at(self._now + error.retry_after_s * self._random.uniform(1, 1.5), self._ask, *again)
            return
        entry = self._new_entry(*[0] * rows, client=name, deadline=self._now + timeout_s)
        entry.on_finished = again
        self._queue.put(entry, self._now)

    def _launch(self) -> None:
        while self._queue.rows and (idle := [worker for worker in range(WORKERS) if worker not in self._ends]):
            batch, dropped = self._queue.take(self._now, len(idle))
            for entry in dropped:
                self._finish(entry)
            if batch.rows:
                took = self.table.predicted_s(batch.rows) * self._random.uniform(0.9, 1.1)
                self._ends[idle[0]] = self._now + took
                self._at(self._now + took, self._end, idle[0], batch)

    def _end(self, worker: int, batch) -> None:
        del self._ends[worker]
        for entry, start, stop in batch.slices:
            entry.outstanding -= stop - start
            if not entry.waiting or entry.error:
                self._finish(entry)

    def _finish(self, entry) -> None:
        if entry.outstanding:
            return
        name, _, _, pause_s = again = entry.on_finished
        self._admission.release(name, entry.rows, 0)
        if entry.error is None and self._now <= entry.deadline:
            self.good_rows += entry.rows
            self.answered[name].append(self._now - entry.enqueued_at)
        self._at(self._now + pause_s, self._ask, *again)


R50 = {"max_batch_size": 8, "seconds_per_batch": 0.0, "seconds_per_row": 0.08}
SMALL = {"max_batch_size": 64, "seconds_per_batch": 0.002, "seconds_per_row": 0.0006}


@pytest.mark.parametrize(
    ("engine", "clients", "rows", "timeout_s"),
    [(R50, 40, 1, 1.0), (R50, 10, 8, 2.0), (R50, 40, 16, 5.0), (SMALL, 24, 200, 1.0), (SMALL, 200, 8, 0.5)],
)
def test_many_clients_that_ask_for_more_than_there_is_get_nine_tenths_of_it(
    new_entry, engine, clients, rows, timeout_s
):
    house = House(new_entry, **engine)
    for number in range(clients):
        house.add_client(f"client {number}", rows, timeout_s)
    house.run(60)
    assert house.good_rows > 0.9 * 60 * house.rows_per_s
    served = sorted(map(len, house.answered.values()))
    assert served[len(served) // 2] >= 0.3 * served[-1]  # and nobody has it all


def test_a_person_hardly_waits_beside_clients_with_large_requests(new_entry):
    house = House(new_entry, **R50)
    for number in range(8):
        house.add_client(f"job {number}", 64, 60.0)
    house.add_client("person", 1, 20.0, pause_s=1.0)  # a third of an equal share
    house.run(240)
    waits = sorted(house.answered["person"])
    assert len(waits) > 150
    assert waits[len(waits) * 95 // 100] < 2 * house.table.predicted_s(8)
