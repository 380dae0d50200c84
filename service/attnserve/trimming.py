"""When freed memory goes back to the system: once nobody waits for an answer, if it is worth it.

Lives on the event loop; knows no gRPC and no model. The C library keeps what the messages and pictures of a crowd of
large requests took, gigabytes of it, for as long as the process lives.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from attnserve import memory

CALM_S = 1.0  # a server in use needs its memory again at once, and should not be slowed
WORTH_BYTES = 64 << 20  # one message of the default limit; less is what memory does anyway


class Trimmer:
    """Gives memory back when the server has been idle for `CALM_S` and has grown since it last did.

    Args:
        loop: Tells the time; memory is given back on a thread of its own, for that takes milliseconds.
        idle: Whether nobody waits for an answer.
        resident_bytes, give_back: Collaborators, for tests; see `memory`.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        idle: Callable[[], bool],
        *,
        resident_bytes: Callable[[], int] = memory.resident_bytes,
        give_back: Callable[[], None] = memory.give_back,
    ) -> None:
        self._loop = loop
        self._idle = idle
        self._resident_bytes = resident_bytes
        self._give_back = give_back
        self._least_bytes = resident_bytes()
        self._pending = False

    def on_idle(self) -> None:
        """The last call has its answer; returns at once. From any thread."""
        if not self._pending:
            self._pending = True
            self._loop.call_soon_threadsafe(self._wait)

    def _wait(self) -> None:
        self._loop.call_later(CALM_S, self._look)

    def _look(self) -> None:
        self._pending = False
        if self._idle() and self._resident_bytes() > self._least_bytes + WORTH_BYTES:
            self._pending = True
            self._loop.run_in_executor(None, self._trim).add_done_callback(self._trimmed)

    def _trim(self) -> None:
        self._give_back()
        self._least_bytes = self._resident_bytes()

    def _trimmed(self, _: object) -> None:
        self._pending = False
