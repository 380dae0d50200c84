"""Worker processes that score chunks side by side, and give their results in the order of the chunks.

Owns processes and what happens where one dies; knows no file and no model.
"""

from __future__ import annotations

import multiprocessing
import pickle
import signal
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol

from attnserve.scoring.items import Item
from attnserve.scoring.rows import Scored

MOST_DEATHS = 3  # of workers over one chunk: what kills the third one is no accident
_AHEAD = 2  # chunks for each worker, done or being done, that wait for an earlier one
_PATIENCE_S = 5.0  # for a worker that was told to end

_CONTEXT = multiprocessing.get_context("spawn")  # threads and sessions do not survive a fork


class Scorer(Protocol):
    """Scores items; one thread at a time calls it."""

    def score(self, items: Sequence[Item]) -> Scored:
        """One outcome per item, in order; blocks. Raises only what concerns the whole job."""

    def close(self) -> None:
        """Let go of what it holds."""


class Recipe(Protocol):
    """Makes a scorer in the process that will use it; picklable."""

    def open(self) -> Scorer:
        """Load what it needs. Raises `ConfigError`."""


class WorkerDied(Exception):
    """Worker processes ended over the same chunk again and again."""


@dataclass
class _Chunk:
    items: Sequence[Item]
    result: Scored | None = None
    deaths: int = 0


class Workers:
    """Processes, each with a scorer of its own; a context manager, at whose end they are gone.

    Args:
        recipe: Of the scorers.
        count: Processes.
    """

    def __init__(self, recipe: Recipe, count: int) -> None:
        self._recipe = recipe
        self._count = count
        self._idle: list[_Worker] = []
        self._busy: dict[_Worker, _Chunk] = {}

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        workers = [*self._idle, *self._busy]
        for worker in workers:
            worker.end(at_once=kind is not None)
        for worker in workers:
            worker.join()
        self._idle, self._busy = [], {}

    def scored(self, chunks: Iterable[Sequence[Item]]) -> Iterator[tuple[Sequence[Item], Scored]]:
        """Each chunk with what became of it, in order; reads only a few chunks ahead.

        A worker that dies (out of memory, a decoder that crashes) is replaced and its chunk scored again.

        Raises:
            WorkerDied: Over one chunk too often.
            Exception: What a scorer raised.
        """
        source = iter(chunks)
        window: deque[_Chunk] = deque()  # in order; those at the front may be done
        again: list[_Chunk] = []
        more = True
        while True:
            while len(self._busy) < self._count:
                if again:
                    chunk = again.pop()
                elif more and len(window) < _AHEAD * self._count:
                    items = next(source, None)
                    if items is None:
                        more = False
                        break
                    chunk = _Chunk(items)
                    window.append(chunk)
                else:
                    break
                self._start(chunk)
            if window and window[0].result is not None:  # taken once every worker has its next chunk
                chunk = window.popleft()
                assert chunk.result is not None
                yield chunk.items, chunk.result
            elif self._busy:
                again += self._next_results()
            elif not window:
                return

    def _start(self, chunk: _Chunk) -> None:
        worker = self._idle.pop() if self._idle else _Worker(self._recipe)
        self._busy[worker] = chunk
        worker.send(chunk.items)

    def _next_results(self) -> list[_Chunk]:
        """Wait for a worker; returns the chunks of those that died."""
        lost = []
        ready = wait([worker.answers for worker in self._busy])
        for worker in [each for each in self._busy if each.answers in ready]:
            chunk = self._busy.pop(worker)
            try:
                answer = worker.answers.recv()
            except (EOFError, OSError):
                worker.end(at_once=True)
                worker.join()
                chunk.deaths += 1
                if chunk.deaths == MOST_DEATHS:
                    first, last = chunk.items[0].id, chunk.items[-1].id
                    raise WorkerDied(f"{MOST_DEATHS} workers died over {first!r} to {last!r}") from None
                lost.append(chunk)
                continue
            self._idle.append(worker)
            if isinstance(answer, Exception):
                raise answer
            chunk.result = answer
        return lost


class _Worker:
    """One process."""

    def __init__(self, recipe: Recipe) -> None:
        self.answers, theirs = _CONTEXT.Pipe()
        self._process = _CONTEXT.Process(target=_work, args=(recipe, theirs), daemon=True)
        self._process.start()
        theirs.close()  # so that its death is the end of the pipe

    def send(self, items: Sequence[Item]) -> None:
        with suppress(OSError):  # it has died: the pipe's end says so
            self.answers.send(items)

    def end(self, *, at_once: bool) -> None:
        if at_once:
            self._process.kill()
            return
        with suppress(OSError):
            self.answers.send(None)

    def join(self) -> None:
        self._process.join(_PATIENCE_S)
        self._process.kill()
        self._process.join()
        self.answers.close()


def _work(recipe: Recipe, calls: Connection[Any, Any]) -> None:
    """Score chunks until told to end, or until whoever asks is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's Ctrl-C is for the process that coordinates
    scorer: Scorer | None = None
    with suppress(EOFError, OSError):
        while (items := calls.recv()) is not None:
            try:
                scorer = scorer or recipe.open()
                answer: object = scorer.score(items)
            except Exception as error:
                answer = portable(error)
            calls.send(answer)
    if scorer is not None:
        scorer.close()


def portable(error: Exception) -> Exception:
    """The error, or its words where it does not survive the way to another process, as many drivers' do not."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
