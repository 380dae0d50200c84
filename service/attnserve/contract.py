"""The nouns that flow through serving, and the protocols by which the rooms meet.

Owns no thread, no socket and no clock of its own. A request's way: a transport makes a `Call`, a handler turns its
message into an `Entry`, workers run the entry's rows in `Batch`es of `Slice`s, and the call gets exactly one answer.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from attnserve.access import EVERYTHING, Grant
from attnserve.correlation import Trace
from attnserve.errors import AttnserveError

Outputs = dict[str, NDArray[Any]]
"""Graph output name -> array whose first axis is the batch."""


class ModelKey(NamedTuple):
    """Names one model version; both parts are label values in metrics."""

    name: str
    version: str


@dataclass(slots=True)
class Timings:
    """Seconds that one call spent in each stage; a stage that did not happen stays 0."""

    decode_s: float = 0.0
    queue_s: float = 0.0
    infer_s: float = 0.0
    explain_s: float = 0.0
    postprocess_s: float = 0.0

    def stages(self) -> tuple[tuple[str, float], ...]:
        """Every stage by its name, in the order of their happening."""
        return (
            ("decode", self.decode_s),
            ("queue", self.queue_s),
            ("infer", self.infer_s),
            ("explain", self.explain_s),
            ("postprocess", self.postprocess_s),
        )


class Inbox(Protocol):
    """The thread of a transport, as the core sees it."""

    def post(self, jobs: Sequence[Callable[[], None]], *, idle: bool = False) -> None:
        """Run the jobs on that thread, soon and in order, with at most one wake-up. From any thread; never blocks.

        A thread that is `idle` has nothing else to do: where it may stand in for the inbox's, it runs them itself.
        """


class Backend(Protocol):
    """One engine that computes a batch; used by one worker thread at a time."""

    @property
    def outputs(self) -> Sequence[str]:
        """Names of everything that it can return."""

    def run(self, images: NDArray[Any], outputs: Sequence[str]) -> Outputs:
        """Compute `outputs` for an entry's rows; each result's first axis is N. Blocks; may raise anything."""


class Waiting(Protocol):
    """Rows that belong together and wait for a worker, as the queues see them.

    Attributes:
        client: Who asks; clients get equal shares of a priority class.
        level: Priority class, 1 first.
        deadline: On the queue's clock, in seconds; rows that have not started by then are dropped.
        order, enqueued_at: Set by the queue; earlier ones have lower numbers.
        taken: Rows handed to workers so far.
        outstanding: Rows in workers' hands now.
        cancelled: Set by the caller's side from any thread; read when a batch is formed.
        error: Set where rows are dropped, and then for all of them.
    """

    client: str
    level: int
    deadline: float
    order: int
    enqueued_at: float
    taken: int
    outstanding: int
    cancelled: bool
    error: AttnserveError | None

    @property
    def rows(self) -> int:
        """All of them."""

    @property
    def waiting(self) -> int:
        """Those that no worker has taken yet."""


@dataclass(slots=True, eq=False)
class Entry:
    """One request's images in the queue of one model version, and what has become of them; see `Waiting`.

    Attributes:
        images: (N, H, W, 3) uint8, or for an explaining graph (N,) records of its inputs (see `explain`); not written
            to by anyone after `submit`.
        outputs: Names of the graph outputs wanted.
        on_finished: Called once, on the inbox's thread, when `result` or `error` is set.
        parts: Finished slices, `(first row, outputs)`, in any order.
    """

    images: NDArray[Any]
    outputs: tuple[str, ...]
    deadline: float
    inbox: Inbox
    on_finished: Callable[[Entry], None]
    client: str = ""
    level: int = 1
    order: int = 0
    enqueued_at: float = 0.0
    taken: int = 0
    outstanding: int = 0
    parts: list[tuple[int, Outputs]] = field(default_factory=list)
    cancelled: bool = False
    result: Outputs | None = None
    error: AttnserveError | None = None
    timings: Timings = field(default_factory=Timings)

    @property
    def rows(self) -> int:
        """Images in the entry."""
        return len(self.images)

    @property
    def waiting(self) -> int:
        """Images that no worker has taken yet."""
        return len(self.images) - self.taken


W = TypeVar("W", bound=Waiting)


class Slice(NamedTuple, Generic[W]):
    """Rows `start:stop` of an entry, as part of a batch."""

    entry: W
    start: int
    stop: int


class Batch(NamedTuple, Generic[W]):
    """What one worker runs at once."""

    slices: tuple[Slice[W], ...]
    rows: int


class Listener(Protocol):
    """Hears facts from the core and the transports, from any thread; must be quick and must not raise."""

    def batch_started(self, model: ModelKey, rows: int, waiting: int) -> None:
        """A worker took a batch of `rows` images and left `waiting` images in the queue."""

    def batch_finished(self, model: ModelKey, rows: int, infer_s: float) -> None:
        """A worker ran a batch of `rows` images in `infer_s` seconds."""

    def dropped(self, model: ModelKey, reason: str, rows: int) -> None:
        """Images left without being run; reason is the error's `drop_reason`."""

    def call_finished(self, call: Call) -> None:
        """A call got its one answer; `call.code` and `call.total_s` are set."""


class Call:
    """One RPC as the handlers see it: when it must be done, who asks, and where its one answer goes.

    Used on its transport's thread only, except `cancel`, which any thread may call.

    Attributes:
        deadline: Monotonic seconds; infinity where the caller set none.
        client: Who asks, for fairness and logs.
        grant: What the caller may do.
        request_id, trace: By what name the call is known, see `correlation`.
        level: Priority class, 1 first; 0 is the model's default.
        model, images, timings: Filled in on the way, for the listener.
        reply_bytes: Of the maps in the answer, at most; what a reader who is slow makes the server hold.
        reply_limit_bytes: Most of them that the form in which this call is to be answered can carry.
        confidences, entropies: Of the answer, see `drift`; None and empty where they would have to be computed first.
        code: Canonical status name once answered.
    """

    __slots__ = (
        "_answer",
        "_at_end",
        "_clock",
        "_lock",
        "_on_cancel",
        "cancelled",
        "client",
        "code",
        "confidences",
        "deadline",
        "entropies",
        "grant",
        "images",
        "inbox",
        "level",
        "listener",
        "method",
        "model",
        "reply_bytes",
        "reply_limit_bytes",
        "request_id",
        "started_at",
        "timings",
        "total_s",
        "trace",
    )

    def __init__(
        self,
        method: str,
        *,
        deadline: float,
        client: str,
        inbox: Inbox,
        listener: Listener,
        clock: Callable[[], float],
        answer: Callable[[Any, AttnserveError | None], None],
        request_id: str = "",
        trace: Trace | None = None,
        grant: Grant = EVERYTHING,
    ) -> None:
        self.method = method
        self.deadline = deadline
        self.client = client
        self.request_id = request_id
        self.trace = trace
        self.grant = grant
        self.inbox = inbox
        self.listener = listener
        self.model: ModelKey | None = None
        self.level = 0
        self.images = 0
        self.reply_bytes = 0
        self.reply_limit_bytes: float = math.inf
        self.timings = Timings()
        self.confidences: NDArray[np.float32] | None = None
        self.entropies: dict[str, NDArray[np.float32]] = {}
        self.code: str | None = None
        self.total_s = 0.0
        self.cancelled = False
        self.started_at = clock()
        self._clock = clock
        self._answer = answer
        self._at_end: list[Callable[[], None]] = []
        self._on_cancel: Callable[[], None] | None = None
        self._lock = threading.Lock()

    def reply(self, message: Any) -> None:
        """Answer with a message. A second answer is a bug and raises `RuntimeError`."""
        self._finish("OK")
        self._answer(message, None)

    def fail(self, error: AttnserveError) -> None:
        """Answer with an error, whose traceback is dropped. A second answer is a bug and raises `RuntimeError`."""
        error.__traceback__ = error.__context__ = None  # their frames hold the request's pictures, and often the error
        self._finish(error.status)
        self._answer(None, error)

    def cancel(self) -> None:
        """The caller went away. The work that has not started is dropped; the answer still comes and goes nowhere."""
        with self._lock:
            self.cancelled = True
            on_cancel, self._on_cancel = self._on_cancel, None
        if on_cancel is not None:
            on_cancel()

    def when_cancelled(self, callback: Callable[[], None]) -> None:
        """Call back once on cancellation; at once where it has already happened."""
        with self._lock:
            self._on_cancel = callback
            cancelled = self.cancelled
        if cancelled:
            callback()

    def at_end(self, callback: Callable[[], None]) -> None:
        """Call back once, just before the answer goes out, whatever it is; several callbacks in their order."""
        self._at_end.append(callback)

    def _finish(self, code: str) -> None:
        if self.code is not None:
            raise RuntimeError(f"{self.method} was answered twice: {self.code}, then {code}. This is a bug.")
        self.code = code
        self.total_s = self._clock() - self.started_at
        for callback in self._at_end:
            callback()
        self._at_end.clear()
        self._on_cancel = None  # it leads to the entry and from there back here, and its arrays should go now
        self.listener.call_finished(self)
