"""Workers that pull their next batch the moment they are free, for one model version.

Owns the worker threads and the lock around the queue; decides nothing (see `batch_queue`) and knows no gRPC.
A finished batch wakes each inbox once, however many of its requests were in it.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from attnserve.batch_queue import BatchQueue
from attnserve.contract import Backend, Batch, Entry, Inbox, Listener, ModelKey, Outputs
from attnserve.errors import SHORTEST_RETRY_S, Cancelled, Internal, Overloaded, Unavailable

log = logging.getLogger(__name__)

_LARGE_BYTES = 4096  # of an entry's part of an output: what takes longer to copy than to look at


class Estimate(NamedTuple):
    """What a request would meet that came now.

    Attributes:
        wait_s: Until its last image starts.
        run_s: From there to its end.
    """

    wait_s: float
    run_s: float


class Scheduler:
    """Runs entries on backends, one worker thread for each backend.

    Every entry accepted by `submit` is finished exactly once: with a result, an error or as a counted drop.

    Args:
        model: For facts and log lines.
        backends: One per worker; the same object twice where it allows concurrent runs.
        queue: Empty; belongs to the scheduler from here on.
        listener: Hears of batches and drops.
        clock: Monotonic seconds; entries' deadlines are on it.
    """

    def __init__(
        self,
        model: ModelKey,
        backends: Sequence[Backend],
        queue: BatchQueue[Entry],
        listener: Listener,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.model = model
        self._queue = queue
        self._listener = listener
        self._clock = clock
        self._lock = threading.Lock()
        self._filled = threading.Condition(self._lock)  # for workers: rows are queued, or it is over
        self._idle = 0
        self._ends: dict[threading.Thread, float] = {}  # of the running batches, as predicted
        self._closed = False
        self._workers = [
            threading.Thread(target=self._work, args=(backend,), name=f"{model.name}-worker-{index}", daemon=True)
            for index, backend in enumerate(backends)
        ]
        for worker in self._workers:
            worker.start()

    @property
    def queued_images(self) -> int:
        """Images that wait for a worker."""
        return self._queue.rows

    @property
    def queued_requests(self) -> int:
        """Entries of which an image waits for a worker."""
        return self._queue.entries

    @property
    def queued_clients(self) -> int:
        """Clients that have an image waiting; one that waits in two priority classes counts in both."""
        return self._queue.clients

    @property
    def levels(self) -> int:
        """Priority classes."""
        return self._queue.policy.levels

    def estimate(self, client: str, level: int, rows: int) -> Estimate:
        """What `rows` images of that client would meet, by what is queued, what runs, and the latency table."""
        now = self._clock()
        with self._lock:
            limit, table = self._queue.limit, self._queue.table
            total = self._queue.rows_ahead(client, level, rows) + rows
            free = sorted([max(0.0, self._ends.get(worker, 0.0) - now) for worker in self._workers])
        rounds, turn = divmod((total - 1) // limit, len(free))  # of the batch that holds the last image
        return Estimate(free[turn] + rounds * table.predicted_s(limit), table.predicted_s(min(limit, total)))

    def cancel(self, entry: Entry) -> None:
        """The caller of an accepted entry went away: its waiting rows leave now, those that run are run."""
        entry.cancelled = True
        with self._lock:
            rows = entry.waiting
            left = self._queue.discard(entry, Cancelled("the caller went away"))
            finished = left and not entry.outstanding
        if left:
            self._listener.dropped(self.model, "cancelled", rows)
        if finished:
            _deliver([entry])

    def submit(self, entry: Entry, most: float = math.inf) -> None:
        """Queue an entry; returns at once. Where it raises, it has not taken the entry.

        Args:
            most: Images that may wait then, this entry's included.

        Raises `Overloaded` where more would, `Unavailable` after `close`.
        """
        with self._lock:
            if self._closed:
                raise Unavailable(f"model {self.model.name!r} version {self.model.version} is shutting down")
            if self._queue.rows + entry.rows > most:
                wait_s = self._queue.table.predicted_s(self._queue.rows)
                raise Overloaded("the model's queue is full", retry_after_s=max(wait_s, SHORTEST_RETRY_S))
            self._queue.put(entry, self._clock())
            if self._idle:  # else nobody waits, and who comes looks first
                self._filled.notify(min(entry.rows, self._idle))

    def close(self) -> None:
        """Stop the workers after their present batch, and wait for that; what is queued fails with `Unavailable`."""
        with self._lock:
            self._closed = True
            left = self._queue.clear()
            for entry in left:
                entry.error = Unavailable("the server is shutting down")
            finished = [entry for entry in left if not entry.outstanding]
            self._filled.notify_all()
        if left:
            self._listener.dropped(self.model, "shutdown", sum(entry.rows - entry.taken for entry in left))
        _deliver(finished)
        for worker in self._workers:
            worker.join()

    def _work(self, backend: Backend) -> None:
        while (taken := self._next_batch()) is not None:
            batch, dropped, finished = taken
            for entry in dropped:
                reason = entry.error.drop_reason if entry.error else None
                self._listener.dropped(self.model, reason or "cancelled", entry.rows - entry.taken)
            _deliver(finished)
            if batch.rows:
                self._run(backend, batch)

    def _next_batch(self) -> tuple[Batch[Entry], list[Entry], list[Entry]] | None:
        """Wait for a batch; with it what was dropped, and those of the dropped that are finished. None once closed."""
        with self._lock:
            self._idle += 1
            try:
                while not self._closed and not self._is_ready():
                    pass
                if self._closed:
                    return None
                now = self._clock()
                batch, dropped = self._queue.take(now, self._idle)
                if batch.rows:
                    self._ends[threading.current_thread()] = now + self._queue.table.predicted_s(batch.rows)
                return batch, dropped, [entry for entry in dropped if not entry.outstanding]
            finally:
                self._idle -= 1

    def _is_ready(self) -> bool:
        """Whether a batch may be formed; if not, wait until that may have changed."""
        if not self._queue.rows:
            self._filled.wait()
            return False
        delay_s = self._queue.ready_at(self._clock()) - self._clock()
        if delay_s > 0:
            self._filled.wait(delay_s)
            return False
        return True

    def _run(self, backend: Backend, batch: Batch[Entry]) -> None:
        self._listener.batch_started(self.model, batch.rows, self._queue.rows)
        started = self._clock()
        outputs: Outputs | None = None
        try:
            outputs = _run_whole(backend, batch)
        except Exception:
            log.exception("model %s version %s: a batch of %d images failed", *self.model, batch.rows)
        infer_s = self._clock() - started
        if outputs is not None:
            self._listener.batch_finished(self.model, batch.rows, infer_s)
        with self._lock:
            del self._ends[threading.current_thread()]
            if outputs is not None:
                self._queue.table.observe(batch.rows, infer_s)
            done = self._settle(batch, outputs, started, infer_s)
            idle = not self._queue.rows
        _deliver(done, idle=idle)

    def _settle(self, batch: Batch[Entry], outputs: Outputs | None, started: float, infer_s: float) -> list[Entry]:
        """Give each entry its rows (or the failure); returns the entries that are now complete."""
        done: list[Entry] = []
        row = 0
        for entry, start, stop in batch.slices:
            if outputs is not None:
                rows = slice(row, row + stop - start)
                entry.parts.append((start, {name: _kept(outputs[name], rows) for name in entry.outputs}))
            elif entry.error is None:
                entry.error = Internal("inference failed")
                self._queue.discard(entry, entry.error)
            row += stop - start
            entry.outstanding -= stop - start
            entry.timings.queue_s = max(entry.timings.queue_s, started - entry.enqueued_at)
            entry.timings.infer_s = max(entry.timings.infer_s, infer_s)
            if not entry.outstanding and (entry.error is not None or not entry.waiting):
                done.append(entry)
        return done


def _run_whole(backend: Backend, batch: Batch[Entry]) -> Outputs:
    """The backend's outputs for the batch; raises `RuntimeError` unless each wanted one has a row for each image."""
    wanted = _wanted_by(batch)
    outputs = backend.run(_rows_of(batch), wanted)
    for name in wanted:
        if name not in outputs or len(outputs[name]) != batch.rows:
            raise RuntimeError(f"the engine gave no {batch.rows} rows of {name!r}. This is a bug.")
    return outputs


def _rows_of(batch: Batch[Entry]) -> NDArray[Any]:
    """The batch's rows; one slice alone is not copied."""
    parts = [entry.images[start:stop] for entry, start, stop in batch.slices]
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _wanted_by(batch: Batch[Entry]) -> list[str]:
    """Every output that some entry of the batch wants, in a stable order."""
    return list(dict.fromkeys(name for entry, _, _ in batch.slices for name in entry.outputs))


def _kept(values: NDArray[Any], rows: slice) -> NDArray[Any]:
    """Some rows of a batch's output; of large ones a copy, for a view holds what the other requests asked for too."""
    part = values[rows]
    return part.copy() if _LARGE_BYTES < part.nbytes < values.nbytes else part


def _deliver(entries: Sequence[Entry], *, idle: bool = False) -> None:
    """Hand finished entries to their inboxes, one wake-up each."""
    by_inbox: dict[int, tuple[Inbox, list[Callable[[], None]]]] = {}
    for entry in entries:
        if entry.error is None:
            try:
                entry.result = _joined(entry.parts)
            except Exception:  # for want of memory, say; the thread and the other answers must not go with it
                log.exception("the parts of a result could not be joined")
                entry.error = Internal("inference failed")
        entry.parts = []
        by_inbox.setdefault(id(entry.inbox), (entry.inbox, []))[1].append(partial(entry.on_finished, entry))
    for inbox, jobs in by_inbox.values():
        try:
            inbox.post(jobs, idle=idle)
        except Exception:  # a transport that is gone must not take the others' answers with it
            log.exception("an inbox refused %d finished requests", len(jobs))


def _joined(parts: list[tuple[int, Outputs]]) -> Outputs:
    """The parts' rows in order; a single part is returned as it is."""
    if len(parts) == 1:
        return parts[0][1]
    parts.sort(key=lambda part: part[0])
    return {name: np.concatenate([outputs[name] for _, outputs in parts]) for name in parts[0][1]}
