"""Threads that decode and resize pictures, off the transports' threads.

Its queue is bounded by admission, which counts every picture before it comes here.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from attnserve.card import Preprocessing
from attnserve.contract import Call
from attnserve.decode import DecodeLimits, Picture, is_view, picture_from_bytes, picture_from_pixels
from attnserve.errors import AttnserveError, Cancelled, DeadlineExceeded, Internal

log = logging.getLogger(__name__)

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
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="decode")
        self._limits = limits
        self._clock = clock

    def views_at_once(self, sources: Sequence[Source], preprocessing: Preprocessing) -> list[Picture] | None:
        """The pictures, where all are raw pixels that already are views, so that no thread is needed; else None."""
        pixels: list[NDArray[np.uint8]] = []
        for source in sources:
            if isinstance(source, bytes) or not is_view(source.shape[0], source.shape[1], preprocessing):
                return None
            pixels.append(source)
        return [picture_from_pixels(source, preprocessing, self._limits) for source in pixels]

    def submit(
        self, sources: Sequence[Source], preprocessing: Preprocessing, call: Call, on_decoded: OnDecoded
    ) -> None:
        """Decode all sources; then call back once on the call's inbox with every picture, or with the first error."""
        job = _Job(sources, preprocessing, self._limits, call, on_decoded, self._clock)
        for index in range(len(sources)):
            self._executor.submit(job.decode, index)

    def close(self) -> None:
        """Drop what has not begun; threads that still decode are left to end with the process. Does not block."""
        self._executor.shutdown(wait=False, cancel_futures=True)


class _Job:
    """The pictures of one call."""

    def __init__(
        self,
        sources: Sequence[Source],
        preprocessing: Preprocessing,
        limits: DecodeLimits,
        call: Call,
        on_decoded: OnDecoded,
        clock: Callable[[], float],
    ) -> None:
        self._sources = sources
        self._preprocessing = preprocessing
        self._limits = limits
        self._call = call
        self._on_decoded = on_decoded
        self._clock = clock
        self._pictures: list[Picture | None] = [None] * len(sources)
        self._error: AttnserveError | None = None
        self._left = len(sources)
        self._lock = threading.Lock()

    def decode(self, index: int) -> None:
        """Decode one picture; whoever is last posts the outcome."""
        error: AttnserveError | None = None
        try:
            self._check_worth_it()
            self._pictures[index] = self._picture(self._sources[index])
        except AttnserveError as failure:
            error = type(failure)(f"images[{index}]: {failure}")
        except Exception:
            log.exception("decoding a picture failed")
            error = Internal("decoding failed")
        with self._lock:
            self._error = self._error or error
            self._left -= 1
            last = self._left == 0
        if last:
            self._post()

    def _post(self) -> None:
        try:
            self._call.inbox.post([self._report])
        except Exception:  # the transport is gone, and the executor would keep this to itself
            log.exception("an inbox refused a decoded request")

    def _check_worth_it(self) -> None:
        if self._error is not None or self._call.cancelled:
            raise Cancelled("nobody waits for this picture")
        if self._call.deadline <= self._clock():
            raise DeadlineExceeded("the deadline passed before the picture was decoded")

    def _picture(self, source: Source) -> Picture:
        if isinstance(source, bytes):
            return picture_from_bytes(source, self._preprocessing, self._limits)
        return picture_from_pixels(source, self._preprocessing, self._limits)

    def _report(self) -> None:
        if self._error is not None:
            self._on_decoded([], self._error)
        else:
            self._on_decoded([picture for picture in self._pictures if picture is not None], None)
