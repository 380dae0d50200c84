"""The batching policy: literal batches, then the laws under any sequence of events."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from attnserve.batch_queue import BatchQueue, Policy
from attnserve.contract import Batch, Entry, Slice
from attnserve.errors import Cancelled, DeadlineExceeded, Internal, InvalidArgument
from attnserve.fair_queue import FairQueue
from attnserve.latency_table import LatencyTable


def values(batch: Batch) -> list[int]:
    """The images of a batch, named by their pixel."""
    return [int(v) for entry, start, stop in batch.slices for v in entry.images[start:stop, 0, 0, 0]]


@pytest.fixture
def queue_of():
    """A queue with these entries, put in order at time 0."""

    def make(max_batch_size, *entries, table=None, **policy):
        queue = BatchQueue(Policy(max_batch_size, **policy), LatencyTable(table))
        for entry in entries:
            queue.put(entry, now=0)
        return queue

    return make


def test_entries_share_a_batch_in_the_order_in_which_they_came(new_entry, queue_of):
    queue = queue_of(8, new_entry(1, 2), new_entry(3), new_entry(4, 5, 6))
    batch, dropped = queue.take(now=0)
    assert (values(batch), batch.rows, dropped) == ([1, 2, 3, 4, 5, 6], 6, [])


def test_a_batch_never_exceeds_the_limit_and_the_rest_comes_next(new_entry, queue_of):
    queue = queue_of(4, *map(new_entry, (1, 2, 3, 4, 5, 6)))
    assert values(queue.take(now=0)[0]) == [1, 2, 3, 4]
    assert values(queue.take(now=0)[0]) == [5, 6]
    assert values(queue.take(now=0)[0]) == []


def test_an_entry_larger_than_a_batch_is_split_and_its_last_part_shares_a_batch_with_the_next(new_entry, queue_of):
    large, small = new_entry(1, 2, 3, 4, 5, 6, 7), new_entry(8, 9)
    queue = queue_of(3, large, small)
    assert queue.take(now=0)[0] == Batch((Slice(large, 0, 3),), 3)
    assert queue.take(now=0)[0] == Batch((Slice(large, 3, 6),), 3)
    assert queue.take(now=0)[0] == Batch((Slice(large, 6, 7), Slice(small, 0, 2)), 3)


def test_where_nothing_is_gained_by_sharing_out_the_first_idle_worker_takes_all(new_entry, queue_of):
    queue = queue_of(8, new_entry(*range(6)), shares_out=False)
    assert [queue.take(now=0, idle_workers=idle)[0].rows for idle in (4, 3)] == [6, 0]


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
def test_idle_workers_share_what_is_queued(new_entry, queue_of, queued, idle_workers, max_batch_size, rows):
    queue = queue_of(max_batch_size, *map(new_entry, range(queued)))
    assert queue.take(now=0, idle_workers=idle_workers)[0].rows == rows


@pytest.mark.parametrize("workers", [1, 2, 3, 5])
def test_if_every_idle_worker_takes_once_nothing_that_fits_is_left(new_entry, queue_of, workers):
    for queued in range(1, 8 * workers + 1):
        queue = queue_of(8, new_entry(*range(queued)))
        for idle in range(workers, 0, -1):
            queue.take(now=0, idle_workers=idle)
        assert queue.rows == 0


def test_the_earliest_deadline_of_a_client_goes_first_and_of_equal_ones_what_came_first(new_entry, queue_of):
    entries = [new_entry(value, deadline=deadline) for value, deadline in [(1, 9), (2, 5), (3, 7), (4, 5)]]
    queue = queue_of(3, *entries)
    assert values(queue.take(now=0)[0]) == [2, 4, 3]
    assert values(queue.take(now=0)[0]) == [1]


def test_a_batch_job_does_not_hold_up_a_person(new_entry, queue_of):
    job, person = new_entry(*range(100, 120), client="job"), new_entry(1, client="person")
    queue = queue_of(8, job, person)
    assert values(queue.take(now=0)[0]) == [1, 100, 101, 102, 103, 104, 105, 106]
    queue.put(new_entry(2, 3, 4, client="person"), now=0)
    queue.put(new_entry(5, 6, client="other"), now=0)
    assert values(queue.take(now=0)[0]) == [5, 6, 2, 3, 4, 107, 108, 109]


def test_clients_with_requests_of_equal_size_have_them_ended_one_after_the_other(new_entry, queue_of):
    queue = queue_of(2, *(new_entry(*[value] * 4, client=f"client {value}") for value in (1, 2, 3)))
    assert [values(queue.take(now=0)[0]) for _ in range(6)] == [[1, 1], [1, 1], [2, 2], [2, 2], [3, 3], [3, 3]]


def test_of_requests_longer_than_a_turn_all_but_the_last_turn_is_launched_by_turns(new_entry, queue_of):
    queue = queue_of(2, *(new_entry(*[value] * 8, client=f"client {value}") for value in (1, 2)), turn_batches=2)
    launched = [values(queue.take(now=0)[0])[0] for _ in range(8)]
    assert launched == [1, 2, 1, 2, 1, 1, 2, 2]


def test_whoever_had_less_goes_before_a_request_as_large(new_entry, queue_of):
    queue = queue_of(4, new_entry(1, 1, 1, 1, client="first"), new_entry(2, 2, 2, 2, client="second"))
    queue.take(now=0)
    queue.put(new_entry(3, 3, 3, 3, client="first"), now=0)
    queue.put(new_entry(4, 4, 4, client="newcomer"), now=0)
    assert [values(queue.take(now=0)[0]) for _ in range(3)] == [[4, 4, 4, 2], [2, 2, 2, 3], [3, 3, 3]]


def test_turns_that_are_over_are_not_kept(new_entry):
    queue = FairQueue(longest_turn=8)
    waiting = iter(range(10**6))

    def put(client, *values, deadline=math.inf):
        entry = new_entry(*values, client=client, deadline=deadline)
        entry.order = next(waiting)
        queue.put(entry, now=0)
        return entry

    first = put("first", 1)
    put("hostile", *[2] * 100)
    for _ in range(5000):
        queue.discard(put("hostile", 3, deadline=1.0))
    assert len(queue._turns) < 300
    assert queue.peek() is first


def test_within_a_round_the_most_urgent_client_goes_first(new_entry, queue_of):
    queue = queue_of(
        8,
        new_entry(1, client="a", deadline=9),
        new_entry(2, client="b", deadline=3),
        new_entry(3, client="c", deadline=6),
    )
    assert values(queue.take(now=0)[0]) == [2, 3, 1]


def test_over_time_backlogged_clients_get_equal_shares_whatever_their_deadlines(new_entry, queue_of):
    queue = queue_of(
        8,
        *(new_entry(*[1] * 10, client="greedy", deadline=50.0) for _ in range(30)),
        *(new_entry(2, client="modest", deadline=90.0) for _ in range(100)),
    )
    served = [value for _ in range(20) for value in values(queue.take(now=0)[0])]
    assert abs(served.count(1) - served.count(2)) <= 2 * 2


def test_a_client_that_comes_back_neither_saved_up_turns_nor_owes_any(new_entry, queue_of):
    queue = queue_of(4, *(new_entry(1, client="steady") for _ in range(40)), new_entry(2, client="visitor"))
    for _ in range(5):
        queue.take(now=0)
    for _ in range(20):
        queue.put(new_entry(3, client="visitor"), now=0)
    served = values(queue.take(now=0)[0]) + values(queue.take(now=0)[0])
    assert served.count(3) == 4


def test_a_higher_class_goes_first_and_waiting_lifts_a_lower_one(new_entry, queue_of):
    queue = queue_of(1, new_entry(3, level=3), levels=3, ageing_s=10)
    for now in range(0, 20, 2):
        queue.put(new_entry(1, level=1), now)
        queue.put(new_entry(2, level=2), now)
    launched = [values(queue.take(now)[0])[0] for now in range(0, 42, 2)]
    # Class 2 has a turn after 10 s without one, class 3 after 20 s, and class 2 again; then they go in order.
    assert launched == [1, 1, 1, 1, 1, 2, 1, 1, 1, 1, 3, 2, 1, *[2] * 8]


@pytest.mark.parametrize(("level", "every_s"), [(2, 1), (3, 2)])
def test_a_client_that_higher_classes_leave_nothing_gets_a_turn_in_every_ageing_time(
    new_entry, queue_of, level, every_s
):
    queue = queue_of(4, *(new_entry(9, client="low", level=level) for _ in range(9)), levels=3)
    turns = []
    for tenth in range(65):
        for client in "abcdefgh":
            queue.put(new_entry(1, client=client, level=1), tenth / 10)
        turns += [tenth / 10] * values(queue.take(tenth / 10)[0]).count(9)
    assert turns == [every_s * nth for nth in range(1, 6 // every_s + 1)]


def test_clients_that_share_a_starved_class_each_get_their_turn_and_leave_the_higher_class_every_other(
    new_entry, queue_of
):
    queue = queue_of(1, *(new_entry(10 + n, client=f"low-{n}", level=3) for n in range(6)), levels=3)
    for _ in range(100):
        queue.put(new_entry(1, client="high", level=1), now=0)
    launched = [values(queue.take(now=2)[0])[0] for _ in range(14)]
    assert launched == [1, 10, 1, 11, 1, 12, 1, 13, 1, 14, 1, 15, 1, 1]


@pytest.mark.parametrize(("levels", "level"), [(2, 2), (3, 2), (3, 3)])
@pytest.mark.parametrize("age_s", [0.5, 1.5, 2.5, 100.0])
def test_an_old_backlog_does_not_keep_a_newcomer_of_its_class_from_its_turn(new_entry, queue_of, levels, level, age_s):
    backlog = [new_entry(1, client="job", level=level) for _ in range(2000)]
    queue = queue_of(8, *backlog, levels=levels)
    queue.put(new_entry(7, client="person", level=level), now=age_s)
    assert values(queue.take(age_s)[0]) == [1, 7, 1, 1, 1, 1, 1, 1]


@pytest.mark.parametrize("age_s", [1.5, 2.5])
def test_a_backlog_that_was_starved_gets_one_turn_before_a_newcomer_and_not_more(new_entry, queue_of, age_s):
    """While a higher class is flooded, too."""
    queue = queue_of(4, *(new_entry(2, client="job", level=2) for _ in range(50)), levels=3)
    for _ in range(100):
        queue.put(new_entry(1, client="high", level=1), now=0)
    queue.put(new_entry(7, client="person", level=2), now=age_s)
    launched = [value for tenth in range(15) for value in values(queue.take(age_s + tenth / 10)[0])]
    assert [value for value in launched if value != 1][:2] == [2, 7]


@given(
    events=st.lists(
        st.tuples(
            st.sampled_from([0.0, 0.1, 0.7, 3.0]),
            st.one_of(
                st.none(), st.tuples(st.sampled_from("abc"), st.integers(1, 9), st.sampled_from([50.0, math.inf]))
            ),
        ),
        max_size=60,
    ),
    max_batch_size=st.integers(1, 9),
    level=st.integers(1, 3),
)
@settings(max_examples=100, deadline=None)
def test_in_one_class_ageing_changes_nothing(events, max_batch_size, level):
    aged, ageless = BatchQueue(Policy(max_batch_size, levels=3)), BatchQueue(Policy(max_batch_size))
    now = 0.0
    for seconds, arrival in events:
        now += seconds
        for queue in (aged, ageless):
            if arrival is not None:
                client, rows, deadline = arrival
                images = np.zeros((rows, 1, 1, 3), np.uint8)
                queue.put(Entry(images, (), deadline, None, lambda _: None, client=client, level=level), now)
        if arrival is None:
            (one, dropped), (other, also_dropped) = aged.take(now), ageless.take(now)
            assert [(s.entry.order, *s[1:]) for s in one.slices] == [(s.entry.order, *s[1:]) for s in other.slices]
            assert [e.order for e in dropped] == [e.order for e in also_dropped]


def test_a_level_outside_the_classes_is_the_nearest_one(new_entry, queue_of):
    queue = queue_of(8, new_entry(9, level=99), new_entry(5, level=2), new_entry(1, level=0), levels=3)
    assert values(queue.take(now=0)[0]) == [1, 5, 9]


STEP = {1: 1.0, 2: 1.0, 4: 1.0, 8: 2.0}  # 8 gain nothing over 4
LINE = {1: 1.0, 2: 1.5, 4: 2.5, 8: 4.5}


def test_a_batch_is_no_larger_than_gains_throughput(new_entry, queue_of):
    queue = queue_of(8, *map(new_entry, range(8)), table=STEP)
    assert queue.limit == 4
    assert queue.take(now=0)[0].rows == 4


def test_a_batch_is_no_larger_than_its_most_urgent_image_allows(new_entry, queue_of):
    urgent = new_entry(1, client="person", deadline=2.6)
    queue = queue_of(8, urgent, new_entry(*range(10, 20), client="job", deadline=99), table=LINE)
    batch, dropped = queue.take(now=0)
    assert (values(batch), dropped) == ([1, 10, 11, 12], [])


def test_an_urgent_entry_that_would_be_late_in_this_batch_leads_the_next(new_entry, queue_of):
    queue = queue_of(8, new_entry(*range(10, 13), level=1), new_entry(1, level=2, deadline=2.0), levels=2, table=LINE)
    assert values(queue.take(now=0)[0]) == [10, 11, 12]
    assert values(queue.take(now=0)[0]) == [1]


def test_an_entry_that_cannot_end_in_time_is_dropped_while_others_wait(new_entry, queue_of):
    hopeless = new_entry(1, deadline=0.9)
    queue = queue_of(8, hopeless, new_entry(2, deadline=99), table=LINE)
    batch, dropped = queue.take(now=0)
    assert (values(batch), dropped) == ([2], [hopeless])
    assert isinstance(hopeless.error, DeadlineExceeded)


def test_alone_it_is_tried_for_the_table_may_be_wrong(new_entry, queue_of):
    queue = queue_of(8, new_entry(1, 2, deadline=0.9), table=LINE)
    assert values(queue.take(now=0)[0]) == [1, 2]


def test_when_more_are_urgent_than_can_be_served_the_most_urgent_gives_way_and_the_batch_stays_large(
    new_entry, queue_of
):
    """Else each would shrink the batch for the next, and all be late."""
    entries = [new_entry(value, deadline=1.2 + value / 4) for value in range(24)]
    queue = queue_of(8, *entries, table=LINE)
    batch, dropped = queue.take(now=0)
    assert dropped == entries[:9]
    assert values(batch) == [9, 10, 11, 12, 13]  # they end in time, and whoever is left can wait for a whole batch
    assert all(entry.deadline >= LINE[4] + 0.5 for entry, _, _ in batch.slices)
    assert entries[14].deadline > LINE[8]


@pytest.mark.parametrize(("queued", "rows"), [(3, 3), (4, 4), (5, 4), (7, 4), (8, 8), (9, 8)])
def test_a_batch_that_reaches_a_preferred_size_is_cut_there(new_entry, queue_of, queued, rows):
    queue = queue_of(16, *map(new_entry, range(queued)), preferred_batch_sizes=(4, 8))
    assert queue.take(now=0)[0].rows == rows


@pytest.mark.parametrize(
    ("queued", "batches"), [(4, [4]), (8, [4, 4]), (9, [4, 4, 1]), (16, [8, 8]), (24, [8, 8, 8]), (3, [3])]
)
def test_idle_workers_do_not_break_up_a_batch_of_a_preferred_size(new_entry, queue_of, queued, batches):
    """Else each would have too little, and with a delay the rest would wait for it."""
    queue = queue_of(16, new_entry(*range(queued)), preferred_batch_sizes=(4, 8), max_queue_delay_s=5)
    taken = [queue.take(now=0, idle_workers=idle)[0].rows for idle in (2, 1, 1)]
    assert [rows for rows in taken if rows] == batches


def test_a_preferred_size_is_formed_though_less_would_gain_as_much_throughput(new_entry, queue_of):
    queue = queue_of(8, new_entry(*range(8)), preferred_batch_sizes=(8,), table=STEP)
    assert queue.take(now=0)[0].rows == 8


def test_with_a_delay_and_no_preferred_size_a_whole_batch_goes_to_one_worker(new_entry, queue_of):
    queue = queue_of(8, new_entry(*range(8)), max_queue_delay_s=5)
    assert queue.ready_at(now=0) == 0
    assert queue.take(now=0, idle_workers=2)[0].rows == 8
    assert queue.rows == 0


def test_without_a_delay_a_batch_is_ready_at_once(new_entry, queue_of):
    assert queue_of(8, new_entry(1)).ready_at(now=7) == 7


def test_with_a_delay_a_batch_is_ready_when_it_is_large_enough_old_enough_or_urgent(new_entry, queue_of):
    queue = queue_of(8, new_entry(1), new_entry(2), max_queue_delay_s=5, preferred_batch_sizes=(4,), table=LINE)
    assert queue.ready_at(now=1) == 5
    assert queue.ready_at(now=6) == 6
    queue.put(new_entry(3, deadline=4.0), now=1)
    assert queue.ready_at(now=1) == 4.0 - LINE[4]
    queue.put(new_entry(4), now=1)
    assert queue.ready_at(now=1) == 1
    queue.take(now=1)
    queue.put(new_entry(5), now=2)
    assert queue.ready_at(now=2) == 7  # what has left hurries nobody


def test_an_entry_that_all_workers_could_not_end_in_time_leaves_before_those_that_they_can(new_entry):
    queue = BatchQueue(Policy(2), LatencyTable({1: 1.5, 2: 2.0}), workers=2)
    doomed, fits = new_entry(*[1] * 8, client="a", deadline=3.9), new_entry(*[2] * 8, client="b", deadline=4.0)
    queue.put(doomed, now=0)
    queue.put(fits, now=0)
    batch, dropped = queue.take(now=0)
    assert (values(batch), dropped) == ([2, 2], [doomed])
    assert isinstance(doomed.error, DeadlineExceeded)


def test_what_is_begun_and_will_be_late_leaves_for_others_and_not_where_nobody_waits(new_entry):
    for others in (0, 1):
        queue = BatchQueue(Policy(2), LatencyTable({1: 1.5, 2: 2.0}))
        begun = new_entry(1, 1, 1, 1, deadline=4.0)
        queue.put(begun, now=0)
        queue.take(now=0)
        for _ in range(others):
            queue.put(new_entry(2, 2, 2, 2, 2, client="other"), now=2)
        batch, dropped = queue.take(now=2.5)
        assert (values(batch), dropped) == (([2, 2], [begun]) if others else ([1], []))


@pytest.mark.parametrize(
    ("client", "level", "rows", "ahead"),
    [
        ("new", 1, 1, 0),  # both clients of the class have more
        ("new", 1, 2, 2),  # b came before
        ("new", 1, 50, 5 + 2),
        ("a", 1, 1, 5 + 2),
        ("b", 1, 1, 2),  # its third row goes before a's fifth
        ("b", 1, 3, 2 + 5),
        ("new", 2, 1, 7),
        ("new", 9, 3, 7 + 3),
    ],
)
def test_rows_ahead_are_what_turns_and_classes_put_before_new_ones(new_entry, queue_of, client, level, rows, ahead):
    queue = queue_of(
        8,
        new_entry(1, 2, 3, 4, 5, client="a", level=1),
        new_entry(6, 7, client="b", level=1),
        new_entry(8, 9, 10, client="c", level=2),
        levels=2,
    )
    assert queue.rows_ahead(client, level, rows) == ahead


@given(
    before=st.lists(st.one_of(st.none(), st.tuples(st.sampled_from("abcd"), st.integers(1, 12))), max_size=14),
    client=st.sampled_from("abcde"),
    rows=st.integers(1, 8),
    max_batch_size=st.sampled_from([1, 2, 8]),
)
@settings(max_examples=300, deadline=None)
def test_no_more_rows_go_ahead_than_were_foretold(before, client, rows, max_batch_size):
    queue, inbox = BatchQueue(Policy(max_batch_size)), object()

    def put(name: str, count: int) -> Entry:
        images = np.zeros((count, 1, 1, 3), np.uint8)
        entry = Entry(images, (), math.inf, inbox, lambda _: None, client=name)
        queue.put(entry, now=0)
        return entry

    for step in before:
        put(*step) if step else queue.take(now=0)
    foretold = queue.rows_ahead(client, 1, rows)
    entry, launched = put(client, rows), 0
    while entry.waiting:
        launched += queue.take(now=0)[0].rows
    assert launched - rows < foretold + max_batch_size  # the batch with its last row may hold others behind it


def test_a_cancelled_entry_leaves_before_launch_and_its_neighbours_are_launched(new_entry, queue_of):
    first, gone, last = new_entry(1), new_entry(2, 3), new_entry(4)
    queue = queue_of(8, first, gone, last)
    gone.cancelled = True
    batch, dropped = queue.take(now=0)
    assert (values(batch), dropped) == ([1, 4], [gone])
    assert isinstance(gone.error, Cancelled)
    assert gone.taken == 0
    assert (first.error, last.error) == (None, None)


def test_an_entry_whose_deadline_has_come_leaves_before_launch(new_entry, queue_of):
    late, at_the_last_moment = new_entry(1, deadline=5.0), new_entry(2, deadline=5.001)
    queue = queue_of(8, late, at_the_last_moment)
    batch, dropped = queue.take(now=5.0)
    assert (values(batch), dropped) == ([2], [late])
    assert isinstance(late.error, DeadlineExceeded)


def test_every_expired_entry_leaves_at_the_next_batch_wherever_it_waits(new_entry, queue_of):
    late = [new_entry(value, client=str(value), level=2, deadline=5) for value in range(5)]
    queue = queue_of(1, *late, *(new_entry(9, level=1) for _ in range(3)), levels=2)
    batch, dropped = queue.take(now=5)
    assert (values(batch), dropped, queue.rows) == ([9], late, 2)


def test_what_leaves_does_not_take_room_in_the_batch(new_entry, queue_of):
    gone = new_entry(1, 2, 3, cancelled=True)
    queue = queue_of(2, gone, new_entry(4), new_entry(5), new_entry(6))
    batch, dropped = queue.take(now=0)
    assert (values(batch), dropped) == ([4, 5], [gone])


def test_the_rest_of_a_partly_launched_entry_leaves_once(new_entry, queue_of):
    entry = new_entry(1, 2, 3, 4, 5)
    queue = queue_of(2, entry)
    assert values(queue.take(now=0)[0]) == [1, 2]
    entry.cancelled = True
    assert queue.take(now=0) == (Batch((), 0), [entry])
    assert queue.rows == 0
    assert queue.take(now=0) == (Batch((), 0), [])
    assert (entry.taken, entry.outstanding) == (2, 2)


def test_discarding_takes_out_what_waits_and_nothing_twice(new_entry, queue_of):
    entry, other = new_entry(1, 2, 3), new_entry(4)
    queue = queue_of(2, entry, other)
    queue.take(now=0)
    error = Internal("inference failed")
    assert queue.discard(entry, error)
    assert (entry.error, queue.rows) == (error, 1)
    assert not queue.discard(entry, InvalidArgument("again"))
    assert entry.error is error
    assert values(queue.take(now=0)[0]) == [4]
    assert not queue.discard(other, error)
    assert other.error is None


def test_rows_counts_what_waits_until_it_leaves(new_entry, queue_of):
    gone = new_entry(1, 2)
    queue = queue_of(4, gone, new_entry(3, 4, 5, 6, 7))
    assert queue.rows == 7
    gone.cancelled = True
    assert queue.rows == 7
    queue.take(now=0)
    assert queue.rows == 1
    queue.put(new_entry(8), now=0)
    assert queue.rows == 2
    queue.take(now=0)
    assert queue.rows == 0


def test_launched_rows_are_outstanding(new_entry, queue_of):
    entry = new_entry(1, 2, 3)
    queue = queue_of(2, entry)
    queue.take(now=0)
    assert (entry.taken, entry.outstanding) == (2, 2)
    queue.take(now=0)
    assert (entry.taken, entry.outstanding) == (3, 3)


def test_clear_takes_out_whole_and_partly_launched_entries(new_entry, queue_of):
    launched, half, whole = new_entry(1), new_entry(2, 3), new_entry(4)
    queue = queue_of(2, launched, half, whole)
    queue.take(now=0)
    assert queue.clear() == [half, whole]
    assert (queue.rows, queue.clear()) == (0, [])
    assert queue.take(now=0) == (Batch((), 0), [])


def test_an_entry_remembers_when_it_came(new_entry):
    entry = new_entry(1)
    BatchQueue(Policy(2)).put(entry, now=12.5)
    assert entry.enqueued_at == 12.5


@pytest.mark.parametrize("size", [0, -1])
def test_a_batch_of_no_images_is_no_batch_size(size):
    with pytest.raises(ValueError, match="max_batch_size must be positive"):
        Policy(size)


def test_nothing_of_those_that_left_is_kept(new_entry):
    """Each entry holds its pictures; a queue that never runs empty must still let go of them."""
    queue = BatchQueue(Policy(4, levels=3))
    stays = new_entry(0, level=3, deadline=1e9)
    queue.put(stays, now=0)
    for number in range(20_000):
        entry = new_entry(1, client=str(number), level=1 + number % 3, deadline=1e6 + number)
        queue.put(entry, now=0)
        if number % 2:
            queue.discard(entry, Internal("gone"))
        else:
            queue.take(now=0)
    held = sum(len(vars(each)[name]) for each in queue._classes for name in ("_entries", "_lines", "_turns", "_since"))
    assert len(queue._entries) == queue.rows <= 1
    assert len(queue._deadlines) < 300
    assert held < 4000  # the standing of a thousand clients that are away


@dataclass
class Followed:
    """An entry and what has become of it, kept beside the queue."""

    entry: Entry
    arrived: int
    launched: list[int] = field(default_factory=list)
    times_dropped: int = 0
    failed: bool = False


class AnySequenceOfEvents(RuleBasedStateMachine):
    """Entries of several clients and classes come, are cancelled, expire, fail and are taken, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.max_batch_size = 5
        table = LatencyTable({1: 0.5, 2: 0.6, 5: 1.0})
        self.queue = BatchQueue(Policy(self.max_batch_size, levels=3, ageing_s=2.0), table)
        self.now = 0.0
        self.entries: list[Followed] = []
        self.running: list[Slice] = []

    @rule(
        rows=st.integers(1, 12),
        lifetime=st.sampled_from([0.0, 0.7, 1.0, 3.0, math.inf]),
        client=st.sampled_from("abc"),
        level=st.integers(1, 3),
    )
    def put(self, rows: int, lifetime: float, client: str, level: int) -> None:
        images = np.zeros((rows, 1, 1, 3), np.uint8)
        nothing = lambda _: None  # noqa: E731
        entry = Entry(images, (), self.now + lifetime, None, nothing, client=client, level=level)
        self.queue.put(entry, self.now)
        self.entries.append(Followed(entry, len(self.entries)))

    @rule(seconds=st.sampled_from([0.5, 1.0]))
    def let_time_pass(self, seconds: float) -> None:
        self.now += seconds

    @precondition(lambda self: self.entries)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.entries)).entry.cancelled = True

    @precondition(lambda self: self.entries)
    @rule(data=st.data())
    def cancel_at_once(self, data: st.DataObject) -> None:
        followed = data.draw(st.sampled_from(self.entries))
        waited = followed.entry.error is None and followed.entry.waiting > 0
        assert self.queue.discard(followed.entry, Cancelled("the caller went away")) == waited
        followed.times_dropped += waited

    @precondition(lambda self: self.running)
    @rule(data=st.data(), fails=st.booleans())
    def end_a_run(self, data: st.DataObject, fails: bool) -> None:
        entry, start, stop = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
        entry.outstanding -= stop - start
        if fails and entry.error is None:
            error = InvalidArgument("this run failed")
            self.queue.discard(entry, error)
            entry.error = error
            self._followed(entry).failed = True

    @rule(idle_workers=st.integers(1, 4))
    def take(self, idle_workers: int) -> None:
        live = [f for f in self._waiting() if not f.entry.cancelled and f.entry.deadline > self.now]
        longest = {
            level: self.now - each.waiting_since for level, each in enumerate(self.queue._classes, 1) if each.rows
        }

        batch, dropped = self.queue.take(self.now, idle_workers)

        assert batch.rows == sum(stop - start for _, start, stop in batch.slices) <= self.max_batch_size
        for entry, start, stop in batch.slices:
            followed = self._followed(entry)
            assert followed in live
            assert start < stop <= entry.rows
            followed.launched += range(start, stop)
        for entry in dropped:
            assert isinstance(entry.error, Cancelled if entry.cancelled else DeadlineExceeded)
            self._followed(entry).times_dropped += 1
        left = [f for f in self._waiting() if f in live]
        assert batch.rows or not left  # work-conserving: only an empty queue gives an empty batch
        self._check_order(batch, left, {level for level, waited in longest.items() if waited >= 2.0})
        self.running += batch.slices

    def _check_order(self, batch: Batch, left: list[Followed], lifted: set[int]) -> None:
        """Nobody of the same client and class who waits is more urgent than one that was launched.

        A class in which nobody waited for the ageing time does not go before a higher one.
        """
        for launched, _, _ in batch.slices:
            for followed in left:
                other = followed.entry
                if (other.client, other.level) == (launched.client, launched.level) and other is not launched:
                    assert (launched.deadline, launched.order) < (other.deadline, other.order)
        if left and batch.rows == min(self.queue.limit, batch.rows + sum(f.entry.waiting for f in left)):
            launched_levels = {entry.level for entry, _, _ in batch.slices} - lifted
            assert max(launched_levels, default=1) <= max(f.entry.level for f in left)

    def _waiting(self) -> list[Followed]:
        return [f for f in self.entries if f.entry.error is None and f.entry.waiting]

    @invariant()
    def every_waiting_row_is_counted_and_no_other(self) -> None:
        waiting = sum(f.entry.waiting for f in self._waiting())
        assert self.queue.rows == waiting

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


AnySequenceOfEvents.TestCase.settings = settings(max_examples=200, stateful_step_count=30, deadline=None)
TestEveryEntryIsLaunchedWholeOrDroppedOnce = AnySequenceOfEvents.TestCase
