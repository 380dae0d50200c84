"""Keeps the table of an access file up to date as the file changes. Owns the looking; the text is the table's.

A file that turned bad leaves the last good table in force, and is said to be bad once. A changed one is read on a
thread of its own, as ten thousand clients take seconds, and callers are told by the old table until it has been.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from attnserve.access import Grant, Metadata
from attnserve.access_table import AccessTable, parsed
from attnserve.errors import AttnserveError, ConfigError
from attnserve.model_files import bytes_of

log = logging.getLogger(__name__)

LOOK_S = 1.0
"""Between two looks at the file: a token that is taken away works no longer than that and the reading."""

_Mark = tuple[int, int, int, int]
_Run = Callable[[Callable[[], None]], None]


def _on_a_thread(work: Callable[[], None]) -> None:
    threading.Thread(target=work, name="access-file", daemon=True).start()


class AccessFile:
    """`Access` by a file. Any thread may use it. Raises `ConfigError` for a file that cannot be used at first.

    Args:
        clock: Monotonic seconds, also of the rates.
        run: Has the work done that a changed file makes.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic, run: _Run = _on_a_thread) -> None:
        self._path = path
        self._clock = clock
        self._run = run
        self._lock = threading.Lock()
        self._mark = _mark(path)
        self._table = self._read(None)
        self._next_look = clock() + LOOK_S

    def grant(self, metadata: Metadata, identities: Iterable[str] = ()) -> Grant:
        """See `Access`."""
        return self._current().grant(metadata, identities)

    def refusal(self, method: str, metadata: Metadata) -> AttnserveError | None:
        """See `Access`."""
        return self._current().refusal(method, metadata)

    def _current(self) -> AccessTable:
        if self._clock() >= self._next_look:
            self._look()
        return self._table

    def _look(self) -> None:
        if not self._lock.acquire(blocking=False):
            return  # another thread looks already, or the file is being read
        self._next_look = self._clock() + LOOK_S
        if _mark(self._path) == self._mark:
            self._lock.release()
            return
        try:
            self._run(self._read_again)
        except RuntimeError as error:  # no thread is to be had just now; the next look tries again
            self._lock.release()
            log.error("access file %s changed and cannot be read: %s", self._path, error)

    def _read_again(self) -> None:
        try:
            self._mark = _mark(self._path)
            self._table = self._read(self._table)
            log.info("access file %s: read again", self._path)
        except ConfigError as error:
            log.error("%s; what it said before goes on to hold", error)
        finally:
            self._lock.release()

    def _read(self, previous: AccessTable | None) -> AccessTable:
        try:
            data = bytes_of(self._path)
        except ConfigError as error:  # which names the path
            raise ConfigError(f"access_file {error}") from None
        try:
            return parsed(data.decode(), previous, self._clock)
        except (UnicodeDecodeError, ConfigError) as error:
            reason = "not UTF-8" if isinstance(error, UnicodeDecodeError) else error  # whose text shows the bytes
            raise ConfigError(f"access_file {self._path}: {reason}") from None


def _mark(path: Path) -> _Mark | None:
    """Changes when the file does, also where a link to it is led elsewhere; None where there is no file."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
