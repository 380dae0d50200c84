"""One stream of the asyncio client: a task sends pictures while the caller takes outcomes, in order.

Owns the window and both ends of the call; knows no channel.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar

import grpc

from attnserve.client.calls import Pack, Replies, packed
from attnserve.client.errors import ClientError
from attnserve.client.messages import Classification, Picture

_T = TypeVar("_T")

_Place: TypeAlias = ClientError | Literal["sent", "all sent", "call over"]
"""What is due next: an outcome known without the server, a reply of the server, or the end that a side came to."""


async def outcomes(
    images: Iterable[Picture] | AsyncIterable[Picture], pack: Pack, call: Any, max_in_flight: int
) -> AsyncGenerator[Classification | ClientError, None]:
    """The outcome of each picture, in order; the call is over when the generator ends or is closed.

    Args:
        call: A `grpc.aio.StreamStreamCall` that nobody else reads or writes.
    """
    places: asyncio.Queue[_Place] = asyncio.Queue()  # bounded by `room`
    room = asyncio.Semaphore(max_in_flight)
    replies = Replies()
    sender = asyncio.create_task(_send(images, pack, call, places, room))
    call.add_done_callback(lambda _: places.put_nowait("call over"))  # heard also while `images` has nothing to give
    try:
        while (place := await places.get()) not in ("all sent", "call over"):
            outcome = place if isinstance(place, ClientError) else replies.outcome(await _read(call))
            room.release()
            yield outcome
        if place == "call over":
            replies.outcome(await _read(call))  # raises: pictures are left
        if sender.done():
            sender.result()  # raises what `images` raised
        replies.end(await _read(call))  # reads the end of the call, so that both sides see it complete
    finally:
        sender.cancel()
        call.cancel()
        await asyncio.gather(sender, return_exceptions=True)


async def _send(
    images: Iterable[Picture] | AsyncIterable[Picture],
    pack: Pack,
    call: Any,
    places: asyncio.Queue[_Place],
    room: asyncio.Semaphore,
) -> None:
    """Send each picture when there is room for it; a picture that cannot be sent keeps its place."""
    over = contextlib.suppress(grpc.RpcError, asyncio.InvalidStateError)  # who reads the call hears why
    try:
        async with contextlib.aclosing(_each(images)) as pictures:
            async for image in pictures:
                await room.acquire()
                request = await off_loop(partial(packed, pack, image), [image])
                if isinstance(request, ClientError):
                    places.put_nowait(request)
                    continue
                places.put_nowait("sent")
                with over:
                    await call.write(request)
    finally:
        places.put_nowait("all sent")
    with over:
        await call.done_writing()


async def off_loop(pack: Callable[[], _T], images: Sequence[Picture]) -> _T:
    """The result of `pack`; in a thread where it reads files, else here, for a thread costs more than a copy."""
    if any(isinstance(image, Path) for image in images):
        return await asyncio.to_thread(pack)
    return pack()


async def _each(images: Iterable[Picture] | AsyncIterable[Picture]) -> AsyncGenerator[Picture, None]:
    if isinstance(images, AsyncIterable):
        async for image in images:
            yield image
    else:
        for image in images:
            yield image


async def _read(call: Any) -> Any:
    """The next reply, or None at the end; raises where the call failed."""
    reply = await call.read()
    return None if reply is grpc.aio.EOF else reply
