"""Whether the server takes a request on: bounds what is accepted and not yet answered, before anything is decoded."""

from __future__ import annotations

import threading

from attnserve.errors import Overloaded, Unavailable

_SHORTEST_RETRY_S = 0.05  # sooner than that the queue has hardly moved
_LONGEST_RETRY_S = 5.0


class Admission:
    """Counts pictures and bytes in the house. Any thread may call it.

    A request alone in the house may reach the limits themselves, so none that they allow is refused for ever.
    """

    def __init__(self, max_images: int, max_bytes: int) -> None:
        self._max_images = max_images
        self._max_bytes = max_bytes
        self._images = 0
        self._bytes = 0
        self._closed = False
        self._lock = threading.Lock()

    @property
    def images(self) -> int:
        """Pictures accepted and not yet answered."""
        return self._images

    def admit(self, images: int, size_bytes: int, predicted_wait_s: float) -> None:
        """Take a request on; `release` must follow.

        Raises `Overloaded` with the time after which to try again, or `Unavailable` once closed.
        """
        with self._lock:
            if self._closed:
                raise Unavailable("the server is shutting down")
            if self._images + images > self._max_images or self._bytes + size_bytes > self._max_bytes:
                retry_after_s = min(max(predicted_wait_s, _SHORTEST_RETRY_S), _LONGEST_RETRY_S)
                raise Overloaded("the server has as many pictures as it can hold", retry_after_s=retry_after_s)
            self._images += images
            self._bytes += size_bytes

    def close(self) -> None:
        """Refuse everything from now on."""
        with self._lock:
            self._closed = True

    def release(self, images: int, size_bytes: int) -> None:
        """The request has its answer."""
        with self._lock:
            self._images -= images
            self._bytes -= size_bytes
