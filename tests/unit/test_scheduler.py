"""Workers over puppet engines: every accepted entry gets exactly one answer, whatever happens around it."""

from __future__ import annotations

import contextlib
import queue
import random
import sys
import threading
import time
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attnserve.batch_queue import BatchQueue, Policy
from attnserve.contract import Entry, ModelKey
from attnserve.errors import AttnserveError, Cancelled, DeadlineExceeded, Internal, Overloaded, Unavailable
from attnserve.scheduler import Scheduler

PATIENCE_S = 10.0  # for what happens at once on an idle machine
MOMENT_S = 0.15  # for what must not happen


def answers(entry: Entry) -> list[int]:
    """The images that the entry's answer is about, named by their pixel."""
    assert entry.error is None
    return [int(row[0]) for row in entry.result["probabilities"]]


def until(told) -> bool:
    """Whether it becomes so soon."""
    end = time.monotonic() + PATIENCE_S
    while not told():
        if time.monotonic() > end:
            return False
        time.sleep(0.001)
    return True


def in_background(step) -> threading.Event:
    """Run a step on a thread of its own; the event says that it has returned."""
    returned = threading.Event()
    threading.Thread(target=lambda: (step(), returned.set()), daemon=True).start()
    return returned


class Instant:
    """A backend that answers at once; every so often it fails, or lets the other threads go first."""

    outputs = ("probabilities", "logits")

    def __init__(self, compute, random_: random.Random | None = None, failures: float = 0.0) -> None:
        self._compute = compute
        self._random = random_
        self._failures = failures

    def run(self, images, outputs):
        if self._random and self._random.random() < self._failures:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return self._compute(images, outputs)


class Mapping:
    """A backend with an output as large as features are."""

    outputs = ("probabilities", "features")

    def run(self, images, outputs):
        return {name: np.ones((len(images), 2000 if name == "features" else 2), np.float32) for name in outputs}


def test_a_result_holds_nothing_large_of_its_batch_mates(start_scheduler, new_entry, mailbox, answered):
    scheduler = start_scheduler(Mapping())
    with scheduler._lock:  # so that both are in one batch
        for value in (1, 2):
            entry = new_entry(value, outputs=("probabilities", "features"))
            scheduler._queue.put(entry, 0)
        scheduler._filled.notify()
    mailbox.open()
    assert [entry.result["features"].shape for entry in answered] == [(1, 2000), (1, 2000)]
    assert [entry.result["features"].base for entry in answered] == [None, None]


class Widening:
    """A backend whose rows get longer with every run, so that the parts of one result do not fit together."""

    outputs = ("probabilities",)

    def __init__(self) -> None:
        self._runs = 0

    def run(self, images, outputs):
        self._runs += 1
        return {name: np.zeros((len(images), self._runs), np.float32) for name in outputs}


def test_a_result_that_cannot_be_joined_fails_alone_and_the_worker_goes_on(start_scheduler, new_entry, mailbox, caplog):
    scheduler = start_scheduler(Widening(), max_batch_size=1)
    split, whole = new_entry(1, 2, client="a"), new_entry(3, client="b")
    scheduler.submit(split)
    mailbox.open()
    scheduler.submit(whole)
    mailbox.open()
    assert isinstance(split.error, Internal)
    assert whole.result["probabilities"].shape == (1, 3)
    assert "could not be joined" in caplog.text


def test_more_than_may_wait_is_refused_with_a_time_to_come_back_and_not_taken(start_scheduler, new_entry, puppet):
    scheduler = start_scheduler(puppet, max_batch_size=1)
    scheduler.submit(new_entry(1))
    puppet.next()
    scheduler.submit(new_entry(2, 3), most=3)
    with pytest.raises(Overloaded, match="queue is full") as caught:
        scheduler.submit(new_entry(4, 5), most=3)
    assert caught.value.retry_after_s > 0
    assert scheduler.queued_images == 2
    scheduler.submit(new_entry(4), most=3)


def test_a_worker_says_that_it_is_idle_once_nothing_waits(start_scheduler, new_entry, puppet, mailbox):
    scheduler = start_scheduler(puppet, max_batch_size=1)
    scheduler.submit(new_entry(1))
    run = puppet.next()
    scheduler.submit(new_entry(2))
    run.finish()
    puppet.next().finish()
    mailbox.open()
    mailbox.open()
    assert mailbox.idle == [False, True]


def test_an_entry_is_answered_with_its_own_rows(start_scheduler, new_entry, puppet, mailbox, answered):
    scheduler = start_scheduler(puppet)
    entry = new_entry(7, 8, outputs=("probabilities", "logits"))
    scheduler.submit(entry)
    run = puppet.next()
    assert (run.values, run.outputs) == ([7, 8], ["probabilities", "logits"])
    run.finish()
    mailbox.open()
    assert answered == [entry]
    assert entry.result["probabilities"].tolist() == [[7, 13], [8, 13]]
    assert entry.result["logits"].tolist() == [[7, 6], [8, 6]]


def test_a_batch_computes_every_output_that_is_wanted_and_gives_each_entry_its_own(
    start_scheduler, new_entry, puppet, mailbox, answered
):
    scheduler = start_scheduler(puppet)
    scheduler.submit(new_entry(0))
    first = puppet.next()
    plain, curious = new_entry(1), new_entry(2, outputs=("logits", "probabilities"))
    scheduler.submit(plain)
    scheduler.submit(curious)
    first.finish()
    shared = puppet.next()
    assert (shared.values, shared.outputs) == ([1, 2], ["probabilities", "logits"])
    shared.finish()
    mailbox.open_until(lambda: len(answered) == 3)
    assert set(plain.result) == {"probabilities"}
    assert set(curious.result) == {"logits", "probabilities"}


def test_the_listener_hears_how_many_images_a_batch_left_waiting(start_scheduler, new_entry, puppet, ears):
    scheduler = start_scheduler(puppet, max_batch_size=2)
    scheduler.submit(new_entry(0))
    first = puppet.next()
    scheduler.submit(new_entry(1, 2, 3))
    scheduler.submit(new_entry(4, 5))
    assert (scheduler.queued_images, scheduler.queued_requests, scheduler.queued_clients) == (5, 2, 1)
    first.finish()
    puppet.next().finish()
    puppet.next().finish()
    puppet.next()
    assert [(rows, waiting) for _, rows, waiting in ears.started] == [(1, 0), (2, 3), (2, 1), (1, 0)]
    assert (scheduler.queued_requests, scheduler.queued_clients) == (0, 0)


def test_a_finished_batch_wakes_each_inbox_once(start_scheduler, new_entry, puppet, mailbox, new_mailbox, answered):
    other = new_mailbox()
    scheduler = start_scheduler(puppet)
    scheduler.submit(new_entry(0))
    first = puppet.next()
    for value, inbox in enumerate([mailbox, other, mailbox, other, mailbox]):
        scheduler.submit(new_entry(value, inbox=inbox))
    first.finish()
    puppet.next().finish()
    mailbox.open()
    mailbox.open()
    other.open()
    assert (mailbox.posts, other.posts) == ([1, 3], [2])
    assert len(answered) == 6


def test_the_answer_comes_on_the_thread_of_the_inbox(start_scheduler, new_entry, puppet, mailbox):
    threads = []
    scheduler = start_scheduler(puppet)
    scheduler.submit(new_entry(1, on_finished=lambda _: threads.append(threading.current_thread())))
    puppet.next().finish()
    mailbox.open()
    assert threads == [threading.current_thread()]


def test_a_split_entry_is_put_together_in_order_however_its_parts_end(
    start_scheduler, new_entry, new_puppet, mailbox, answered
):
    left, right = new_puppet(), new_puppet()
    scheduler = start_scheduler(left, right, max_batch_size=2)
    scheduler.submit(entry := new_entry(1, 2, 3, 4, 5))
    hands = sorted([(left.next(), left), (right.next(), right)], key=lambda hand: hand[0].values)
    assert [run.values for run, _ in hands] == [[1, 2], [3, 4]]
    (first, _), (second, quick) = hands
    second.finish()
    third = quick.next()
    assert third.values == [5]
    third.finish()
    first.finish()
    mailbox.open()
    assert answered == [entry]
    assert answers(entry) == [1, 2, 3, 4, 5]


def test_timings_are_seconds_in_the_queue_and_in_the_engine(start_scheduler, new_entry, puppet, clock, mailbox, ears):
    scheduler = start_scheduler(puppet)
    scheduler.submit(new_entry(1))
    first = puppet.next()
    scheduler.submit(entry := new_entry(2, 3))
    clock.advance(3)
    first.finish()
    second = puppet.next()
    clock.advance(2)
    second.finish()
    mailbox.open()
    mailbox.open()
    assert (entry.timings.queue_s, entry.timings.infer_s) == (3, 2)
    assert ears.batches == [(("net", "1"), 1, 3), (("net", "1"), 2, 2)]


def test_a_worker_that_becomes_free_takes_everything_that_waits(start_scheduler, new_entry, new_puppet):
    left, right = new_puppet(), new_puppet()
    scheduler = start_scheduler(left, right, max_batch_size=8)
    scheduler.submit(new_entry(1))
    scheduler.submit(new_entry(2))
    left_run, _ = left.next(), right.next()
    for value in (3, 4, 5):
        scheduler.submit(new_entry(value))
    left_run.finish()
    assert left.next().values == [3, 4, 5]


def test_an_idle_worker_takes_work_at_once_though_the_others_are_busy(start_scheduler, new_entry, new_puppet):
    left, right = new_puppet(), new_puppet()
    scheduler = start_scheduler(left, right, max_batch_size=1)
    scheduler.submit(new_entry(1, 2))
    left.next()
    run = right.next()
    for value in (3, 4, 5):
        run.finish()
        scheduler.submit(new_entry(value))
        run = right.next()
        assert run.values == [value]


def test_all_idle_workers_share_an_entry_of_many_rows(start_scheduler, new_entry, new_puppet, mailbox, answered):
    puppets = [new_puppet() for _ in range(3)]
    scheduler = start_scheduler(*puppets, max_batch_size=1)
    scheduler.submit(new_entry(0, 0, 0))
    runs = [puppet.next() for puppet in puppets]
    for turn in range(20):
        for run in runs:
            run.finish()
        mailbox.open_until(lambda: len(answered) > turn)  # noqa: B023 - it is called here
        scheduler.submit(new_entry(1, 2, 3))
        runs = [puppet.next() for puppet in puppets]
        assert sorted(run.values for run in runs) == [[1], [2], [3]]


def test_a_failing_engine_fails_the_entries_of_its_batch_alone_and_is_used_again(
    start_scheduler, new_entry, puppet, mailbox, answered, ears, caplog
):
    scheduler = start_scheduler(puppet)
    scheduler.submit(before := new_entry(1))
    first = puppet.next()
    scheduler.submit(unlucky := new_entry(2))
    scheduler.submit(fellow := new_entry(3))
    first.finish()
    puppet.next().fail(RuntimeError("device lost, secret path /srv/models"))
    mailbox.open_until(lambda: len(answered) == 3)
    scheduler.submit(after := new_entry(4))
    puppet.next().finish()
    mailbox.open()
    assert (answers(before), answers(after)) == ([1], [4])
    for entry in (unlucky, fellow):
        assert isinstance(entry.error, Internal)
        assert "secret" not in str(entry.error)
    assert "device lost" in caplog.text
    assert [rows for _, rows, _ in ears.batches] == [1, 1]


def test_a_split_entry_one_part_of_which_fails_is_answered_once_and_its_rest_is_not_run(
    start_scheduler, new_entry, puppet, mailbox, answered, ears
):
    scheduler = start_scheduler(puppet, max_batch_size=2)
    scheduler.submit(split := new_entry(1, 2, 3, 4, 5, 6))
    puppet.next().finish()
    second = puppet.next()
    scheduler.submit(behind := new_entry(7))
    second.fail(RuntimeError("out of memory"))
    assert puppet.next().values == [7]
    puppet.release()
    mailbox.open_until(lambda: len(answered) == 2)
    assert answered == [split, behind]
    assert isinstance(split.error, Internal)
    assert split.result is None
    assert ears.drops == []  # it was answered as a failure; that is not a drop too


def test_the_parts_of_a_failed_entry_still_in_workers_hands_are_waited_for(
    start_scheduler, new_entry, new_puppet, mailbox, answered
):
    left, right = new_puppet(), new_puppet()
    scheduler = start_scheduler(left, right, max_batch_size=1)
    scheduler.submit(entry := new_entry(1, 2))
    left_run, right_run = left.next(), right.next()
    left_run.fail(RuntimeError("out of memory"))
    scheduler.submit(new_entry(3))
    left.next().finish()
    mailbox.open()
    assert entry not in answered
    right_run.finish()
    mailbox.open()
    assert answered.count(entry) == 1
    assert isinstance(entry.error, Internal)


def test_an_entry_cancelled_in_the_queue_is_not_run_and_counted(
    start_scheduler, new_entry, puppet, mailbox, answered, ears
):
    scheduler = start_scheduler(puppet)
    scheduler.submit(new_entry(1))
    first = puppet.next()
    scheduler.submit(gone := new_entry(2, 3, 4))
    scheduler.submit(stays := new_entry(5))
    gone.cancelled = True
    first.finish()
    second = puppet.next()
    assert second.values == [5]
    second.finish()
    mailbox.open_until(lambda: len(answered) == 3)
    assert isinstance(gone.error, Cancelled)
    assert answers(stays) == [5]
    assert ears.drops == [(("net", "1"), "cancelled", 3)]


def test_an_entry_that_expires_in_the_queue_is_not_run_and_counted(
    start_scheduler, new_entry, puppet, mailbox, answered, ears, clock
):
    scheduler = start_scheduler(puppet)
    scheduler.submit(new_entry(1))
    first = puppet.next()
    scheduler.submit(late := new_entry(2, 3, deadline=clock.now + 5))
    clock.advance(5)
    first.finish()
    mailbox.open_until(lambda: len(answered) == 2)
    assert isinstance(late.error, DeadlineExceeded)
    assert ears.drops == [(("net", "1"), "expired", 2)]
    assert puppet.is_idle()


def test_an_entry_cancelled_while_it_runs_is_answered_with_its_result(
    start_scheduler, new_entry, puppet, mailbox, answered, ears
):
    scheduler = start_scheduler(puppet)
    scheduler.submit(entry := new_entry(1))
    run = puppet.next()
    entry.cancelled = True
    run.finish()
    mailbox.open()
    assert answered == [entry]
    assert answers(entry) == [1]
    assert ears.drops == []


def test_a_half_run_entry_that_is_cancelled_is_answered_when_its_running_rows_end(
    start_scheduler, new_entry, new_puppet, mailbox, answered, ears
):
    left, right = new_puppet(), new_puppet()
    scheduler = start_scheduler(left, right, max_batch_size=1)
    scheduler.submit(entry := new_entry(1, 2, 3))
    left_run, right_run = left.next(), right.next()
    entry.cancelled = True
    left_run.finish()
    scheduler.submit(new_entry(4))
    left.next().finish()  # the dropped row lay before it
    mailbox.open()
    assert entry not in answered
    right_run.finish()
    mailbox.open()
    assert answered.count(entry) == 1
    assert isinstance(entry.error, Cancelled)
    assert ears.drops == [(("net", "1"), "cancelled", 1)]


def test_an_entry_whose_last_row_ends_while_its_drop_is_reported_is_answered_once(
    start_scheduler, new_entry, new_puppet, new_mailbox, ears, mailbox, answered
):
    left, right, theirs = new_puppet(), new_puppet(), new_mailbox()
    runs = {}

    class SlowEars(type(ears)):
        """While it hears that the third row is dropped, the second one ends and the entry is answered."""

        def dropped(self, *_) -> None:
            runs["right"].finish()
            theirs.open()

    scheduler = start_scheduler(left, right, max_batch_size=1, listener=SlowEars())
    scheduler.submit(entry := new_entry(1, 2, 3, inbox=theirs))
    runs["left"], runs["right"] = left.next(), right.next()
    entry.cancelled = True
    runs["left"].finish()
    scheduler.submit(later := new_entry(4))
    left.release()
    right.release()
    mailbox.open()
    scheduler.close()
    assert theirs.posts == [1]
    assert answered == [entry, later]


def test_an_inbox_that_refuses_does_not_take_the_others_answers_with_it(
    start_scheduler, new_entry, puppet, mailbox, answered, caplog
):
    class Gone:
        def post(self, _, *, idle=False) -> None:  # noqa: ARG002
            raise RuntimeError("Event loop is closed")

    scheduler = start_scheduler(puppet)
    scheduler.submit(new_entry(1))
    first = puppet.next()
    scheduler.submit(new_entry(2, inbox=Gone()))
    scheduler.submit(fellow := new_entry(3))
    first.finish()
    puppet.next().finish()
    mailbox.open_until(lambda: fellow in answered)
    scheduler.submit(after := new_entry(4))
    puppet.next().finish()
    mailbox.open()
    assert answers(after) == [4]
    assert "refused 1 finished requests" in caplog.text


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda _: {}, id="an output is missing"),
        pytest.param(lambda outcome: {"probabilities": outcome["probabilities"][:1]}, id="a row is missing"),
        pytest.param(lambda _: None, id="nothing at all"),
    ],
)
def test_an_engine_that_breaks_its_contract_fails_its_batch_and_not_its_worker(
    start_scheduler, new_entry, mailbox, answered, compute, spoil
):
    class Broken:
        outputs = ("probabilities",)

        def run(self, images, outputs):
            outcome = compute(images, outputs)
            return spoil(outcome) if images[0, 0, 0, 0] == 1 else outcome

    scheduler = start_scheduler(Broken())
    scheduler.submit(unlucky := new_entry(1, 2))
    try:
        mailbox.open()
    except queue.Empty:
        pytest.fail("the entry got no answer")
    assert answered == [unlucky]
    assert isinstance(unlucky.error, Internal)
    scheduler.submit(after := new_entry(3))
    mailbox.open()
    assert answers(after) == [3]


def test_close_finishes_what_runs_and_fails_what_waits(start_scheduler, new_entry, puppet, mailbox, answered, ears):
    scheduler = start_scheduler(puppet, max_batch_size=1)
    scheduler.submit(running := new_entry(1))
    run = puppet.next()
    scheduler.submit(waiting := new_entry(2, 3))
    closed = in_background(scheduler.close)
    mailbox.open()
    assert answered == [waiting]
    assert isinstance(waiting.error, Unavailable)
    assert ears.drops == [(("net", "1"), "shutdown", 2)]
    assert not closed.wait(MOMENT_S)
    run.finish()
    assert closed.wait(PATIENCE_S)
    mailbox.open()
    assert answers(running) == [1]
    assert puppet.is_idle()


def test_close_answers_a_half_run_entry_once_when_its_running_rows_end(
    start_scheduler, new_entry, puppet, mailbox, answered, ears
):
    scheduler = start_scheduler(puppet, max_batch_size=2)
    scheduler.submit(entry := new_entry(1, 2, 3, 4, 5))
    run = puppet.next()
    closed = in_background(scheduler.close)
    assert not closed.wait(MOMENT_S)
    assert mailbox.is_empty()
    run.finish()
    assert closed.wait(PATIENCE_S)
    mailbox.open()
    assert answered == [entry]
    assert isinstance(entry.error, Unavailable)
    assert ears.dropped_rows("shutdown") == 3


def test_after_close_nothing_is_taken(start_scheduler, new_entry, puppet, mailbox, answered):
    scheduler = start_scheduler(puppet)
    scheduler.close()
    with pytest.raises(Unavailable, match="model 'net' version 1 is shutting down"):
        scheduler.submit(new_entry(1))
    scheduler.close()
    assert scheduler.queued_images == 0
    assert answered == []
    assert mailbox.is_empty()


def test_queued_images_are_those_that_no_worker_has(start_scheduler, new_entry, puppet):
    scheduler = start_scheduler(puppet, max_batch_size=2)
    scheduler.submit(new_entry(1, 2, 3, 4, 5))
    run = puppet.next()
    assert scheduler.queued_images == 3
    run.finish()
    puppet.next()
    assert scheduler.queued_images == 1


def test_the_estimate_learns_what_a_batch_takes(start_scheduler, new_entry, puppet, clock):
    scheduler = start_scheduler(puppet, max_batch_size=2)
    scheduler.submit(new_entry(1, 2, 3, 4, 5, 6))
    run = puppet.next()
    assert scheduler.estimate("", 1, 1) == (0, 0)  # nothing is known yet
    clock.advance(4)
    run.finish()
    run = puppet.next()
    # two wait, and the new one: once the running batch has ended, a batch of two goes before it
    assert scheduler.estimate("", 1, 1) == (4 + 4, 4)
    clock.advance(3)
    assert scheduler.estimate("", 1, 1) == (1 + 4, 4)
    clock.advance(2)
    assert scheduler.estimate("", 1, 1) == (0 + 4, 4)  # it is late; nobody knows by how much more


def test_more_workers_shorten_the_estimated_wait(start_scheduler, new_entry, new_puppet, clock):
    left, right = new_puppet(), new_puppet()
    scheduler = start_scheduler(left, right, max_batch_size=1)
    scheduler.submit(new_entry(1, 2))
    run, _ = left.next(), right.next()
    clock.advance(3)
    run.finish()
    scheduler.submit(new_entry(3, 4, 5))
    left.next()
    assert scheduler.estimate("", 1, 1) == (3, 3)  # the right one is due, and takes it after one of the two
    scheduler.submit(new_entry(6))
    assert scheduler.estimate("", 1, 1) == (3 + 3, 3)


def test_a_person_does_not_wait_for_all_that_a_batch_job_has_queued(start_scheduler, new_entry, puppet, clock):
    scheduler = start_scheduler(puppet, max_batch_size=1)
    scheduler.submit(new_entry(*range(100), client="job"))
    run = puppet.next()
    clock.advance(1)
    run.finish()
    puppet.next()
    assert scheduler.estimate("person", 1, 1) == (1, 1)  # the one that runs
    assert scheduler.estimate("person", 1, 90) == (1 + 89 + 89, 1)  # by turns
    assert scheduler.estimate("job", 1, 1) == (1 + 98, 1)


def test_cancelling_answers_at_once_and_makes_room(start_scheduler, new_entry, puppet, mailbox, answered, ears):
    scheduler = start_scheduler(puppet)
    scheduler.submit(new_entry(1))
    puppet.next()
    scheduler.submit(gone := new_entry(2, 3))
    scheduler.cancel(gone)
    scheduler.cancel(gone)
    mailbox.open()
    assert answered == [gone]
    assert isinstance(gone.error, Cancelled)
    assert scheduler.queued_images == 0
    assert ears.drops == [(("net", "1"), "cancelled", 2)]


def test_cancelling_what_runs_already_changes_nothing(start_scheduler, new_entry, puppet, mailbox, answered, ears):
    scheduler = start_scheduler(puppet)
    scheduler.submit(entry := new_entry(1))
    run = puppet.next()
    scheduler.cancel(entry)
    run.finish()
    mailbox.open()
    scheduler.cancel(entry)
    assert answered == [entry]
    assert answers(entry) == [1]
    assert ears.drops == []


def test_a_half_run_entry_that_is_cancelled_at_once_is_answered_when_its_running_rows_end(
    start_scheduler, new_entry, puppet, mailbox, answered, ears
):
    scheduler = start_scheduler(puppet, max_batch_size=1)
    scheduler.submit(entry := new_entry(1, 2, 3))
    run = puppet.next()
    scheduler.cancel(entry)
    assert mailbox.is_empty()
    run.finish()
    mailbox.open()
    assert answered == [entry]
    assert isinstance(entry.error, Cancelled)
    assert ears.drops == [(("net", "1"), "cancelled", 2)]
    scheduler.submit(new_entry(4))
    puppet.next().finish()  # so the worker has done with the other
    mailbox.open()
    assert len(answered) == 2
    assert mailbox.is_empty()


def test_an_idle_worker_waits_for_a_configured_delay_and_no_longer(new_entry, compute, ears, mailbox):
    """On the real clock: only the waiting is tested here, when to wait is the queue's business."""
    policy = Policy(8, max_queue_delay_s=0.2)
    scheduler = Scheduler(ModelKey("net", "1"), [Instant(compute)], BatchQueue(policy), ears)
    for value in (1, 2):
        scheduler.submit(new_entry(value))
        time.sleep(0.02)  # long enough for an idle worker to take it, were it not to wait
    mailbox.open()
    scheduler.submit(new_entry(*range(8)))
    mailbox.open()
    scheduler.close()
    assert [rows for _, rows, _ in ears.batches] == [2, 8]


def test_a_request_of_a_preferred_size_does_not_wait_out_the_delay_because_two_workers_are_idle(
    new_entry, compute, ears, mailbox
):
    policy = Policy(8, preferred_batch_sizes=(4,), max_queue_delay_s=60)
    scheduler = Scheduler(ModelKey("net", "1"), [Instant(compute)] * 2, BatchQueue(policy), ears)
    scheduler.submit(new_entry(1, 2, 3, 4))
    mailbox.open()
    for value in (5, 6, 7, 8):
        scheduler.submit(new_entry(value))
    mailbox.open()
    scheduler.close()
    assert [rows for _, rows, _ in ears.batches] == [4, 4]


def test_a_hundred_thousand_cancellations_inside_batches_never_touch_a_batch_mate(compute, ears):
    """Half of the entries of every batch are cancelled from another thread while it is formed and run."""
    scheduler = Scheduler(ModelKey("net", "1"), [Instant(compute)] * 2, BatchQueue(Policy(16, levels=3)), ears)
    count, stayed, gone = 100_000, [], []
    finished = threading.Semaphore(0)

    class Direct:
        def post(self, jobs, *, idle=False) -> None:  # noqa: ARG002
            for job in jobs:
                job()
                finished.release()

    to_cancel: queue.SimpleQueue[Entry | None] = queue.SimpleQueue()

    def cancel_all() -> None:
        while (entry := to_cancel.get()) is not None:
            scheduler.cancel(entry)

    canceller = threading.Thread(target=cancel_all)
    canceller.start()
    inbox, seen = Direct(), []
    images = [np.full((1, 1, 1, 3), value, np.uint8) for value in range(256)]
    for number in range(2 * count):
        leaves = bool(number % 2)
        entry = Entry(
            images[number % 256], ("probabilities",), float("inf"), inbox, seen.append, client=str(number % 5)
        )
        (gone if leaves else stayed).append(entry)
        scheduler.submit(entry)
        if leaves:
            to_cancel.put(entry)
        if number >= 4096:  # as admission would
            assert finished.acquire(timeout=PATIENCE_S)
    to_cancel.put(None)
    canceller.join()
    assert until(lambda: len(seen) >= 2 * count)
    scheduler.close()
    assert len(seen) == len({id(entry) for entry in seen}) == 2 * count
    assert all(answers(entry) == [int(entry.images[0, 0, 0, 0])] for entry in stayed)
    cancelled = [entry for entry in gone if entry.error is not None]
    assert all(isinstance(entry.error, Cancelled) for entry in cancelled)
    assert len(cancelled) == ears.dropped_rows("cancelled") > count // 100


@settings(max_examples=40, deadline=None)
@given(
    entries=st.lists(st.integers(1, 6), min_size=1, max_size=12),
    max_batch_size=st.integers(1, 9),
    workers=st.integers(1, 3),
)
def test_one_image_alone_equals_the_same_image_in_any_batch(entries, max_batch_size, workers):
    class Collecting:
        def __init__(self) -> None:
            self.done = threading.Semaphore(0)

        def post(self, jobs, *, idle=False) -> None:  # noqa: ARG002
            for job in jobs:
                job()
                self.done.release()

    class Engine:
        """An answer of two outputs that depends on every pixel of the image and on nothing else."""

        outputs = ("probabilities", "map")

        def run(self, images, outputs):
            pixels = images.astype(np.float32)
            computed = {"probabilities": np.sqrt(pixels.sum(axis=(1, 2)) + 1), "map": pixels.mean(axis=3) / 7}
            return {name: computed[name] for name in outputs}

    class Deaf:
        def batch_started(self, *_) -> None: ...
        def batch_finished(self, *_) -> None: ...
        def dropped(self, *_) -> None: ...
        def call_finished(self, *_) -> None: ...

    rng = np.random.default_rng(0)
    inbox = Collecting()
    scheduler = Scheduler(ModelKey("net", "1"), [Engine()] * workers, BatchQueue(Policy(max_batch_size)), Deaf())
    outputs = [("probabilities",), ("map", "probabilities"), ("map",)]
    submitted = [
        Entry(
            rng.integers(0, 256, (rows, 2, 3, 3), np.uint8),
            outputs[index % 3],
            deadline=float("inf"),
            inbox=inbox,
            on_finished=lambda _: None,
        )
        for index, rows in enumerate(entries)
    ]
    for entry in submitted:
        scheduler.submit(entry)
    for _ in submitted:
        assert inbox.done.acquire(timeout=PATIENCE_S)
    scheduler.close()
    for entry in submitted:
        for row in range(entry.rows):
            alone = Engine().run(entry.images[row : row + 1], entry.outputs)
            for name in entry.outputs:
                np.testing.assert_array_equal(entry.result[name][row], alone[name][0])
        assert all(len(array) == entry.rows for array in entry.result.values())


class Tally:
    """Counts the answers of each entry, on whatever thread they come."""

    def __init__(self, clock) -> None:
        self.counts: Counter[int] = Counter()
        self.many = threading.Event()
        self._clock = clock
        self._lock = threading.Lock()

    def post(self, jobs, *, idle=False) -> None:  # noqa: ARG002
        for job in jobs:
            job()

    def count(self, entry: Entry) -> None:
        with self._lock:
            self.counts[id(entry)] += 1
            self._clock.advance(0.01)
            if len(self.counts) > 50:
                self.many.set()


@contextlib.contextmanager
def restless_threads():
    """Interrupts threads much more often than usual, so that races show."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        yield
    finally:
        sys.setswitchinterval(interval)


@pytest.mark.parametrize("close_early", [False, True])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_chaos_costs_no_accepted_entry_its_one_answer(start_scheduler, new_entry, compute, clock, seed, close_early):
    """Three flaky engines, four threads that submit, cancel and set deadlines; and a close in the middle."""
    backends = [Instant(compute, random.Random(seed + worker), failures=0.2) for worker in range(3)]
    scheduler = start_scheduler(*backends, max_batch_size=4)
    tally = Tally(clock)
    accepted: list[Entry] = []

    def submit_many(random_: random.Random) -> None:
        for number in range(250):
            values = [number] * random_.randint(1, 9)
            deadline = clock.now + random_.choice([-1, 0.05, 0.5, 1e9, 1e9, 1e9])
            entry = new_entry(*values, deadline=deadline, inbox=tally, on_finished=tally.count)
            entry.cancelled = random_.random() < 0.1
            try:
                scheduler.submit(entry)
            except Unavailable:
                return
            accepted.append(entry)
            random_.choice(accepted).cancelled |= random_.random() < 0.2

    threads = [threading.Thread(target=submit_many, args=(random.Random(seed * 100 + n),)) for n in range(4)]
    with restless_threads():
        for thread in threads:
            thread.start()
        closed_early = close_early and tally.many.wait(PATIENCE_S) and in_background(scheduler.close).wait(PATIENCE_S)
        for thread in threads:
            thread.join(PATIENCE_S)
        drained = until(lambda: len(tally.counts) >= len(accepted))
        closed = in_background(scheduler.close).wait(PATIENCE_S)
    assert closed_early == close_early
    assert not any(thread.is_alive() for thread in threads)
    assert drained
    assert closed
    assert close_early or len(accepted) == 1000
    assert Counter(tally.counts[id(entry)] for entry in accepted) == {1: len(accepted)}
    assert scheduler.queued_images == 0
    for entry in accepted:
        if entry.error is None:
            assert answers(entry) == [int(value) for value in entry.images[:, 0, 0, 0]]
        else:
            assert isinstance(entry.error, AttnserveError)
            assert entry.result is None
