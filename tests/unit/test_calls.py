"""Open calls are counted and waited for, whatever comes between."""

from __future__ import annotations

import asyncio
from typing import Any

from attnserve.contract import Call
from attnserve.listeners import QuietListener
from attnserve.transport.calls import Calls
from attnserve.transport.loop_inbox import LoopInbox


def calls_on_this_loop() -> Calls:
    loop = asyncio.get_running_loop()
    return Calls(LoopInbox(loop), QuietListener(), loop=loop)


def opened(calls: Calls) -> Call:
    def answer(*_: Any) -> None:
        calls.ended()

    return calls.open("Ask", answer, metadata=(), peer="somebody", remaining_s=None)


async def turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_a_call_that_begins_as_the_last_one_ends_is_waited_for_too():
    async def run() -> None:
        calls = calls_on_this_loop()
        first = opened(calls)
        finished = asyncio.ensure_future(calls.finish(20, lambda: None))
        await turns()
        first.reply("")
        second = opened(calls)
        await turns()
        assert not finished.done()
        second.reply("")
        assert await finished

    asyncio.run(run())


def test_with_nothing_open_there_is_nothing_to_wait_for():
    async def run() -> None:
        calls = calls_on_this_loop()
        opened(calls).reply("")
        assert await calls.finish(0.001, lambda: None)
        assert calls.open_calls == 0

    asyncio.run(run())


def test_what_is_not_over_in_time_is_failed_and_then_waited_for():
    async def run() -> None:
        calls = calls_on_this_loop()
        late = opened(calls)
        assert not await calls.finish(0.001, lambda: late.reply(""))
        assert calls.open_calls == 0

    asyncio.run(run())
