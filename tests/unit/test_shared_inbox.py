"""Jobs from any thread run in order and never two at a time, on whichever thread is there, and none is forgotten."""

from __future__ import annotations

import threading

import pytest

from attnserve.transport.shared_inbox import SharedInbox


def busy(inbox: SharedInbox) -> tuple[threading.Thread, threading.Event]:
    """A thread that has the turn until the event is set."""
    begun, go_on = threading.Event(), threading.Event()

    def slow() -> None:
        begun.set()
        assert go_on.wait(20)

    thread = threading.Thread(target=inbox.run, args=(slow,))
    thread.start()
    assert begun.wait(20)
    return thread, go_on


def test_what_a_thread_brings_it_does_itself_after_what_was_posted_before():
    inbox, ran = SharedInbox(), []
    inbox.post([lambda: ran.append(1), lambda: ran.append(2)])
    assert ran == []
    inbox.run(lambda: ran.append(threading.current_thread()))
    assert ran == [1, 2, threading.current_thread()]


def test_posted_jobs_are_done_by_the_thread_that_is_there_for_them_until_the_inbox_is_closed():
    inbox, ran = SharedInbox(), []
    thread = threading.Thread(target=inbox.run_posted)
    thread.start()
    done = threading.Event()
    inbox.post([lambda: ran.append(threading.current_thread()), done.set])
    assert done.wait(20)
    inbox.post([lambda: ran.append("the last")])
    inbox.close()
    thread.join(20)
    assert not thread.is_alive()
    assert ran == [thread, "the last"]


def test_a_job_that_a_job_brings_is_done_after_it():
    inbox, ran = SharedInbox(), []

    def first() -> None:
        inbox.run(lambda: ran.append("second"))
        inbox.post([lambda: ran.append("third")])
        ran.append("first")

    inbox.run(first)
    assert ran == ["first", "second", "third"]


def test_whoever_has_the_turn_does_what_others_bring_meanwhile():
    inbox, ran = SharedInbox(), []
    thread, go_on = busy(inbox)
    inbox.run(lambda: ran.append(threading.current_thread()))
    inbox.post([lambda: ran.append(threading.current_thread())])
    assert ran == []
    go_on.set()
    thread.join(20)
    assert ran == [thread, thread]


@pytest.mark.parametrize("by", ["run", "post"])
def test_a_job_that_comes_just_as_the_turn_is_given_back_is_not_forgotten(by):
    ran = []

    class Turn:
        """A lock at whose first release somebody else brings a job."""

        def __init__(self) -> None:
            self._lock = threading.Lock()
            self.acquire, self.locked = self._lock.acquire, self._lock.locked
            self._released = 0

        def release(self) -> None:
            self._released += 1
            if self._released == 1:
                inbox.run(late) if by == "run" else inbox.post([late])
            self._lock.release()

    def late() -> None:
        ran.append("late")

    inbox = SharedInbox(Turn())
    inbox.run(lambda: ran.append("first"))
    assert ran == ["first", "late"]


def test_a_job_that_raises_does_not_hold_up_the_ones_behind_it(caplog):
    inbox, ran = SharedInbox(), []
    inbox.post([lambda: 1 / 0])
    inbox.run(lambda: ran.append("behind"))
    assert ran == ["behind"]
    assert "ZeroDivisionError" in caplog.text


def test_every_job_of_every_thread_runs_once_in_its_order_and_alone():
    inbox, done = SharedInbox(), threading.Event()
    ran: dict[int, list[int]] = {name: [] for name in range(6)}
    inside, together = [], []

    def job(name: int, number: int) -> None:
        inside.append(name)
        ran[name].append(number)
        if len(inside) > 1:
            together.append(name)
        inside.pop()
        if sum(map(len, ran.values())) == 12_000:
            done.set()

    def bring(name: int) -> None:
        for number in range(0, 2000, 2):
            jobs = [lambda n=number: job(name, n), lambda n=number: job(name, n + 1)]
            if name % 2:
                inbox.post(jobs)
            else:
                inbox.run(jobs[0])
                inbox.run(jobs[1])

    server = threading.Thread(target=inbox.run_posted)
    threads = [server, *(threading.Thread(target=bring, args=(name,)) for name in ran)]
    for thread in threads:
        thread.start()
    assert done.wait(20)
    inbox.close()
    for thread in threads:
        thread.join(20)
    assert together == []
    assert all(numbers == list(range(2000)) for numbers in ran.values())


def test_an_idle_thread_does_what_it_posts_itself_and_what_waited_before():
    inbox, ran = SharedInbox(), []
    inbox.post([lambda: ran.append("before")])
    inbox.post([lambda: ran.append(threading.current_thread())], idle=True)
    assert ran == ["before", threading.current_thread()]


def test_an_idle_thread_leaves_what_comes_meanwhile_to_the_one_that_is_there_for_it():
    inbox, ran, done = SharedInbox(), [], threading.Event()

    def bring() -> None:
        ran.append(threading.current_thread())
        inbox.run(lambda: (ran.append(threading.current_thread()), done.set()))

    inbox.post([bring], idle=True)
    assert ran == [threading.current_thread()]
    thread = threading.Thread(target=inbox.run_posted)
    thread.start()
    assert done.wait(20)
    inbox.close()
    thread.join(20)
    assert ran == [threading.current_thread(), thread]


def test_an_idle_thread_leaves_its_jobs_to_whoever_has_the_turn():
    inbox, ran = SharedInbox(), []
    thread, go_on = busy(inbox)
    inbox.post([lambda: ran.append(threading.current_thread())], idle=True)
    assert ran == []
    go_on.set()
    thread.join(20)
    assert ran == [thread]
