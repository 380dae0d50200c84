"""When the keeper looks: once at start, every few seconds (`poll`), or when somebody asks (`explicit`).

Owns the one thread on which models are loaded while the server serves, and the orders that wait for it; decides nothing
about versions (see `lifecycle`) and knows no wire.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from attnserve import lifecycle
from attnserve.errors import (
    AttnserveError,
    ConfigError,
    FailedPrecondition,
    Internal,
    NotFound,
    Overloaded,
    Unavailable,
)
from attnserve.keeper import Keeper
from attnserve.models import Models
from attnserve.repository import Look, look_at, warn_of_strays

log = logging.getLogger(__name__)

NONE, POLL, EXPLICIT = "none", "poll", "explicit"
ALL = "*"

_MOST_WAITING = 64  # orders; a load takes seconds, and whoever gave them waits for all before
_RETRY_S = 1.0
_ENDING_S = 1.0  # for the thread to hear of the end; a load under way takes longer and cannot be interrupted

Done = Callable[[AttnserveError | None], None]
"""Told once what came of an order: None, or why it was not done. From any thread; must not block."""


class IndexEntry(NamedTuple):
    """One line of the repository's index; a model that was never loaded has neither version nor state."""

    name: str
    version: str
    state: str
    reason: str


class _Order:
    """Something to do on the thread, and whoever waits for it."""

    def __init__(self, job: Callable[[], None], done: Done) -> None:
        self.job = job
        self._done = [done]

    def answer(self, error: AttnserveError | None) -> None:
        """Tell what came of it, unless that is told already; from any thread."""
        try:
            done = self._done.pop()  # one operation, so only one thread gets it
        except IndexError:
            return
        done(error)


class ModelControl:
    """The keeper's clock and inbox.

    Args:
        repository: The folder of models.
        models: What the keeper writes.
        make_keeper: Called once with the `post` that it must use.
        mode: `none`, `poll` or `explicit`.
        poll_s: Seconds between two looks in mode `poll`.
        takes_orders: Whether mode `explicit` does after the start.
    """

    def __init__(
        self,
        repository: Path,
        models: Models,
        make_keeper: Callable[[Callable[[Callable[[], None]], None]], Keeper],
        *,
        mode: str,
        poll_s: float,
        takes_orders: bool = True,
    ) -> None:
        self._takes_orders = takes_orders
        self._repository = repository
        self._models = models
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._keeper = make_keeper(self._jobs.put)
        self._mode = mode
        self._poll_s = poll_s
        self._before: dict[str, Look] = {}
        self._waiting: list[_Order] = []
        self._stopping = False
        self._thread = threading.Thread(target=self._work, name="model-control", daemon=True)

    def load_at_start(self, wanted: str, *, exit_on_error: bool) -> None:
        """Load what is served from the start; blocks.

        Args:
            wanted: In mode `explicit` names of models, separated by commas, or `*`.
            exit_on_error: Raise `ConfigError` for the first model of which no version can be served, instead of noting
                it and going on.

        Raises:
            ConfigError: There is no repository, no model in it (mode `none`), or none of a wanted name.
        """
        self._before = look_at(self._repository)
        warn_of_strays(self._repository)
        if self._mode == NONE and not self._before:
            raise ConfigError(f"model repository {self._repository} holds no model")
        for name in self._names_at_start(wanted):
            if name not in self._before:
                raise ConfigError(f"load_models: there is no model {name!r} in {self._repository}")
            reason = self._keeper.follow(name, self._before[name])
            if reason and exit_on_error and not self._models.versions(name):
                self._keeper.close()
                raise ConfigError(reason)

    def start(self) -> None:
        """Follow the repository or listen to orders from here on, on a thread of its own."""
        self._thread.start()

    def load(self, name: str, done: Done) -> None:
        """Have a model be as it lies on disk; returns at once. `done` hears `NotFound` or `FailedPrecondition`.

        Raises `Unavailable` in another mode than `explicit` and after `stop`, `Overloaded` where many orders wait.
        """
        self._order(partial(self._load, name), done)

    def unload(self, name: str, done: Done) -> None:
        """Serve a model no longer; returns at once, and the model's calls are finished. Raises as `load` does."""
        self._order(partial(self._unload, name), done)

    def index(self) -> list[IndexEntry]:
        """Every model that lies on disk or is loaded, and how its versions stand; reads the folder. From any thread."""
        folders = look_at(self._repository)
        stands = self._models.statuses()
        entries = [IndexEntry(*key, *status) for key, status in stands
                   if key.name in folders or status.reason != lifecycle.UNLOADED]  # fmt: skip
        known = {entry.name for entry in entries}
        return sorted([*entries, *(IndexEntry(name, "", "", "") for name in folders if name not in known)])

    def stop(self) -> None:
        """Begin nothing new, and answer whoever waits with `Unavailable`; what is served stays. From any thread."""
        self._stopping = True
        for order in list(self._waiting):
            order.answer(Unavailable("the server is shutting down"))

    def close_models(self) -> None:
        """Stop all workers; queued work fails with `Unavailable`. From any thread."""
        self._keeper.close()

    def close(self) -> bool:
        """Stop everything; False where a load is under way, which cannot be interrupted."""
        self.stop()
        self.close_models()
        if not self._thread.is_alive():
            return True
        self._jobs.put(None)
        self._thread.join(_ENDING_S)
        return not self._thread.is_alive()

    def _names_at_start(self, wanted: str) -> list[str]:
        names = [name.strip() for name in wanted.split(",") if name.strip()]
        return list(self._before) if self._mode != EXPLICIT or ALL in names else names

    def _order(self, job: Callable[[], None], done: Done) -> None:
        if self._mode != EXPLICIT:
            raise Unavailable(f"explicit model load / unload is not allowed: model_control_mode is {self._mode}")
        if not self._takes_orders:
            raise Unavailable("explicit model load / unload is not allowed: several transport_processes serve")
        if self._stopping:
            raise Unavailable("the server is shutting down")
        if len(self._waiting) >= _MOST_WAITING:
            raise Overloaded(f"{_MOST_WAITING} loads and unloads wait already", retry_after_s=_RETRY_S)
        order = _Order(job, done)
        self._waiting.append(order)
        self._jobs.put(partial(self._obey, order))

    def _work(self) -> None:
        """The thread: does jobs in order, and looks at the repository where none has come for a while."""
        patience_s = self._poll_s if self._mode == POLL else None
        while True:
            try:
                job = self._jobs.get(timeout=patience_s)
            except queue.Empty:
                job = self._poll
            if job is None:
                return
            try:
                job()
            except Exception:
                log.exception("model control failed")

    def _obey(self, order: _Order) -> None:
        error: AttnserveError | None = None
        try:
            if not self._stopping:
                order.job()
        except AttnserveError as failure:
            error = failure
        except ConfigError as failure:
            error = FailedPrecondition(str(failure))
        except Exception:
            log.exception("a load or unload failed")
            error = Internal("internal error")
        self._waiting.remove(order)
        order.answer(error)

    def _load(self, name: str) -> None:
        look = look_at(self._repository).get(name)
        if look is None:
            raise NotFound(f"failed to load {name!r}: there is no such model in the repository")
        reason = self._keeper.follow(name, look, retry=True)
        if reason:
            raise FailedPrecondition(f"failed to load {name!r}: {reason}")

    def _unload(self, name: str) -> None:
        if name not in self._keeper.names and name not in look_at(self._repository):
            raise NotFound(f"unknown model {name!r}")
        self._keeper.unload(name)

    def _poll(self) -> None:
        """Act on the models whose folders look as they did at the last poll; a repository that is gone says nothing."""
        if self._stopping:
            return
        try:
            now = look_at(self._repository)
        except ConfigError as error:
            log.error("%s; everything stays as it is", error)
            return
        for name in sorted(lifecycle.settled(self._before, now, self._keeper.names)):
            self._keeper.follow(name, now.get(name))
        self._before = now
