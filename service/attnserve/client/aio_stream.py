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
from attnserve.v1 import attention_pb2 as pb

_T = TypeVar("_T")

_Place: TypeAlias = ClientError | Literal["sent", "all sent", "call over"]
"""What is due next: an outcome known without the server, a reply of the server, or the end that a side came to."""


class Stream:
    """One call of ClassifyStream: pictures out, outcomes in.

    No generator: a loop that ends closes all generators at once, the inner ones under the feet of the outer.

    Args:
        call: A `grpc.aio.StreamStreamCall` that nobody else reads or writes; `close` ends it.
    """

    def __init__(
        self, images: Iterable[Picture] | AsyncIterable[Picture], pack: Pack, call: Any, max_in_flight: int
    ) -> None:
        self._pack = pack
        self._call = call
        self._replies = Replies()
        self._places: asyncio.Queue[_Place] = asyncio.Queue()  # bounded by `_room`
        self._room = asyncio.Semaphore(max_in_flight - 1)  # each turn of `next` lets one more picture out
        self._sender = asyncio.create_task(self._send(images))
        call.add_done_callback(lambda _: self._places.put_nowait("call over"))  # heard also while no picture comes

    async def next(self) -> Classification | ClientError | None:
        """The outcome of the next picture, None after the last. Raises what `images` raised or what ended the call."""
        self._room.release()
        place = await self._places.get()
        if isinstance(place, ClientError):
            return place
        if place != "all sent":
            return self._replies.outcome(await self._read())  # raises where the call is over: pictures are left
        if self._sender.done():
            self._sender.result()  # raises what `images` raised
        self._replies.end(await self._read())  # reads the end of the call, so that both sides see it complete
        return None

    async def close(self) -> None:
        """Leave `images` alone and cancel the call, unless it is over."""
        self._sender.cancel()
        self._call.cancel()
        await asyncio.gather(self._sender, return_exceptions=True)

    async def _send(self, images: Iterable[Picture] | AsyncIterable[Picture]) -> None:
        """Send each picture when there is room for it; a picture that cannot be sent keeps its place."""
        over = contextlib.suppress(grpc.RpcError, grpc.aio.InternalError)  # who reads the call hears why
        try:
            async with contextlib.aclosing(_each(images)) as pictures:
                async for image in pictures:
                    await self._room.acquire()
                    request = await off_loop(partial(packed, self._pack, image), [image])
                    if isinstance(request, ClientError):
                        self._places.put_nowait(request)
                        continue
                    self._places.put_nowait("sent")
                    with over:
                        await self._write(request)
        finally:
            self._places.put_nowait("all sent")
        with over:
            await self._call.done_writing()

    async def _write(self, request: pb.ClassifyRequest) -> None:
        """Send one message; raises where the call is over.

        Not `call.write`: where that meets the end of the call, it puts INTERNAL in the place of the server's status and
        drops the replies still unread (https://github.com/grpc/grpc/issues/36066, open at grpcio 1.85). Hence the
        private name.
        """
        await self._call.wait_for_connection()
        await self._call._cython_call.send_serialized_message(request.SerializeToString())

    async def _read(self) -> Any:
        """The next reply, or None at the end; raises where the call failed."""
        reply = await self._call.read()
        return None if reply is grpc.aio.EOF else reply


async def off_loop(pack: Callable[[], _T], images: Sequence[Picture]) -> _T:
    """The result of `pack`; in a thread where it reads files, else here, for a thread costs more than a copy."""
    if any(isinstance(image, str | Path) for image in images):
        return await asyncio.to_thread(pack)
    return pack()


async def _each(images: Iterable[Picture] | AsyncIterable[Picture]) -> AsyncGenerator[Picture, None]:
    if isinstance(images, AsyncIterable):
        async for image in images:
            yield image
    else:
        for image in images:
            yield image
