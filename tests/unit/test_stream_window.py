"""A stream's window: bounded by requests, pictures and bytes; what was begun is never lost."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from attnserve.transport.stream_window import MOST_BYTES, MOST_IMAGES, MOST_REQUESTS, Begun, StreamWindow

MOMENT_S = 0.05


def begun(images: int = 1, size: int = 100, reply: int = 0) -> Begun:
    cancelled: list[bool] = []
    call = SimpleNamespace(images=images, reply_bytes=reply, cancelled=cancelled, cancel=lambda: cancelled.append(True))
    return Begun(SimpleNamespace(ByteSize=lambda: size), call, asyncio.get_running_loop().create_future())


async def is_full(window: StreamWindow) -> bool:
    try:
        await asyncio.wait_for(window.room(), MOMENT_S)
    except TimeoutError:
        return True
    return False


@pytest.mark.parametrize(
    ("one", "count"),
    [
        ({}, MOST_REQUESTS),
        ({"images": MOST_IMAGES // 4}, 4),
        ({"images": 1024}, 1),
        ({"size": MOST_BYTES // 2}, 2),
        ({"size": 10 * MOST_BYTES}, 1),
        ({"reply": MOST_BYTES // 2}, 2),
        ({"reply": 10 * MOST_BYTES}, 1),
    ],
)
def test_it_is_full_at_so_many_requests_pictures_or_bytes_and_has_room_when_one_is_sent(one, count):
    async def law() -> None:
        window = StreamWindow()
        for _ in range(count):
            assert not await is_full(window)
            window.add(begun(**one))
        assert await is_full(window)
        first = await window.next()
        assert await is_full(window)  # answered or not, it is there until it is sent
        waiting = asyncio.ensure_future(window.room())
        window.sent(first)
        await asyncio.wait_for(waiting, 5)

    asyncio.run(law())


def test_requests_come_out_in_order_and_those_begun_before_the_end_come_before_it():
    async def law() -> None:
        window, first, second = StreamWindow(), begun(), begun()
        waiting = asyncio.ensure_future(window.next())
        await asyncio.sleep(0)
        window.add(first)
        window.add(second)
        window.close()
        assert [await waiting, await window.next(), await window.next()] == [first, second, None]

    asyncio.run(law())


def test_when_the_caller_goes_what_waits_is_cancelled_once():
    async def law() -> None:
        window, first, second = StreamWindow(), begun(), begun()
        window.add(first)
        window.add(second)
        window.cancel()
        window.cancel()
        assert first.call.cancelled == second.call.cancelled == [True]

    asyncio.run(law())
