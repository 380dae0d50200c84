"""What one stream has under way: requests begun and answers not yet sent, bounded so that a slow reader costs little.

Lives on the event loop; knows no gRPC and no model.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import Any

from attnserve.contract import Call
from attnserve.errors import AttnserveError

MOST_REQUESTS = 64  # enough to fill batches from a stream of single pictures
MOST_IMAGES = 256  # maps of that many pictures of a ResNet-50 are 30 MB
MOST_BYTES = 64 << 20  # of requests and replies: one message of the default limit, for both are held meanwhile


Answer = tuple[Any, AttnserveError | None]
"""A call's reply and None, or None and what went wrong; not raised, for the traceback would hold the request."""


@dataclass(frozen=True)
class Begun:
    """One request of the stream and the future of its answer."""

    request: Any
    call: Call
    answered: asyncio.Future[Answer]


class StreamWindow:
    """A queue between the task that reads a stream and the one that writes it.

    The reader awaits `room` *before* it begins a request, so that whatever was begun is in the window and is answered.
    """

    def __init__(self) -> None:
        self._waiting: deque[Begun] = deque()
        self._requests = self._images = self._bytes = 0
        self._closed = False
        self._room = asyncio.Event()
        self._ready = asyncio.Event()

    async def room(self) -> None:
        """Wait until another request may be begun; one larger than the bounds must be alone."""
        while self._requests >= MOST_REQUESTS or self._images >= MOST_IMAGES or self._bytes >= MOST_BYTES:
            self._room.clear()
            await self._room.wait()

    def add(self, begun: Begun) -> None:
        """Take a begun request in."""
        self._waiting.append(begun)
        self._count(begun, 1)
        self._ready.set()

    def close(self) -> None:
        """No more will be added."""
        self._closed = True
        self._ready.set()

    async def next(self) -> Begun | None:
        """The oldest request, still counted until `sent`; None once closed and empty."""
        while not self._waiting and not self._closed:
            self._ready.clear()
            await self._ready.wait()
        return self._waiting.popleft() if self._waiting else None

    def sent(self, begun: Begun) -> None:
        """Its answer has left."""
        self._count(begun, -1)
        self._room.set()

    def cancel(self) -> None:
        """The caller went away: cancel whatever waits."""
        while self._waiting:
            self._waiting.popleft().call.cancel()

    def _count(self, begun: Begun, sign: int) -> None:
        self._requests += sign
        self._images += sign * begun.call.images
        self._bytes += sign * (begun.request.ByteSize() + begun.call.reply_bytes)
