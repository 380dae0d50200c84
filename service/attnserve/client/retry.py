"""Whether and when a failed call is tried again: decisions only; the clients hold the clock, the sleep and the call.

Follows google/rpc/error_details.proto (RetryInfo: not before the delay, growing from there) and, for the jitter, "equal
jitter" of AWS's "Exponential Backoff And Jitter".
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from attnserve.client.errors import ClientError

_MOST_ATTEMPTS = 1000  # one a second for longer than anybody waits; and 2.0 ** 1000 is still a float


@dataclass(frozen=True)
class Retry:
    """How often a call is tried, and how long it waits in between.

    The wait begins with `base_s` and doubles up to `max_s`; the second half of it is random, so that callers refused
    together do not come back together. Where the server names a longer delay (RetryInfo), it waits that long at the
    least, and up to twice as long.

    Attributes:
        max_attempts: The first one included. The default, with `base_s`, rides out a moved connection or a short
            overload within 1.5 s; for a server that restarts alone, choose more.
        base_s: Seconds before the second attempt; by default a few times what a small model takes to answer.
        max_s: The longest wait that the doubling reaches, in seconds.
    """

    max_attempts: int = 5
    base_s: float = 0.1
    max_s: float = 5.0

    def __post_init__(self) -> None:
        if not 1 <= self.max_attempts <= _MOST_ATTEMPTS:
            raise ValueError(f"max_attempts must be 1 to {_MOST_ATTEMPTS}, got {self.max_attempts}")
        if not 0 < self.base_s <= self.max_s < math.inf:
            raise ValueError(f"base_s and max_s must be 0 < base_s <= max_s, got {self.base_s} and {self.max_s}")


def may_pass(error: ClientError) -> bool:
    """Whether the same request may succeed later: the server is full, coming or going, or the connection was lost.

    RESOURCE_EXHAUSTED without RetryInfo is a message over a limit, which stays so. Classifying twice does no harm.
    """
    return error.code == "UNAVAILABLE" or (error.code == "RESOURCE_EXHAUSTED" and error.retry_after_s is not None)


class Attempts:
    """The attempts of one call, all of them before one deadline. Times are seconds on the caller's clock.

    Args:
        retry: None for a single attempt.
        deadline: No attempt outlives it, and no wait.
        random: Gives numbers of [0, 1).
    """

    def __init__(self, retry: Retry | None, deadline: float, random: Callable[[], float]) -> None:
        self._retry = retry
        self._deadline = deadline
        self._random = random
        self._failed = 0

    def remaining_s(self, now: float) -> float:
        """Seconds that the next attempt may take; below 0 once the deadline has passed."""
        return self._deadline - now

    def failed(self, error: ClientError, now: float) -> float:
        """Note a failure; returns the seconds to wait before the next attempt, or raises `error` where none is due."""
        self._failed += 1
        if self._retry is None or self._failed >= self._retry.max_attempts or not may_pass(error):
            raise error
        wait_s = self._wait_s(self._retry, error.retry_after_s or 0.0)
        if wait_s >= self.remaining_s(now):
            raise error
        return wait_s

    def _wait_s(self, retry: Retry, asked_s: float) -> float:
        backoff_s = min(retry.max_s, retry.base_s * 2.0 ** (self._failed - 1))
        least_s = max(backoff_s / 2, asked_s)
        return least_s * (1 + self._random())
