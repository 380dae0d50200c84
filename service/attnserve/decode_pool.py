"""Threads that decode and resize pictures, off the transports' threads.

Shares its time out as the workers do (`batch_queue`): by priority, fairly between clients, the earliest deadline first.
Its queue is bounded by admission, which counts every picture before it comes here.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from attnserve.batch_queue import MOST_LEVELS, BatchQueue, Policy
from attnserve.card import Preprocessing
from attnserve.contract import Call
from attnserve.decode import DecodeLimits, Picture, is_view, picture_from_bytes, picture_from_pixels
from attnserve.errors import AttnserveError, Internal

log = logging.getLogger(__name__)

_SMOOTHING = 0.05  # weight of the newest picture in the running seconds per picture: about the last twenty

Source = bytes | NDArray[np.uint8]
"""An encoded picture, or raw pixels (H, W, 3) or (H, W, 1) uint8."""

OnDecoded = Callable[[list[Picture], AttnserveError | None], None]


class DecodePool:
    """Decodes the pictures of many calls side by side.

    Args:
        threads: At least 1.
        limits: For every picture.
    """

    def __init__(self, threads: int, limits: DecodeLimits, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits = limits
        self._clock = clock
        self._queue: BatchQueue[_Job] = BatchQueue(Policy(max_batch_size=1, levels=MOST_LEVELS))
        self._seconds_per_picture = 0.0
        self._closed = False
        self._filled = threading.Condition()
        self._threads = threads
        for index in range(threads):
            threading.Thread(target=self._work, name=f"decode-{index}", daemon=True).start()

    def views_at_once(self, sources: Sequence[Source], preprocessing: Preprocessing) -> list[Picture] | None:
        """The pictures, where all are raw pixels that already are views, so that no thread is needed; else None."""
        pixels: list[NDArray[np.uint8]] = []
        for source in sources:
            if isinstance(source, bytes) or not is_view(source.shape[0], source.shape[1], preprocessing):
                return None
            pixels.append(source)
        return [picture_from_pixels(source, preprocessing, self._limits) for source in pixels]

    def predicted_wait_s(self, client: str, level: int, pictures: int) -> float:
        """Seconds until the last of so many pictures of that client would begin, by the recent pace."""
        with self._filled:
            ahead = self._queue.rows_ahead(client, level, pictures)
        return ahead * self._seconds_per_picture / self._threads

    def submit(
        self, sources: Sequence[Source], preprocessing: Preprocessing, call: Call, on_decoded: OnDecoded
    ) -> None:
        """Decode all sources; then call back once on the call's inbox with every picture, or with the first error."""
        job = _Job(sources, preprocessing, call, on_decoded, call.client, call.level, call.deadline)
        with self._filled:
            self._queue.put(job, self._clock())
            self._filled.notify(min(len(sources), self._threads))
        call.when_cancelled(lambda: setattr(job, "cancelled", True))

    def close(self) -> None:
        """Drop what has not begun; threads that still decode are left to end with the process. Does not block."""
        with self._filled:
            self._closed = True
            self._queue.clear()
            self._filled.notify_all()

    def _work(self) -> None:
        while True:
            with self._filled:
                self._filled.wait_for(lambda: self._closed or self._queue.rows)
                if self._closed:
                    return
                batch, dropped = self._queue.take(self._clock())
            for job in dropped:
                job.report_if_over()
            for job, index, _ in batch.slices:
                self._decode(job, index)

    def _decode(self, job: _Job, index: int) -> None:
        started = self._clock()
        error: AttnserveError | None = None
        try:
            job.pictures[index] = _picture(job.sources[index], job.preprocessing, self._limits)
        except AttnserveError as failure:
            error = type(failure)(f"images[{index}]: {failure}")
        except Exception:
            log.exception("decoding a picture failed")
            error = Internal("decoding failed")
        seconds = self._clock() - started
        with self._filled:
            last = self._seconds_per_picture
            self._seconds_per_picture = last + _SMOOTHING * (seconds - last) if last else seconds
            job.outstanding -= 1
            if error is not None:
                self._queue.discard(job, error)
                job.error = job.error or error
        job.report_if_over()


@dataclass(slots=True, eq=False)
class _Job:
    """The pictures of one call, as something that waits; see `contract.Waiting`."""

    sources: Sequence[Source]
    preprocessing: Preprocessing
    call: Call
    on_decoded: OnDecoded
    client: str
    level: int
    deadline: float
    order: int = 0
    enqueued_at: float = 0.0
    taken: int = 0
    outstanding: int = 0
    cancelled: bool = False
    error: AttnserveError | None = None
    pictures: dict[int, Picture] = field(default_factory=dict)
    reported: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def rows(self) -> int:
        """Pictures in the call."""
        return len(self.sources)

    @property
    def waiting(self) -> int:
        """Pictures that no thread has taken yet."""
        return len(self.sources) - self.taken

    def report_if_over(self) -> None:
        """Post the outcome to the call's inbox, once, when no picture is in anybody's hands any more."""
        with self.lock:
            over = not self.outstanding and (self.error is not None or len(self.pictures) == len(self.sources))
            if self.reported or not over:
                return
            self.reported = True
        try:
            self.call.inbox.post([self._report])
        except Exception:  # the transport is gone, and the thread must not go with it
            log.exception("an inbox refused a decoded request")

    def _report(self) -> None:
        if self.error is not None:
            self.on_decoded([], self.error)
        else:
            self.on_decoded([self.pictures[index] for index in range(len(self.sources))], None)


def _picture(source: Source, preprocessing: Preprocessing, limits: DecodeLimits) -> Picture:
    if isinstance(source, bytes):
        return picture_from_bytes(source, preprocessing, limits)
    return picture_from_pixels(source, preprocessing, limits)
