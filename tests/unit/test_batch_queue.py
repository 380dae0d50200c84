"""The batching policy: literal batches, then the laws under any sequence of events."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from attnserve.batch_queue import BatchQueue
from attnserve.contract import Batch, Entry, Slice
from attnserve.errors import Cancelled, DeadlineExceeded, Internal, InvalidArgument


def values(batch: Batch) -> list[int]:
    """The images of a batch, named by their pixel."""
    return [int(v) for entry, start, stop in batch.slices for v in entry.images[start:stop, 0, 0, 0]]


def test_entries_share_a_batch_in_the_order_in_which_they_came(new_entry):
    queue = BatchQueue(8)
    for entry in (new_entry(1, 2), new_entry(3), new_entry(4, 5, 6)):
        queue.put(entry, now=0)
    batch, dropped = queue.take(now=0)
    assert (values(batch), batch.rows, dropped) == ([1, 2, 3, 4, 5, 6], 6, [])


def test_a_batch_never_exceeds_the_limit_and_the_rest_comes_next(new_entry):
    queue = BatchQueue(4)
    for value in (1, 2, 3, 4, 5, 6):
        queue.put(new_entry(value), now=0)
    assert values(queue.take(now=0)[0]) == [1, 2, 3, 4]
    assert values(queue.take(now=0)[0]) == [5, 6]
    assert values(queue.take(now=0)[0]) == []


def test_an_entry_larger_than_a_batch_is_split_and_its_last_part_shares_a_batch_with_the_next_entry(new_entry):
    queue = BatchQueue(3)
    large, small = new_entry(1, 2, 3, 4, 5, 6, 7), new_entry(8, 9)
    queue.put(large, now=0)
    queue.put(small, now=0)
    assert queue.take(now=0)[0] == Batch((Slice(large, 0, 3),), 3)
    assert queue.take(now=0)[0] == Batch((Slice(large, 3, 6),), 3)
    assert queue.take(now=0)[0] == Batch((Slice(large, 6, 7), Slice(small, 0, 2)), 3)


@pytest.mark.parametrize(
    ("queued", "idle_workers", "max_batch_size", "rows"),
    [
        (1, 1, 8, 1),
        (8, 1, 8, 8),
        (9, 1, 8, 8),
        (8, 2, 8, 4),
        (9, 2, 8, 5),  # rounded up: with 4 rows each, the ninth would wait beside an idle worker
        (9, 4, 8, 3),
        (2, 4, 8, 1),
        (100, 4, 8, 8),
        (0, 4, 8, 0),
    ],
)
def test_idle_workers_share_what_is_queued(new_entry, queued, idle_workers, max_batch_size, rows):
    queue = BatchQueue(max_batch_size)
    for value in range(queued):
        queue.put(new_entry(value), now=0)
    assert queue.take(now=0, idle_workers=idle_workers)[0].rows == rows


@pytest.mark.parametrize("workers", [1, 2, 3, 5])
def test_if_every_idle_worker_takes_once_nothing_that_fits_is_left(new_entry, workers):
    for queued in range(1, 8 * workers + 1):
        queue = BatchQueue(8)
        queue.put(new_entry(*range(queued)), now=0)
        for idle in range(workers, 0, -1):
            queue.take(now=0, idle_workers=idle)
        assert queue.rows == 0


def test_a_cancelled_entry_leaves_before_launch_and_its_neighbours_are_launched(new_entry):
    queue = BatchQueue(8)
    first, gone, last = new_entry(1), new_entry(2, 3), new_entry(4)
    for entry in (first, gone, last):
        queue.put(entry, now=0)
    gone.cancelled = True
    batch, dropped = queue.take(now=0)
    assert (values(batch), dropped) == ([1, 4], [gone])
    assert isinstance(gone.error, Cancelled)
    assert gone.taken == 0
    assert first.error is None
    assert last.error is None


def test_an_entry_whose_deadline_has_come_leaves_before_launch(new_entry):
    queue = BatchQueue(8)
    late, at_the_last_moment = new_entry(1, deadline=5.0), new_entry(2, deadline=5.001)
    queue.put(late, now=0)
    queue.put(at_the_last_moment, now=0)
    batch, dropped = queue.take(now=5.0)
    assert (values(batch), dropped) == ([2], [late])
    assert isinstance(late.error, DeadlineExceeded)


def test_what_leaves_does_not_take_room_in_the_batch(new_entry):
    queue = BatchQueue(2)
    gone = new_entry(1, 2, 3, cancelled=True)
    for entry in (gone, new_entry(4), new_entry(5), new_entry(6)):
        queue.put(entry, now=0)
    batch, dropped = queue.take(now=0)
    assert (values(batch), dropped) == ([4, 5], [gone])


def test_the_rest_of_a_partly_launched_entry_leaves_once(new_entry):
    queue = BatchQueue(2)
    entry = new_entry(1, 2, 3, 4, 5)
    queue.put(entry, now=0)
    assert values(queue.take(now=0)[0]) == [1, 2]
    entry.cancelled = True
    assert queue.take(now=0) == (Batch((), 0), [entry])
    assert queue.rows == 0
    assert queue.take(now=0) == (Batch((), 0), [])
    assert (entry.taken, entry.outstanding) == (2, 2)


def test_the_rest_of_an_entry_that_failed_leaves_silently_and_keeps_its_error(new_entry):
    queue = BatchQueue(2)
    failed = new_entry(1, 2, 3)
    queue.put(failed, now=0)
    queue.put(new_entry(4), now=0)
    queue.take(now=0)
    failed.error = error = Internal("inference failed")
    failed.cancelled = True
    batch, dropped = queue.take(now=0)
    assert (values(batch), dropped) == ([4], [])
    assert failed.error is error


def test_rows_counts_what_waits_until_it_leaves(new_entry):
    queue = BatchQueue(4)
    gone = new_entry(1, 2)
    queue.put(gone, now=0)
    queue.put(new_entry(3, 4, 5, 6, 7), now=0)
    assert queue.rows == 7
    gone.cancelled = True
    assert queue.rows == 7
    queue.take(now=0)
    assert queue.rows == 1
    queue.put(new_entry(8), now=0)
    assert queue.rows == 2
    queue.take(now=0)
    assert queue.rows == 0


def test_launched_rows_are_outstanding(new_entry):
    queue = BatchQueue(2)
    entry = new_entry(1, 2, 3)
    queue.put(entry, now=0)
    queue.take(now=0)
    assert (entry.taken, entry.outstanding) == (2, 2)
    queue.take(now=0)
    assert (entry.taken, entry.outstanding) == (3, 3)


def test_clear_takes_out_whole_and_partly_launched_entries(new_entry):
    queue = BatchQueue(2)
    launched, half, whole = new_entry(1), new_entry(2, 3), new_entry(4)
    for entry in (launched, half, whole):
        queue.put(entry, now=0)
    queue.take(now=0)
    assert queue.clear() == [half, whole]
    assert (queue.rows, queue.clear()) == (0, [])
    assert queue.take(now=0) == (Batch((), 0), [])


def test_an_entry_remembers_when_it_came(new_entry):
    queue = BatchQueue(2)
    entry = new_entry(1)
    queue.put(entry, now=12.5)
    assert entry.enqueued_at == 12.5


@pytest.mark.parametrize("size", [0, -1])
def test_a_batch_of_no_images_is_no_batch_size(size):
    with pytest.raises(ValueError, match="max_batch_size must be positive"):
        BatchQueue(size)


@dataclass
class Followed:
    """An entry and what has become of it, kept beside the queue."""

    entry: Entry
    launched: list[int] = field(default_factory=list)
    times_dropped: int = 0
    failed: bool = False

    @property
    def is_live(self) -> bool:
        return self.entry.error is None


class AnySequenceOfEvents(RuleBasedStateMachine):
    """Entries come, are cancelled, expire, fail and are taken, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.max_batch_size = 5
        self.queue = BatchQueue(self.max_batch_size)
        self.now = 0.0
        self.entries: list[Followed] = []
        self.running: list[Slice] = []
        self.order: list[tuple[int, int]] = []

    @rule(rows=st.integers(1, 12), lifetime=st.sampled_from([0.0, 1.0, 3.0, math.inf]))
    def put(self, rows: int, lifetime: float) -> None:
        images = np.zeros((rows, 1, 1, 3), np.uint8)
        entry = Entry(images, (), self.now + lifetime, inbox=None, on_finished=lambda _: None)
        self.queue.put(entry, self.now)
        self.entries.append(Followed(entry))

    @rule(seconds=st.sampled_from([0.5, 1.0]))
    def let_time_pass(self, seconds: float) -> None:
        self.now += seconds

    @precondition(lambda self: self.entries)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.entries)).entry.cancelled = True

    @precondition(lambda self: self.running)
    @rule(data=st.data(), fails=st.booleans())
    def end_a_run(self, data: st.DataObject, fails: bool) -> None:
        entry, start, stop = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
        entry.outstanding -= stop - start
        if fails and entry.error is None:
            entry.error = InvalidArgument("this run failed")
            self._followed(entry).failed = True

    @rule(idle_workers=st.integers(1, 4))
    def take(self, idle_workers: int) -> None:
        queued = self.queue.rows
        live = [f for f in self.entries if f.is_live and not f.entry.cancelled and f.entry.deadline > self.now]
        live_rows = sum(f.entry.rows - f.entry.taken for f in live)

        batch, dropped = self.queue.take(self.now, idle_workers)

        assert batch.rows == sum(stop - start for _, start, stop in batch.slices)
        assert batch.rows == min(self.max_batch_size, math.ceil(queued / idle_workers), live_rows)
        for entry, start, stop in batch.slices:
            followed = self._followed(entry)
            assert followed in live
            assert start < stop <= entry.rows
            followed.launched += range(start, stop)
            self.order += [(self.entries.index(followed), row) for row in range(start, stop)]
        for entry in dropped:
            assert isinstance(entry.error, Cancelled if entry.cancelled else DeadlineExceeded)
            assert entry.cancelled or entry.deadline <= self.now
            self._followed(entry).times_dropped += 1
        self.running += batch.slices

    @invariant()
    def rows_leave_in_the_order_in_which_they_came(self) -> None:
        assert self.order == sorted(set(self.order))

    @invariant()
    def no_row_is_counted_that_is_not_there(self) -> None:
        waiting = sum(f.entry.rows - f.entry.taken for f in self.entries if f.is_live)
        failed = sum(f.entry.rows - f.entry.taken for f in self.entries if f.failed)
        assert waiting <= self.queue.rows <= waiting + failed

    def teardown(self) -> None:
        """Every entry was launched whole, or dropped exactly once, or had failed in an engine."""
        while self.queue.rows:
            before = self.queue.rows
            self.take(idle_workers=1)
            assert self.queue.rows < before
        for followed in self.entries:
            entry = followed.entry
            assert followed.launched == list(range(entry.taken))
            ends = [entry.taken == entry.rows and not followed.times_dropped, followed.times_dropped == 1]
            assert sum(ends) == 1 or (followed.failed and not followed.times_dropped)
            assert entry.outstanding == sum(stop - start for owner, start, stop in self.running if owner is entry)

    def _followed(self, entry: Entry) -> Followed:
        return next(followed for followed in self.entries if followed.entry is entry)


AnySequenceOfEvents.TestCase.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
TestEveryEntryIsLaunchedWholeOrDroppedOnce = AnySequenceOfEvents.TestCase
