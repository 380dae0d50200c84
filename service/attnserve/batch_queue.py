"""Which rows run next: the batching policy of one model version, as a plain object without threads, clocks or sockets.

Law: an idle worker never waits while rows are queued, so batches grow only because all workers are busy.
Law: an entry that was cancelled or has expired leaves before it is launched.
Law: rows leave in the order in which their entries came.
"""

from __future__ import annotations

from collections import deque

from attnserve.contract import Batch, Entry, Slice
from attnserve.errors import Cancelled, DeadlineExceeded


class BatchQueue:
    """First in, first out, by rows; an entry may be split over several batches.

    Args:
        max_batch_size: Most rows in one batch.
    """

    def __init__(self, max_batch_size: int) -> None:
        if max_batch_size < 1:
            raise ValueError(f"max_batch_size must be positive, got {max_batch_size}")
        self.max_batch_size = max_batch_size
        self._entries: deque[Entry] = deque()
        self._rows = 0

    @property
    def rows(self) -> int:
        """Images that wait, those of cancelled and expired entries included until `take` comes upon them."""
        return self._rows

    def put(self, entry: Entry, now: float) -> None:
        """Append an entry; it belongs to the queue until `take` or `clear` returns its last row."""
        if not entry.rows:
            raise ValueError("an entry without images can never be answered. This is a bug.")
        entry.enqueued_at = now
        self._entries.append(entry)
        self._rows += entry.rows

    def take(self, now: float, idle_workers: int = 1) -> tuple[Batch, list[Entry]]:
        """The next batch for one of `idle_workers` idle workers, and the entries that left without being launched.

        The batch holds ceil(queued / idle_workers) rows, so that the other idle workers get their share, and at most
        `max_batch_size`; it may be empty. Each dropped entry has its `error` set here; rows of an entry that failed
        earlier leave silently, for whoever failed it has answered it.
        """
        room = min(self.max_batch_size, -(-self._rows // idle_workers))
        slices: list[Slice] = []
        dropped: list[Entry] = []
        rows = 0
        while rows < room and self._entries:
            entry = self._entries[0]
            if entry.error is not None or _must_drop(entry, now, dropped):
                self._rows -= entry.rows - entry.taken
                self._entries.popleft()
                continue
            start = entry.taken
            stop = min(entry.rows, start + room - rows)
            slices.append(Slice(entry, start, stop))
            entry.taken = stop
            entry.outstanding += stop - start
            rows += stop - start
            if stop == entry.rows:
                self._entries.popleft()
        self._rows -= rows
        return Batch(tuple(slices), rows), dropped

    def clear(self) -> list[Entry]:
        """Take everything out, not launched; the caller answers the entries."""
        entries = list(self._entries)
        self._entries.clear()
        self._rows = 0
        return entries


def _must_drop(entry: Entry, now: float, dropped: list[Entry]) -> bool:
    """Whether the entry is cancelled or expired; if so it gets its error and joins `dropped`."""
    if entry.cancelled:
        entry.error = Cancelled("the caller went away")
    elif entry.deadline <= now:
        entry.error = DeadlineExceeded("the deadline passed before the request ran")
    else:
        return False
    dropped.append(entry)
    return True
