"""Jobs from any thread run on the loop, all of them, in order, with few wake-ups."""

from __future__ import annotations

import asyncio
import threading

from attnserve.transport.loop_inbox import LoopInbox


class PuppetLoop:
    """An event loop whose turns the test makes."""

    def __init__(self) -> None:
        self.woken: list = []

    def call_soon_threadsafe(self, callback, *args) -> None:
        self.woken.append((callback, args))

    def turn(self) -> None:
        """Run what was scheduled before this turn; a callback that raises does not end the loop, as in asyncio."""
        callbacks, self.woken = self.woken, []
        for callback, args in callbacks:
            try:
                callback(*args)
            except Exception as error:
                self.reported = error


def test_jobs_run_in_the_order_in_which_they_were_posted():
    loop, ran = PuppetLoop(), []
    inbox = LoopInbox(loop)
    inbox.post([lambda: ran.append(1), lambda: ran.append(2)])
    inbox.post([lambda: ran.append(3)])
    assert ran == []
    loop.turn()
    assert ran == [1, 2, 3]


def test_however_many_posts_come_between_two_turns_the_loop_is_woken_once():
    loop = PuppetLoop()
    inbox = LoopInbox(loop)
    for _ in range(10):
        inbox.post([lambda: None])
    assert len(loop.woken) == 1
    loop.turn()
    inbox.post([lambda: None])
    assert len(loop.woken) == 1


def test_a_job_posted_by_a_job_is_not_lost():
    loop, ran = PuppetLoop(), []
    inbox = LoopInbox(loop)
    inbox.post([lambda: inbox.post([lambda: ran.append("late")])])
    loop.turn()
    loop.turn()
    assert ran == ["late"]


def test_an_empty_post_does_no_harm():
    loop, ran = PuppetLoop(), []
    inbox = LoopInbox(loop)
    inbox.post([])
    inbox.post([lambda: ran.append(1)])
    loop.turn()
    assert ran == [1]


def test_a_job_that_raises_does_not_hold_up_the_ones_behind_it():
    loop, ran = PuppetLoop(), []
    inbox = LoopInbox(loop)
    inbox.post([lambda: 1 / 0, lambda: ran.append("behind")])
    loop.turn()
    loop.turn()
    assert ran == ["behind"]


def test_on_a_real_loop_every_job_of_every_thread_runs_once_in_its_order_on_the_loop_s_thread():
    async def main() -> None:
        inbox, done = LoopInbox(asyncio.get_running_loop()), asyncio.Event()
        home, ran = threading.get_ident(), {name: [] for name in range(4)}
        strangers = []

        def job(name: int, number: int) -> None:
            ran[name].append(number)
            if threading.get_ident() != home:
                strangers.append(name)
            if sum(map(len, ran.values())) == 4000:
                done.set()

        def post_many(name: int) -> None:
            for number in range(0, 1000, 2):
                inbox.post([lambda n=number: job(name, n), lambda n=number: job(name, n + 1)])

        threads = [threading.Thread(target=post_many, args=(name,)) for name in ran]
        for thread in threads:
            thread.start()
        await asyncio.wait_for(done.wait(), timeout=20)
        for thread in threads:
            thread.join(timeout=20)
        assert all(numbers == list(range(1000)) for numbers in ran.values())
        assert strangers == []

    asyncio.run(main())
