"""The models that this process serves, found by name and version: what the event loop reads and the keeper replaces."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

from attnserve.contract import Call, ModelKey
from attnserve.errors import NotFound, Unavailable
from attnserve.explain import Explainers
from attnserve.lifecycle import Status
from attnserve.repository import VersionFiles
from attnserve.scheduler import Scheduler


class Users:
    """The calls that use a model now, so that it is closed only after the last of them.

    Without a lock, because each step is one operation on a set: who enters adds itself first and looks then whether it
    is over; who waits says first that it is over and looks then whether anybody is in. So one of the two sees the
    other.
    """

    def __init__(self) -> None:
        self._users: set[object] = set()
        self._over = False
        self._left = threading.Event()

    def enter(self, user: object) -> bool:
        """Hold the model until `leave`; False, and not held, where it is being closed."""
        self._users.add(user)
        if self._over:
            self.leave(user)
            return False
        return True

    def leave(self, user: object) -> None:
        """Hold it no longer."""
        self._users.discard(user)
        if self._over:
            self._left.set()

    def wait_until_gone(self) -> None:
        """Let nobody in any more, and wait for those who are."""
        self._over = True
        while self._users:
            self._left.wait()
            self._left.clear()


@dataclass(frozen=True, eq=False)
class Model:
    """One model version, loaded and warm.

    Attributes:
        output_bytes: Of one image, by each output that may be asked for; `probabilities` is the default.
        load_s: Seconds from reading the file to the end of the warm-up.
        memory_bytes: What it takes on the host, as far as that can be measured (see `memory`).
        file_bytes: Size of the ONNX file.
        users: The calls that use it.
        explainers: Its explaining graphs, loaded as they are asked for; the memory that they take is not in
            `memory_bytes`.
        plan, placement, cpu_nodes, close_engine: As the engine's, see `engines.Engine`.
    """

    files: VersionFiles
    scheduler: Scheduler
    provider: str
    output_bytes: Mapping[str, int]
    load_s: float
    memory_bytes: int = 0
    file_bytes: int = 0
    users: Users = field(default_factory=Users)
    explainers: Explainers = field(default_factory=Explainers)
    plan: str = ""
    placement: str = ""
    cpu_nodes: int | None = None
    close_engine: Callable[[], None] = lambda: None

    @property
    def key(self) -> ModelKey:
        """Name and version."""
        return self.files.key

    def retire(self) -> None:
        """Wait until the last call that uses it is answered, then stop its workers."""
        self.users.wait_until_gone()
        self.close()

    def close(self) -> None:
        """Stop its workers now; what is queued fails with `Unavailable`."""
        self.scheduler.close()
        self.explainers.close()
        self.close_engine()


@dataclass(frozen=True)
class Shelf:
    """One model: its versions that are served, and how every known version stands. Never changed, only replaced."""

    served: Mapping[str, Model]
    statuses: Mapping[str, Status]
    newest: Model | None = field(init=False)

    def __post_init__(self) -> None:
        newest = self.served[max(self.served, key=int)] if self.served else None
        object.__setattr__(self, "newest", newest)


class Models:
    """The shelves by name. Any thread reads them, without a lock: a change replaces the whole at once.

    One thread at a time may `put` and `remove`.
    """

    def __init__(self) -> None:
        self._shelves: dict[str, Shelf] = {}

    def put(self, name: str, shelf: Shelf) -> None:
        """Replace what is known of a model."""
        self._shelves = {**self._shelves, name: shelf}

    def remove(self, name: str) -> None:
        """Know no such model any more."""
        self._shelves = {known: shelf for known, shelf in self._shelves.items() if known != name}

    def borrow(self, name: str, version: str, call: Call) -> Model:
        """`find`, and hold the model until the call has its answer, so that it is not closed before.

        Whatever the answer will be, it counts as this model's from here on (`call.model`).
        """
        while True:  # ends: who closes a model has taken it off its shelf before
            model = self.find(name, version)
            if model.users.enter(call):
                call.model = model.key
                call.at_end(partial(model.users.leave, call))
                return model

    def find(self, name: str, version: str = "") -> Model:
        """The version asked for, or the newest that is served.

        Raises `NotFound` for what is not known or was unloaded, `Unavailable` for what is known and cannot answer.
        """
        shelf = self._shelves.get(name)
        if shelf is None:
            raise NotFound(f"unknown model {name!r}")
        found = shelf.served.get(version) if version else shelf.newest
        if found is not None:
            return found
        raise _why_not(name, version, shelf)

    def versions(self, name: str) -> list[str]:
        """Versions of a model that are served, oldest first."""
        shelf = self._shelves.get(name)
        return list(shelf.served) if shelf else []

    def names(self) -> list[str]:
        """Models of which a version is served."""
        return [name for name, shelf in self._shelves.items() if shelf.served]

    def statuses(self) -> list[tuple[ModelKey, Status]]:
        """How every known version of every known model stands; the version "" is the model's own trouble."""
        shelves = self._shelves
        return [(ModelKey(name, version), status)
                for name, shelf in shelves.items() for version, status in shelf.statuses.items()]  # fmt: skip

    def __iter__(self) -> Iterator[Model]:
        return (model for shelf in self._shelves.values() for model in shelf.served.values())


def _why_not(name: str, version: str, shelf: Shelf) -> NotFound | Unavailable:
    if not shelf.served:
        if any(status.failed for status in shelf.statuses.values()):
            return Unavailable(f"model {name!r} could not be loaded")
        if not version:
            return NotFound(f"model {name!r} has no version that is loaded")
    if version in shelf.statuses:
        return Unavailable(f"model {name!r} version {version!r} is not ready: {shelf.statuses[version].state}")
    return NotFound(f"model {name!r} has no version {version!r}; it has {', '.join(shelf.served) or 'none'}")
