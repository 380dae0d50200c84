"""A clock that stands still, puppet engines, inboxes opened by hand, and ears for what the core says."""

from __future__ import annotations

import math
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import text_format
from numpy.typing import NDArray

from attnserve.batch_queue import BatchQueue, Policy
from attnserve.card import Card, Preprocessing, sha256_of
from attnserve.contract import Backend, Call, Entry, ModelKey, Outputs
from attnserve.errors import AttnserveError
from attnserve.inference import model_config_pb2 as pb
from attnserve.models import Model
from attnserve.repository import VersionFiles
from attnserve.scheduler import Scheduler

PATIENCE_S = 10.0  # for what happens at once on an idle machine; a test that needs it all has failed

SMALLEST_MODEL = b"\x08\x0a\x3a\x03\x12\x01g\x42\x02\x10\x14"
"""An ONNX ModelProto: IR version 10, an empty graph called g, operator set 20."""


class Clock:
    """Seconds that pass only when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


class Ears:
    """A listener that remembers."""

    def __init__(self) -> None:
        self.started: list[tuple[ModelKey, int, int]] = []
        self.batches: list[tuple[ModelKey, int, float]] = []
        self.drops: list[tuple[ModelKey, str, int]] = []
        self.calls: list[Call] = []

    def batch_started(self, model: ModelKey, rows: int, waiting: int) -> None:
        self.started.append((model, rows, waiting))

    def batch_finished(self, model: ModelKey, rows: int, infer_s: float) -> None:
        self.batches.append((model, rows, infer_s))

    def dropped(self, model: ModelKey, reason: str, rows: int) -> None:
        self.drops.append((model, reason, rows))

    def call_finished(self, call: Call) -> None:
        self.calls.append(call)

    def dropped_rows(self, reason: str) -> int:
        return sum(rows for _, heard, rows in self.drops if heard == reason)


class Mailbox:
    """An inbox whose jobs run when the test opens it, on the test's thread."""

    def __init__(self) -> None:
        self.posts: list[int] = []
        self.idle: list[bool] = []  # of each post, whether who posted had nothing else to do
        self._unread: queue.Queue[list[Callable[[], None]]] = queue.Queue()

    def post(self, jobs: Sequence[Callable[[], None]], *, idle: bool = False) -> None:
        self.posts.append(len(jobs))
        self.idle.append(idle)
        self._unread.put(list(jobs))

    def open(self) -> None:
        """Wait for one post and run its jobs."""
        for job in self._unread.get(timeout=PATIENCE_S):
            job()

    def open_until(self, done: Callable[[], object]) -> None:
        while not done():
            self.open()

    def is_empty(self) -> bool:
        return self._unread.empty()


def outcome_of(images: NDArray[np.uint8], outputs: Sequence[str]) -> Outputs:
    """What every puppet computes: row (v, length of the output's name) for an image whose first pixel is v."""
    pixels = images[:, 0, 0, 0].astype(np.float32)
    return {name: np.stack([pixels, np.full_like(pixels, len(name))], axis=1) for name in outputs}


class Run:
    """One batch in a puppet's hands."""

    def __init__(self, images: NDArray[np.uint8], outputs: Sequence[str]) -> None:
        self.images = images
        self.outputs = list(outputs)
        self._result: Outputs | Exception | None = None
        self._told = threading.Event()

    @property
    def values(self) -> list[int]:
        """The images, named by their first pixel."""
        return [int(value) for value in self.images[:, 0, 0, 0]]

    def finish(self, outputs: Outputs | None = None) -> None:
        """Compute it, or have it give these outputs; no effect on one that has ended."""
        self._end(outcome_of(self.images, self.outputs) if outputs is None else outputs)

    def fail(self, error: Exception) -> None:
        self._end(error)

    def _end(self, result: Outputs | Exception) -> None:
        if not self._told.is_set():
            self._result = result
            self._told.set()

    def wait(self) -> Outputs:
        if not self._told.wait(PATIENCE_S):
            raise AssertionError("the test left this batch hanging")
        if isinstance(self._result, Exception):
            raise self._result
        assert self._result is not None
        return self._result


class Puppet:
    """A backend that computes nothing until the test says what comes of each batch."""

    outputs = ("probabilities", "logits")

    def __init__(self) -> None:
        self._started: queue.Queue[Run] = queue.Queue()
        self._runs: list[Run] = []
        self._released = False
        self._lock = threading.Lock()

    def run(self, images: NDArray[np.uint8], outputs: Sequence[str]) -> Outputs:
        run = Run(images, outputs)
        with self._lock:
            self._runs.append(run)
            if self._released:
                run.finish()
            else:
                self._started.put(run)
        return run.wait()

    def next(self, timeout_s: float = PATIENCE_S) -> Run:
        """The batch that it was given next; `queue.Empty` where none comes."""
        return self._started.get(timeout=timeout_s)

    def is_idle(self) -> bool:
        return self._started.empty()

    def release(self) -> None:
        """Compute everything at once from here on, what it has in hand included."""
        with self._lock:
            self._released = True
            for run in self._runs:
                run.finish()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ears() -> Ears:
    return Ears()


@pytest.fixture
def mailbox() -> Mailbox:
    return Mailbox()


@pytest.fixture
def new_mailbox() -> type[Mailbox]:
    return Mailbox


@pytest.fixture
def puppet() -> Puppet:
    return Puppet()


@pytest.fixture
def new_puppet() -> type[Puppet]:
    return Puppet


@pytest.fixture
def compute() -> Callable[[NDArray[np.uint8], Sequence[str]], Outputs]:
    """The function of every puppet, for engines of a test's own."""
    return outcome_of


@pytest.fixture
def answered() -> list[Entry]:
    """The entries in the order of their answers, once for each answer."""
    return []


@pytest.fixture
def new_entry(mailbox: Mailbox, answered: list[Entry]) -> Callable[..., Entry]:
    """Makes an entry of one-pixel images, one for each value: `new_entry(7, 8)` has two rows."""

    def make(*values: int, **fields: Any) -> Entry:
        pixels = np.array(values, np.uint8).reshape(-1, 1, 1, 1)
        standard: dict[str, Any] = {"outputs": ("probabilities",), "deadline": math.inf}
        standard |= {"inbox": mailbox, "on_finished": answered.append}
        return Entry(np.repeat(pixels, 3, axis=3), **{**standard, **fields})

    return make


@pytest.fixture
def start_scheduler(clock: Clock, ears: Ears) -> Iterator[Callable[..., Scheduler]]:
    """Starts schedulers on the fake clock and closes them after the test."""
    started: list[tuple[Scheduler, Sequence[Backend]]] = []

    def start(*backends: Backend, max_batch_size: int = 8, listener: Any = None) -> Scheduler:
        scheduler = Scheduler(
            ModelKey("net", "1"), backends, BatchQueue(Policy(max_batch_size, levels=3)), listener or ears, clock
        )
        started.append((scheduler, backends))
        return scheduler

    yield start
    for scheduler, backends in started:
        for backend in backends:
            if isinstance(backend, Puppet):
                backend.release()
        scheduler.close()


class Asked:
    """A call together with the answers that it got."""

    def __init__(self, make: Callable[[Callable[[Any, AttnserveError | None], None]], Call]) -> None:
        self.answers: list[tuple[Any, AttnserveError | None]] = []
        self.call = make(lambda message, error: self.answers.append((message, error)))

    @property
    def message(self) -> Any:
        """The one answer, a message."""
        ((message, error),) = self.answers
        assert error is None, error
        return message

    @property
    def error(self) -> AttnserveError:
        """The one answer, an error."""
        ((message, error),) = self.answers
        assert message is None
        assert error is not None
        return error


@pytest.fixture
def ask(mailbox: Mailbox, ears: Ears, clock: Clock) -> Callable[..., Asked]:
    """Makes a call, e.g. `ask(deadline=1001)`."""

    def make(**fields: Any) -> Asked:
        standard: dict[str, Any] = {"deadline": math.inf, "client": "ipv4:1.2.3.4:5", "inbox": mailbox}
        standard |= {"listener": ears, "clock": clock, "method": "Classify"}
        return Asked(lambda answer: Call(**{**standard, "answer": answer, **fields}))

    return make


@pytest.fixture
def new_model(start_scheduler: Callable[..., Scheduler]) -> Callable[..., Model]:
    """Makes a loaded model of 2 x 3 pixels and the labels cat and dog, over the backends given."""

    def make(*backends: Backend, batching: str = "", **card: Any) -> Model:
        described = Card("net", Preprocessing(2, 3), ("cat", "dog"), **card)
        config = text_format.Parse(f'name: "net" dynamic_batching {{ {batching} }}', pb.ModelConfig())
        files = VersionFiles(ModelKey("net", "1"), Path("net/1"), described, config)
        outputs = {"probabilities": 8, "logits": 8}
        return Model(files, start_scheduler(*backends), "PuppetExecutionProvider", outputs, 1.5)

    return make


CONFIG = """
name: "net"
backend: "onnxruntime"
max_batch_size: 8
input [ { name: "images" data_type: TYPE_UINT8 dims: [ 2, 3, 3 ] } ]
output [ { name: "probabilities" data_type: TYPE_FP32 dims: [ 2 ] label_filename: "labels.txt" } ]
"""


@pytest.fixture
def config_text() -> str:
    """A config.pbtxt without fault, for a model of 2 x 3 pixels and two classes."""
    return CONFIG


@pytest.fixture
def write_entry(tmp_path: Path) -> Callable[..., Path]:
    """Writes a repository entry `net` of tiny files and returns its folder; keywords replace fields of the card."""

    def write(version: str = "1", labels: str = "cat\ndog\n", config: str = CONFIG, **card: Any) -> Path:
        folder = tmp_path / "net"
        (folder / version).mkdir(parents=True)
        (folder / "config.pbtxt").write_text(config, encoding="utf-8")
        (folder / "labels.txt").write_text(labels, encoding="utf-8")
        model = folder / version / "model.onnx"
        model.write_bytes(SMALLEST_MODEL)
        fields = {
            "preprocessing": Preprocessing(2, 3),
            "labels": ("cat", "dog"),
            "files": {model.name: sha256_of(model)},
        }
        described = Card("net", **{**fields, **card})
        (folder / version / "model.json").write_text(described.to_json(), encoding="utf-8")
        return folder

    return write
