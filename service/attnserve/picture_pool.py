"""Threads that work on the pictures of many calls one by one, off the transports' threads: they decode, or draw maps.

Shares its time out as the workers do (`batch_queue`): by priority, fairly between clients, the earliest deadline first.
Its queue is bounded by admission, which counts every picture before it comes here. Knows no picture and no message:
what is made of one is the caller's.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from attnserve.batch_queue import MOST_LEVELS, BatchQueue, Policy
from attnserve.contract import Call
from attnserve.errors import AttnserveError, Cancelled, Unavailable
from attnserve.guard import told

log = logging.getLogger(__name__)

_SMOOTHING = 0.05  # weight of the newest picture in the running seconds per picture: about the last twenty

_LONGEST_TURN = 32  # pictures of one call before those of others come, if their clients had as many

OnDone = Callable[[Any, AttnserveError | None], None]
"""Takes what was made of a call's pictures, or None and why there is nothing."""


@dataclass(frozen=True, slots=True)
class PictureWork:
    """What is to be made of the pictures of one call, on any threads.

    Attributes:
        rows: Pictures in the call, at least 1.
        part: Makes what comes of one picture, by its number; run side by side for several.
        whole: Joins the parts, in the order of the pictures.
    """

    rows: int
    part: Callable[[int], Any]
    whole: Callable[[list[Any]], object]


class PicturePool:
    """Works for many calls side by side.

    Args:
        name: Of the threads.
        threads: At least 1.
    """

    def __init__(self, name: str, threads: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        policy = Policy(max_batch_size=1, levels=MOST_LEVELS, turn_batches=_LONGEST_TURN)
        self._queue: BatchQueue[_Job] = BatchQueue(policy)
        self._seconds_per_picture = 0.0
        self._closed = False
        self._filled = threading.Condition()
        self._threads = threads
        for index in range(threads):
            threading.Thread(target=self._work, name=f"{name}-{index}", daemon=True).start()

    def predicted_wait_s(self, client: str, level: int, pictures: int) -> float:
        """Seconds until the last of so many pictures of that client would begin, by the recent pace."""
        with self._filled:
            ahead = self._queue.rows_ahead(client, level, pictures)
        return ahead * self._seconds_per_picture / self._threads

    def submit(self, work: PictureWork, call: Call, on_done: OnDone) -> None:
        """Do it; then call back once on the call's inbox with the whole, or with the first error. Does not block.

        Pictures that no thread has begun are left out where one of them fails, the caller goes away, the deadline
        passes or the pool closes.
        """
        job = _Job(work, call, on_done, call.client, call.level, call.deadline, cancelled=call.cancelled)
        with self._filled:
            refused = self._closed
            if not refused:
                self._queue.put(job, self._clock())
                self._filled.notify(min(job.rows, self._threads))
        if refused:
            job.error = Unavailable("the server is shutting down")
            job.report()
        else:
            call.when_cancelled(partial(self._cancel, job))

    def close(self) -> None:
        """Fail what has not begun with `Unavailable`; threads that still work end with the process. Does not block."""
        with self._filled:
            self._closed = True
            left = self._queue.clear()
            for job in left:
                job.error = Unavailable("the server is shutting down")
            over = [job for job in left if job.over]
            self._filled.notify_all()
        for job in over:
            job.report()

    def _cancel(self, job: _Job) -> None:
        with self._filled:
            over = self._queue.discard(job, Cancelled("the caller went away")) and job.over
        if over:
            job.report()

    def _work(self) -> None:
        while self._work_once():
            pass

    def _work_once(self) -> bool:
        """Take the next picture; False once closed. No frame but this one holds a job, and none while it waits."""
        with self._filled:
            self._filled.wait_for(lambda: self._closed or self._queue.rows)
            if self._closed:
                return False
            batch, dropped = self._queue.take(self._clock())
            over = [job for job in dropped if job.over]
        for job in over:
            job.report()
        for job, row, _ in batch.slices:
            self._make(job, row)
        return True

    def _make(self, job: _Job, row: int) -> None:
        started = self._clock()
        error: AttnserveError | None = None
        try:
            job.parts[row] = job.work.part(row)
        except Exception as failure:
            error = told(job.call, failure)
        seconds = self._clock() - started
        with self._filled:
            last = self._seconds_per_picture
            self._seconds_per_picture = last + _SMOOTHING * (seconds - last) if last else seconds
            job.outstanding -= 1
            if error is not None:
                self._queue.discard(job, error)
                job.error = job.error or error
            over = job.over
        if over:
            job.report()


@dataclass(slots=True, eq=False)
class _Job:
    """The pictures of one call, as something that waits; see `contract.Waiting`."""

    work: PictureWork
    call: Call
    on_done: OnDone
    client: str
    level: int
    deadline: float
    order: int = 0
    enqueued_at: float = 0.0
    taken: int = 0
    outstanding: int = 0
    cancelled: bool = False
    error: AttnserveError | None = None
    parts: dict[int, Any] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """Pictures in the call."""
        return self.work.rows

    @property
    def waiting(self) -> int:
        """Pictures that no thread has taken yet."""
        return self.work.rows - self.taken

    @property
    def over(self) -> bool:
        """Whether no picture waits or is in anybody's hands; asked under the pool's lock by whoever took one away."""
        return not self.outstanding and (self.error is not None or len(self.parts) == self.rows)

    def report(self) -> None:
        """Post the outcome to the call's inbox; called once, by whoever found it over."""
        outcome = self._outcome()
        try:
            self.call.inbox.post([partial(self.on_done, *outcome)])
        except Exception:  # the transport is gone, and the thread must not go with it
            log.exception("an inbox refused what was made of a call's pictures")

    def _outcome(self) -> tuple[object, AttnserveError | None]:
        if self.error is not None:
            return None, self.error
        try:
            return self.work.whole([self.parts[row] for row in range(self.rows)]), None
        except Exception as failure:
            return None, told(self.call, failure)
