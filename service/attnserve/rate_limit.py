"""How often something may happen: a token bucket. Knows no caller and no thread of its own."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable


class Bucket:
    """So many units a second on average. Any thread may use it.

    It fills at `per_s` up to `most`, and is full at first. What is spent may leave it in debt, which is then waited
    for: so a request of more units than `most` goes through once the bucket holds any, and none is refused for ever.

    Args:
        per_s: Units a second; infinity is no limit.
        most: Units that may be spent at once after a rest.
    """

    def __init__(self, per_s: float, most: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_s = per_s
        self._most = most
        self._clock = clock
        self._level = most
        self._at = clock()
        self._lock = threading.Lock()

    def wait_s(self) -> float:
        """Seconds until something may be spent; 0 when it may be now."""
        if math.isinf(self._per_s):
            return 0.0
        with self._lock:
            return 0.0 if self._filled() > 0 else (_LEAST - self._level) / self._per_s

    def spend(self, units: float) -> None:
        """Take units out, whatever it holds."""
        if not math.isinf(self._per_s):
            with self._lock:
                self._level = self._filled() - units

    def _filled(self) -> float:
        now = self._clock()
        self._level = min(self._most, self._level + (now - self._at) * self._per_s)
        self._at = now
        return self._level


_LEAST = 1e-6  # of a unit: what is more than none, so that who comes back after `wait_s` finds some
