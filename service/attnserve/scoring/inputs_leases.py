"""A bounded store of things that stay open between uses: none is closed while in use, each is closed once."""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from attnserve.scoring.items import Unreadable


class Closed(Exception):
    """Nothing is lent any more: the caller's mistake, or the end."""


class Closable(Protocol):
    """What can be closed."""

    def close(self) -> None:
        """Gives its resources back."""


Key = TypeVar("Key", bound=Hashable)
Opened = TypeVar("Opened", bound=Closable)


@dataclass
class _Held(Generic[Opened]):
    opened: Opened
    users: int = 0


class Leases(Generic[Key, Opened]):
    """Opened things by key, lent to any number of threads.

    Args:
        opener: Opens the thing of a key; runs under the store's lock.
        most: So many are kept; while more are in use at a time, there are more.
    """

    def __init__(self, opener: Callable[[Key], Opened], most: int) -> None:
        self._opener = opener
        self._most = most
        self._lock = threading.Lock()
        self._held: OrderedDict[Key, _Held[Opened]] = OrderedDict()
        self._closed = False

    @contextlib.contextmanager
    def lease(self, key: Key) -> Iterator[Opened]:
        """The thing of that key, open as long as the block runs.

        Where the block fails for another reason than `Unreadable`, the next lease opens the thing anew.
        """
        with self._lock:
            if self._closed:
                raise Closed("read from a closed reader")
            held = self._held.get(key)
            if held is None:
                held = self._held[key] = _Held(self._opener(key))
            self._held.move_to_end(key)
            held.users += 1
        keep = False
        try:
            yield held.opened
            keep = True
        except Unreadable:
            keep = True
            raise
        finally:
            with self._lock:
                held.users -= 1
                if not keep and self._held.get(key) is held:
                    del self._held[key]
                self._settle(key, held)

    def close(self) -> None:
        """Closes what is not in use now, and the rest when it is given back; nothing is lent any more."""
        with self._lock:
            self._closed = True
            idle = [held for held in self._held.values() if not held.users]
            self._held.clear()
        for held in idle:
            held.opened.close()

    def _settle(self, key: Key, held: _Held[Opened]) -> None:
        if not held.users and self._held.get(key) is not held:
            held.opened.close()
        idle = [old for old, other in self._held.items() if not other.users]
        for old in idle[: max(0, len(self._held) - self._most)]:
            self._held.pop(old).opened.close()
