"""An inbox that any thread may empty: its jobs run one at a time and in order, on whichever thread is at hand."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from queue import SimpleQueue

log = logging.getLogger(__name__)


class SharedInbox:
    """Jobs in order, never two at a time: the inbox's thread is whoever has the turn.

    A thread that brings jobs by `run` does them itself, if nobody has the turn; else they are left to whoever has it,
    without a wake-up. Jobs that come by `post` are done by `run_posted`, or by whoever has the turn.

    Args:
        turn: Held by whoever has it; another lock in tests.
    """

    def __init__(self, turn: threading.Lock | None = None) -> None:
        self._jobs: deque[Callable[[], None]] = deque()
        self._turn = turn or threading.Lock()
        self._calls: SimpleQueue[bool] = SimpleQueue()  # True to look, False to end
        self._called = False

    def post(self, jobs: Sequence[Callable[[], None]], *, idle: bool = False) -> None:
        """See `Inbox`."""
        self._jobs.extend(jobs)
        if idle and self._turn.acquire(blocking=False):
            try:
                for _ in range(len(self._jobs)):  # and not those that come meanwhile: a worker has other work to do
                    self._do(self._jobs.popleft())
            finally:
                self._turn.release()
            if not self._jobs:
                return
        if not (self._called or self._turn.locked()):  # who has the turn looks again after having given it back
            self._called = True
            self._calls.put(True)

    def run(self, job: Callable[[], None]) -> None:
        """Do the job after those that wait, here or on the thread that has the turn. Blocks while there are jobs."""
        self._jobs.append(job)
        self._empty()

    def run_posted(self) -> None:
        """Do what is posted, on this thread, until `close`."""
        while self._calls.get():
            self._called = False  # before the jobs are looked at: one that comes later calls again
            self._empty()

    def close(self) -> None:
        """End `run_posted`, after the jobs that were posted before."""
        self._calls.put(False)

    def _empty(self) -> None:
        while self._jobs and self._turn.acquire(blocking=False):
            try:
                while self._jobs:
                    self._do(self._jobs.popleft())
            finally:
                self._turn.release()

    def _do(self, job: Callable[[], None]) -> None:
        try:
            job()
        except Exception:  # one request's bug must not hold up the answers behind it
            log.exception("a posted job failed")
