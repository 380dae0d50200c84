"""The inbox of a transport that lives on an asyncio event loop."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence

log = logging.getLogger(__name__)


class LoopInbox:
    """Runs posted jobs on the loop; however many come between two turns of the loop, it is woken once."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._jobs: deque[Callable[[], None]] = deque()
        self._woken = False

    def post(self, jobs: Sequence[Callable[[], None]], *, idle: bool = False) -> None:  # noqa: ARG002
        """See `Inbox`."""
        self._jobs.extend(jobs)
        if not self._woken:
            self._woken = True
            self._loop.call_soon_threadsafe(self._run)

    def _run(self) -> None:
        self._woken = False  # before the first pop: a job that comes later wakes the loop again
        while self._jobs:
            try:
                self._jobs.popleft()()
            except Exception:  # one request's bug must not hold up the answers behind it
                log.exception("a posted job failed")
