"""Decodes and resizes the pictures of many calls, on a `picture_pool` of its own."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from attnserve.card import Preprocessing
from attnserve.contract import Call
from attnserve.decode import DecodeLimits, Picture, is_view, picture_from_bytes, picture_from_pixels
from attnserve.errors import AttnserveError
from attnserve.picture_pool import PicturePool, PictureWork

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
        self._pool = PicturePool("decode", threads, clock)

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
        return self._pool.predicted_wait_s(client, level, pictures)

    def submit(
        self, sources: Sequence[Source], preprocessing: Preprocessing, call: Call, on_decoded: OnDecoded
    ) -> None:
        """Decode all sources; then call back once on the call's inbox with every picture, or with the first error."""

        def decoded(index: int) -> Picture:
            try:
                return _picture(sources[index], preprocessing, self._limits)
            except AttnserveError as failure:
                raise type(failure)(f"images[{index}]: {failure}") from None

        work = PictureWork(len(sources), decoded, list)
        self._pool.submit(work, call, lambda pictures, error: on_decoded(pictures or [], error))

    def close(self) -> None:
        """Fail what has not begun; threads that still decode are left to end with the process. Does not block."""
        self._pool.close()


def _picture(source: Source, preprocessing: Preprocessing, limits: DecodeLimits) -> Picture:
    if isinstance(source, bytes):
        return picture_from_bytes(source, preprocessing, limits)
    return picture_from_pixels(source, preprocessing, limits)
