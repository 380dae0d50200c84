"""Whether the server takes a request on, before anything is decoded: bounds what is accepted and not yet answered, and
refuses what could not be answered in time.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

from attnserve.errors import SHORTEST_RETRY_S, InvalidArgument, Overloaded, Unavailable

_LONGEST_RETRY_S = 5.0
_MARGIN = 1.1  # predictions are of the mean, and the way to the caller takes time too; see tests/bench/overload.py


@dataclass(slots=True)
class _Share:
    """What one client has in the house."""

    requests: int = 0
    images: int = 0
    bytes: int = 0


class Admission:
    """Counts pictures and bytes in the house. Any thread may call it.

    A client that has a request inside may hold no more than it leaves free: one alone gets half the house, two a third
    each, so whoever comes next finds room (after Choudhury and Hahne, "Dynamic Queue Length Thresholds for
    Shared-Memory Packet Switches", 1998). A client's only request may reach the limits themselves, so none that they
    allow is refused for ever.

    Attributes:
        max_images, max_bytes: The limits.
    """

    def __init__(self, max_images: int, max_bytes: int) -> None:
        self.max_images = max_images
        self.max_bytes = max_bytes
        self._images = 0
        self._bytes = 0
        self._of: dict[str, _Share] = {}  # only clients with a request inside
        self._closed = False
        self._lock = threading.Lock()

    @property
    def images(self) -> int:
        """Pictures accepted and not yet answered."""
        return self._images

    @property
    def bytes(self) -> int:
        """Their size, as it counts for the limit."""
        return self._bytes

    def admit(self, client: str, images: int, size_bytes: int, wait_s: float, run_s: float, slack_s: float) -> None:
        """Take a request on; `release` must follow.

        Args:
            client: Who asks, as in `Call.client`.
            wait_s: Predicted, until its last image starts.
            run_s: Predicted, from there to its end.
            slack_s: From now to its deadline.

        Raises `Overloaded` with the time after which to try again, `InvalidArgument` for more than the limits allow one
        request, or `Unavailable` once closed. What would not wait is not refused for the time it takes: the prediction
        may be wrong, and would never learn.
        """
        self._check_it_can_fit(images, size_bytes)
        late_s = _MARGIN * (wait_s + run_s) - slack_s
        with self._lock:
            if self._closed:
                raise Unavailable("the server is shutting down")
            if self._images + images > self.max_images or self._bytes + size_bytes > self.max_bytes:
                raise Overloaded("the server has as many pictures as it can hold", retry_after_s=_retry(wait_s))
            if wait_s > 0 and late_s > 0:
                raise Overloaded("the deadline cannot be met: too much is waiting", retry_after_s=_retry(late_s))
            share = self._of.get(client)
            if share is None:
                share = self._of[client] = _Share()
            elif (
                share.images + images > self.max_images - self._images - images
                or share.bytes + size_bytes > self.max_bytes - self._bytes - size_bytes
            ):
                raise Overloaded("this client has as many pictures here as it may", retry_after_s=_retry(wait_s))
            share.requests += 1
            share.images += images
            share.bytes += size_bytes
            self._images += images
            self._bytes += size_bytes

    def _check_it_can_fit(self, images: int, size_bytes: int) -> None:
        """Raise `InvalidArgument` for what an empty house could not hold: to come back later would not help."""
        for held, most, limit in (
            (images, self.max_images, "pictures are held at once (max_pending_images)"),
            (size_bytes, self.max_bytes, "bytes of pictures are held at once (max_pending_bytes)"),
        ):
            if held > most:
                raise InvalidArgument(f"images: at most {most} {limit}, got {held}")

    def close(self) -> None:
        """Refuse everything from now on."""
        with self._lock:
            self._closed = True

    def release(self, client: str, images: int, size_bytes: int) -> None:
        """The request has its answer."""
        with self._lock:
            share = self._of[client]
            share.requests -= 1
            share.images -= images
            share.bytes -= size_bytes
            if not share.requests:
                del self._of[client]
            self._images -= images
            self._bytes -= size_bytes


def _retry(seconds: float) -> float:
    return min(max(seconds, SHORTEST_RETRY_S), _LONGEST_RETRY_S)
