"""Whose turn it is within one priority class: clients in equal shares, and of one client the earliest deadline.

An entry goes before another where its client will have had fewer rows launched at its end (finish tags: Demers, Keshav,
Shenker, SIGCOMM 1989), so a large one is run to its end once begun, and many of equal size end one after the other and
not all at the last moment. A client that comes back after a pause starts from whom is served then (start-time fair
queueing: Goyal, Vin, Cheng, SIGCOMM 1996), so nobody saves up turns and nobody is held to account for ever. It also
knows how long a client has had no row launched, by which `batch_queue` ages the class. A plain object, no threads or
clocks.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from heapq import heapify, heappop, heappush
from typing import Generic

from attnserve.contract import W

_COMPACT_ABOVE = 64  # entries that left, in a client's heap, or turns that are over, besides as many that wait
_MOST_ABSENT = 1024  # clients that have nothing queued and whose standing is remembered
_MOST_COUNTED = 128  # clients that one estimate looks at: it is asked for each request, refused ones too


class _Line:
    """One client's entries, by number, the most urgent first."""

    __slots__ = ("entries", "rows", "served", "turn")

    def __init__(self, served: int) -> None:
        self.served = served  # rows launched, counted from where the client joined
        self.rows = 0
        self.entries: list[tuple[float, int]] = []  # (deadline, number), some of entries that left
        self.turn: _Turn | None = None


_Turn = tuple[int, float, int, int, _Line]  # tag, deadline, number, serial (so that lines are never compared), line


class FairQueue(Generic[W]):
    """The entries of one class. An entry leaves by `charge`, when all of it was launched, or by `discard`.

    Args:
        longest_turn: Rows that an entry may have launched at a stretch. Of a larger one all but as many at its end are
            launched by turns, so that nobody waits longer than that for each of the others.
    """

    def __init__(self, longest_turn: int) -> None:
        self.rows = 0
        self._longest_turn = longest_turn
        self._entries: dict[int, W] = {}
        self._lines: dict[str, _Line] = {}
        self._since: OrderedDict[str, float] = OrderedDict()  # of clients with something queued, the longest wait first
        self._turns: list[_Turn] = []
        self._served = 0  # where the client that was served last stood when its present turn began
        self._serials = itertools.count()

    @property
    def clients(self) -> int:
        """Those with something queued."""
        return len(self._since)

    @property
    def waiting_since(self) -> float:
        """When the client that waits longest had a row launched, or came if that is later; some row must be queued."""
        return self._since[next(iter(self._since))]

    def rows_ahead(self, client: str, rows: int) -> int:
        """Most rows that go before the last of `rows` new ones of that client, if nobody else comes.

        Where more than `_MOST_COUNTED` clients wait, they are taken to be where the client is.
        """
        line = self._lines.get(client)
        own, served = (line.rows, line.served) if line else (0, 0)
        tag = max(served, self._served) + own + rows
        if self.clients > _MOST_COUNTED:
            return own + min(self.rows - own, self.clients * (own + rows))
        lines = (self._lines[name] for name in self._since if name != client)
        return own + sum(min(each.rows, tag - each.served) for each in lines if each.turn and each.turn[0] <= tag)

    def put(self, entry: W, now: float) -> None:
        """Queue the rows of an entry that were not launched."""
        line = self._lines.get(entry.client)
        if line is None:
            line = self._lines[entry.client] = _Line(self._served)
        if not line.rows:
            self._since[entry.client] = now
            line.served = max(line.served, self._served)
        self._entries[entry.order] = entry
        heappush(line.entries, (entry.deadline, entry.order))
        waiting = entry.waiting
        line.rows += waiting
        self.rows += waiting
        if line.turn is None or line.entries[0][1] == entry.order:  # else its most urgent entry is the same as before
            self._give_turn(line)

    def peek(self) -> W | None:
        """Whose rows go next; None where nothing is queued."""
        while self._turns:
            turn = self._turns[0]
            line = turn[-1]
            if line.turn is not turn:
                heappop(self._turns)
            elif line.entries[0][1] not in self._entries:
                self._give_turn(line)
            else:
                return self._entries[line.entries[0][1]]
        return None

    def charge(self, entry: W, rows: int, now: float) -> None:
        """`rows` of the entry that `peek` returned were launched; `entry.taken` counts them already."""
        line = self._lines[entry.client]
        tag = line.served + min(entry.waiting + rows, self._longest_turn)
        self._served = tag - min(entry.rows, self._longest_turn)
        line.served += rows
        self._since[entry.client] = now
        self._since.move_to_end(entry.client)
        if not entry.waiting:
            del self._entries[entry.order]
        self._leave(entry.client, rows)

    def discard(self, entry: W) -> None:
        """The entry's waiting rows leave, not launched."""
        del self._entries[entry.order]
        self._leave(entry.client, entry.waiting)

    def _leave(self, client: str, rows: int) -> None:
        line = self._lines[client]
        line.rows -= rows
        self.rows -= rows
        if line.rows:
            self._give_turn(line)
            return
        del self._since[client]
        line.entries.clear()
        line.turn = None
        self._forget()

    def _give_turn(self, line: _Line) -> None:
        """Put the line where its most urgent entry now belongs."""
        if len(line.entries) > 2 * _COMPACT_ABOVE and len(line.entries) > 2 * len(self._entries):
            line.entries = [item for item in line.entries if item[1] in self._entries]
            heapify(line.entries)
        while line.entries[0][1] not in self._entries:
            heappop(line.entries)
        head = self._entries[line.entries[0][1]]
        place = (line.served + min(head.waiting, self._longest_turn), *line.entries[0])
        if line.turn is None or line.turn[:3] != place:
            line.turn = (*place, next(self._serials), line)
            heappush(self._turns, line.turn)
            if len(self._turns) > 2 * max(_COMPACT_ABOVE, self.clients):
                self._turns = [turn for client in self._since if (turn := self._lines[client].turn)]
                heapify(self._turns)

    def _forget(self) -> None:
        """Forget the standing of clients that are away: all of them once nobody is there to compare with."""
        if not self.clients:
            self._lines.clear()
            self._turns.clear()
            self._served = 0
        elif len(self._lines) - self.clients > _MOST_ABSENT:
            self._lines = {client: line for client, line in self._lines.items() if line.rows}
