"""Which rows run next: the batching policy of one model version, as a plain object without threads, clocks or sockets.

Law: an idle worker never waits while rows are queued, unless config.pbtxt asks for a delay; batches grow only because
all workers are busy.
Law: an entry that was cancelled, has expired or cannot end in time leaves before it is launched.
Law: of two priority classes the higher goes first; within a class clients get equal shares (`fair_queue`), however long
one has waited, in turns of a few batches; within a client the earliest deadline goes first, and what came first of
equal ones.
Law: no class starves: a client that has rows waiting and gets none launched lifts its class until it has had a turn, by
one class per `ageing_s`; classes that are level then alternate. The age of a backlog that is served lifts nothing.
Law: a batch is no larger than its most urgent image allows, and than still gains throughput (`latency_table`).
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from typing import Generic

from attnserve.contract import Batch, Slice, W
from attnserve.errors import AttnserveError, Cancelled, DeadlineExceeded
from attnserve.fair_queue import FairQueue
from attnserve.latency_table import LatencyTable

MOST_LEVELS = 16  # priority classes that a policy may have; each has queues of its own
_COMPACT_ABOVE = 64  # numbers of entries that left, in the heap of deadlines, besides as many that wait


@dataclass(frozen=True)
class Policy:
    """What config.pbtxt says of a model's batches.

    Attributes:
        max_batch_size: Most rows in one batch.
        preferred_batch_sizes: Ascending. A batch that reaches one of these is cut there; `max_queue_delay_s` waits for
            the first, and idle workers do not share out less than it.
        max_queue_delay_s: How long an idle worker may wait for the batch to grow; 0 never waits.
        levels: Priority classes; 1 is served first.
        ageing_s: So long without a row launched, a client that waits lifts its class by one.
        turn_batches: Batches of the largest size that an entry may fill before others of its class come. Chosen with
            ten to forty clients that ask for more than there is: 2 made large requests late together, 8 let a client
            that asks for more than its share wait ten times as long.
        shares_out: Whether idle workers get a share each of what waits, or the first takes all it can.
    """

    max_batch_size: int
    preferred_batch_sizes: tuple[int, ...] = ()
    max_queue_delay_s: float = 0.0
    levels: int = 1
    ageing_s: float = 1.0
    turn_batches: int = 4
    shares_out: bool = True

    def __post_init__(self) -> None:
        if self.max_batch_size < 1:
            raise ValueError(f"max_batch_size must be positive, got {self.max_batch_size}")


class BatchQueue(Generic[W]):
    """The rows of one model version that wait; an entry may be split over several batches.

    Args:
        table: What batches cost; the queue keeps no other copy.
        workers: How many take from it.
    """

    def __init__(self, policy: Policy, table: LatencyTable | None = None, workers: int = 1) -> None:
        self.policy = policy
        self._workers = workers
        self.table = table or LatencyTable()
        longest_turn = policy.turn_batches * policy.max_batch_size
        self._classes: list[FairQueue[W]] = [FairQueue(longest_turn) for _ in range(policy.levels)]
        self._orders = itertools.count()
        self._entries: dict[int, W] = {}  # those that wait, by number, in the order of arrival
        self._deadlines: list[tuple[float, int]] = []  # a heap, some of it of entries that left
        self._rows = 0
        self._launches = 0
        self._last_launch = [0] * policy.levels  # its number, of each class

    @property
    def rows(self) -> int:
        """Images that wait; those that were cancelled meanwhile, but not discarded, count until `take` finds them."""
        return self._rows

    @property
    def entries(self) -> int:
        """Entries of which a row waits."""
        return len(self._entries)

    @property
    def clients(self) -> int:
        """Clients that have rows waiting, counted in each priority class."""
        return sum(each.clients for each in self._classes)

    @property
    def limit(self) -> int:
        """The largest batch worth forming now, whoever is in it; what config.pbtxt prefers is worth it."""
        return max(self.table.efficient_size(self.policy.max_batch_size), *self.policy.preferred_batch_sizes[:1], 1)

    def put(self, entry: W, now: float) -> None:
        """Append an entry; it belongs to the queue until `take`, `discard` or `clear` returns its last row."""
        if not entry.rows:
            raise ValueError("an entry without images can never be answered. This is a bug.")
        entry.enqueued_at = now
        entry.order = next(self._orders)
        entry.level = min(max(entry.level, 1), len(self._classes))
        self._entries[entry.order] = entry
        if len(self._deadlines) > 2 * max(_COMPACT_ABOVE, len(self._entries)):
            self._deadlines = [item for item in self._deadlines if item[1] in self._entries]
            heapify(self._deadlines)
        heappush(self._deadlines, (entry.deadline, entry.order))
        self._rows += entry.waiting
        self._classes[entry.level - 1].put(entry, now)

    def rows_ahead(self, client: str, level: int, rows: int) -> int:
        """Most images that are launched before the last of `rows` new ones of that client (itself not counted).

        Without what ageing lends to lower classes: about a turn of each of their clients in `ageing_s`.
        """
        level = min(max(level, 1), len(self._classes))
        higher = sum(each.rows for each in self._classes[: level - 1]) if level > 1 else 0
        return higher + self._classes[level - 1].rows_ahead(client, rows)

    def ready_at(self, now: float) -> float:
        """When an idle worker should take: at once, or where a delay is configured, when it ends."""
        if not self.policy.max_queue_delay_s or not self.rows:
            return now
        wanted = self._wanted()
        if self.rows >= wanted:
            return now
        oldest = next(iter(self._entries.values()))
        while self._deadlines[0][1] not in self._entries:
            heappop(self._deadlines)
        urgent = self._deadlines[0][0] - self.table.predicted_s(wanted)
        return max(now, min(oldest.enqueued_at + self.policy.max_queue_delay_s, urgent))

    def take(self, now: float, idle_workers: int = 1) -> tuple[Batch[W], list[W]]:
        """The next batch for one of `idle_workers` idle workers, and the entries that left without being launched.

        The batch holds ceil(queued / idle_workers) rows, so that the other idle workers get their share, or all where
        the policy shares nothing out, and at most `limit`; it may be empty. Each dropped entry has its `error` set.
        """
        dropped = self._expired(now)
        room = self._room(idle_workers)
        slices: list[Slice[W]] = []
        rows, tightest = 0, math.inf
        while rows < room and (entry := self._next(dropped, now)) is not None:
            if self._is_doomed(entry, now):
                self._drop(entry, DeadlineExceeded("the deadline could not be met"), dropped)
                continue
            if entry.deadline < tightest:
                fitting = self.table.largest_within(entry.deadline - now, room)
                if fitting <= rows and rows:
                    break  # it would be late in this batch, or make the batch late: let it lead the next
                if fitting < room and self._gives_way(entry, fitting, now, room):
                    self._drop(entry, DeadlineExceeded("the deadline could not be met"), dropped)
                    continue
                tightest, room = entry.deadline, fitting or room
            rows += self._launch(entry, room - rows, slices, now)
        return Batch(tuple(slices), rows), dropped

    def discard(self, entry: W, error: AttnserveError) -> bool:
        """Take out an entry's waiting rows and give it the error; False where none wait here."""
        if entry.order not in self._entries:
            return False
        self._drop(entry, error, [])
        return True

    def clear(self) -> list[W]:
        """Take everything out, not launched, in the order of arrival; the caller answers the entries."""
        entries = list(self._entries.values())
        for entry in entries:
            self._leave(entry)
        return entries

    def _wanted(self) -> int:
        """The size that config.pbtxt asks batches to reach; 1 where it asks for none."""
        if self.policy.preferred_batch_sizes:
            return self.policy.preferred_batch_sizes[0]
        return self.limit if self.policy.max_queue_delay_s else 1

    def _room(self, idle_workers: int) -> int:
        takers = idle_workers if self.policy.shares_out else 1
        share = max(-(-self.rows // takers), min(self._wanted(), self.rows))
        room = self.table.worth_taking(min(self.limit, share))
        return max((size for size in self.policy.preferred_batch_sizes if size <= room), default=room)

    def _next(self, dropped: list[W], now: float) -> W | None:
        """Whose rows go next; drops what was cancelled on the way."""
        while self._rows:
            found = self._classes[self._first(now)].peek()
            if found is None or not found.cancelled:
                return found
            self._drop(found, Cancelled("the caller went away"), dropped)
        return None

    def _first(self, now: float) -> int:
        """Index of the class whose turn it is; some row must wait."""
        queued = [at for at, each in enumerate(self._classes) if each.rows]
        if len(queued) == 1:
            return queued[0]
        return min(queued, key=lambda at: (self._lifted(at, now), self._last_launch[at]))

    def _lifted(self, at: int, now: float) -> int:
        """Index of the class with which the class at that index, in which rows wait, is level by now."""
        return max(at - int((now - self._classes[at].waiting_since) / self.policy.ageing_s), 0)

    def _launch(self, entry: W, most: int, slices: list[Slice[W]], now: float) -> int:
        """Launch at most so many rows of the entry; returns how many."""
        waiting = entry.waiting
        count = min(waiting, most)
        start, entry.taken = entry.taken, entry.taken + count
        entry.outstanding += count
        self._classes[entry.level - 1].charge(entry, count, now)
        self._rows -= count
        self._launches += 1
        self._last_launch[entry.level - 1] = self._launches
        if count == waiting:
            del self._entries[entry.order]
        if slices and slices[-1].entry is entry:
            start = slices.pop().start
        slices.append(Slice(entry, start, entry.taken))
        return count

    def _is_doomed(self, entry: W, now: float) -> bool:
        """Whether the entry could not end in time if every worker ran its rows now, and others wait for them.

        Alone it always runs, for the table may be wrong and would never learn.
        """
        share = -(-entry.waiting // self._workers)
        return self.rows > entry.waiting and now + self.table.predicted_s(share) > entry.deadline

    def _gives_way(self, entry: W, fitting: int, now: float, room: int) -> bool:
        """Whether to drop an entry that allows only a batch of `fitting`, fewer than the `room` there is.

        It is, where more rows are as urgent as such a batch could carry (its own, where none fits): then shrinking the
        batch for each of them in turn would make all of them late, so the most urgent one gives way (early drop: Shen
        et al., Nexus, SOSP 2019). Alone it always runs, for the table may be wrong and would never learn.
        """
        if self.rows == entry.waiting:
            return False
        horizon, urgent = now + self.table.predicted_s(room), 0
        for deadline, order in self._deadlines:  # urgent ones lie near the heap's beginning
            if deadline <= horizon and order in self._entries:
                urgent += self._entries[order].waiting
                if urgent > fitting:
                    return True
        return False

    def _expired(self, now: float) -> list[W]:
        """Drop every entry whose deadline has come."""
        dropped: list[W] = []
        while self._deadlines and (self._deadlines[0][0] <= now or self._deadlines[0][1] not in self._entries):
            entry = self._entries.get(heappop(self._deadlines)[1])
            if entry is None:
                continue
            late = DeadlineExceeded("the deadline passed before the request ran")
            self._drop(entry, Cancelled("the caller went away") if entry.cancelled else late, dropped)
        return dropped

    def _drop(self, entry: W, error: AttnserveError, dropped: list[W]) -> None:
        entry.error = error
        self._leave(entry)
        dropped.append(entry)

    def _leave(self, entry: W) -> None:
        """Take out an entry's waiting rows."""
        del self._entries[entry.order]
        self._rows -= entry.waiting
        self._classes[entry.level - 1].discard(entry)
