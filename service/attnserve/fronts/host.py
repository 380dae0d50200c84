"""The engines of all fronts: each opened once, its batches formed of what all fronts hand over.

A `Scheduler` does that here too: what a front hands over is one entry of it. One thread hears all lanes; an answer is
written and sent by the worker that ran the batch.
"""

from __future__ import annotations

import hashlib
import logging
import math
import selectors
import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any

from attnserve import engines
from attnserve.batch_queue import BatchQueue, Policy
from attnserve.contract import Backend, Entry, Listener, ModelKey
from attnserve.errors import AttnserveError, ConfigError
from attnserve.fronts.lane import HostLane, take_lane
from attnserve.fronts.remote import LANES, Facts, OpenLayer, OpenModel, Refused
from attnserve.inference import model_config_pb2 as pb
from attnserve.latency_table import LatencyTable
from attnserve.listeners import QuietListener
from attnserve.scheduler import Scheduler
from attnserve.session import ExplainingBackend

log = logging.getLogger(__name__)

_LAYER_WORKERS = 2


class Host:
    """Opens what fronts ask for and runs it.

    Args:
        listener: Hears of the batches of models; explaining graphs are not counted, as in a server of one process.
        open_engine: Another one in tests.
    """

    def __init__(self, listener: Listener, open_engine: Callable[..., Any] = engines.open_engine) -> None:
        self._listener = listener
        self._open_engine = open_engine
        self._lock = threading.Lock()
        self._shared: dict[Hashable, _Shared] = {}
        self._ear = _Ear()

    def open(self, front: str, request: OpenModel | OpenLayer, owner: Connection) -> None:
        """Open what a front asks for, for as long as it holds `owner`; returns at once."""
        threading.Thread(target=self._serve, args=(front, request, owner), name=f"{front}-opens", daemon=True).start()

    def close(self) -> None:
        """Stop all workers, after their present batch."""
        with self._lock:
            shared = list(self._shared.values())
        for each in shared:
            with each.lock:
                each.close()
        self._ear.close()

    def _serve(self, front: str, request: OpenModel | OpenLayer, owner: Connection) -> None:
        lanes: list[HostLane] = []
        with owner, self._held(_key(request)) as shared:
            try:
                running = shared.opened(request)
            except Exception as error:  # a ConfigError, or whatever an engine has for a file that fails
                if not isinstance(error, ConfigError):
                    log.exception("%s could not be opened", request.path)
                with suppress(OSError):
                    owner.send(Refused(str(error)))
                return
            try:
                owner.send(running.facts)
                for _ in range(LANES):
                    lanes.append(take_lane(owner))
                    self._ear.listen(lanes[-1], partial(running.submit, front))
                owner.recv()  # nothing ever comes but its end
            except (EOFError, OSError):
                pass
            finally:
                for lane in lanes:
                    self._ear.forget(lane)

    @contextmanager
    def _held(self, key: Hashable) -> Iterator[_Shared]:
        """What several fronts ask for alike: they take turns to open it, and the last one to leave closes it."""
        with self._lock:
            shared = self._shared.setdefault(key, _Shared(self._opened))
            shared.holders += 1
        try:
            yield shared
        finally:
            with self._lock:
                shared.holders -= 1
                last = not shared.holders
                if last:
                    del self._shared[key]
            if last:
                shared.close()

    def _opened(self, request: OpenModel | OpenLayer) -> _Running:
        if isinstance(request, OpenLayer):
            return _layer(request)
        config = pb.ModelConfig.FromString(request.config)
        engine = self._open_engine(request.path, config, request.provider, request.workers, request.gpu, request.cpu)
        version = request.path.parent
        queue: BatchQueue[Entry] = BatchQueue(Policy(config.max_batch_size), engine.table, len(engine.backends))
        scheduler = Scheduler(ModelKey(version.parent.name, version.name), engine.backends, queue, self._listener)
        backend: Backend = engine.unbound or engine.backends[0]
        facts = Facts(
            backend.outputs,
            engine.provider,
            engine.table.sizes,
            engine.height,
            engine.width,
            engine.output_types,
            engine.output_shapes,
            engine.plan,
            engine.cpu_nodes,
            engine.placement,
        )
        return _Running(facts, scheduler, engine.close)


def _layer(request: OpenLayer) -> _Running:
    data = request.path.read_bytes()
    if hashlib.sha256(data).hexdigest() != request.digest:
        raise ConfigError(f"{request.path}: it has changed while it was opened")
    backend = ExplainingBackend(request.path, data, request.layer, request.provider)
    queue: BatchQueue[Entry] = BatchQueue(Policy(request.most), LatencyTable(), _LAYER_WORKERS)
    version = request.path.parent.parent
    key = ModelKey(version.parent.name, version.name)
    scheduler = Scheduler(key, [backend] * _LAYER_WORKERS, queue, QuietListener())
    return _Running(Facts(backend.outputs), scheduler, lambda: None)


def _key(request: OpenModel | OpenLayer) -> Hashable:
    """Equal for what may be shared: the same file with the same settings."""
    try:
        status = request.path.stat()
    except OSError:
        return object()  # to fail on its own
    file = (request.path, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
    if isinstance(request, OpenLayer):
        return (*file, request.digest, request.layer.layer, str(request.provider))
    return (*file, request.config, request.provider, request.workers, str(request.cpu))


@dataclass(frozen=True)
class _Running:
    """Something opened, with its workers."""

    facts: Facts
    scheduler: Scheduler
    close_engine: Callable[[], None]

    def submit(self, front: str, lane: HostLane) -> None:
        """Queue the rows that lie in a lane. Raises `EOFError` or `OSError` for a front that is gone."""
        rows, outputs = lane.take()
        entry = Entry(rows, outputs, math.inf, _HERE, partial(_answer, lane), client=front)
        try:
            self.scheduler.submit(entry)
        except AttnserveError as error:
            lane.give({}, str(error))

    def close(self) -> None:
        self.scheduler.close()
        self.close_engine()


class _Shared:
    """One of those that several fronts have: opened by the first, closed with the last."""

    def __init__(self, open_it: Callable[[OpenModel | OpenLayer], _Running]) -> None:
        self.holders = 0
        self.lock = threading.Lock()
        self._open = open_it
        self._running: _Running | None = None

    def opened(self, request: OpenModel | OpenLayer) -> _Running:
        with self.lock:
            if self._running is None:
                self._running = self._open(request)
            return self._running

    def close(self) -> None:
        running, self._running = self._running, None
        if running is not None:
            running.close()


class _Here:
    """The inbox of a thread that needs none: jobs are done where they are posted."""

    def post(self, jobs: Sequence[Callable[[], None]], *, idle: bool = False) -> None:  # noqa: ARG002
        """See `Inbox`."""
        for job in jobs:
            job()


_HERE = _Here()


def _answer(lane: HostLane, entry: Entry) -> None:
    if entry.result is None:
        lane.give({}, str(entry.error))
    else:
        lane.give(entry.result)


class _Ear:
    """One thread that hears all lanes, and alone closes them: no descriptor is closed while it is read."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._jobs: SimpleQueue[Callable[[], object]] = SimpleQueue()
        self._woken, self._waker = Pipe(duplex=False)
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._over = False
        self._thread = threading.Thread(target=self._work, name="lanes", daemon=True)
        self._thread.start()

    def listen(self, lane: HostLane, on_work: Callable[[HostLane], None]) -> None:
        """Call `on_work` whenever rows lie in the lane."""
        self._post(lambda: self._selector.register(lane.connection, selectors.EVENT_READ, (lane, on_work)))

    def forget(self, lane: HostLane) -> None:
        """Hear it no longer, and close it."""
        self._post(lambda: self._forget(lane))

    def close(self) -> None:
        """End the thread."""

        def end() -> None:
            self._over = True

        self._post(end)
        self._thread.join()
        self._selector.close()

    def _post(self, job: Callable[[], object]) -> None:
        self._jobs.put(job)
        self._waker.send_bytes(b".")

    def _work(self) -> None:
        while not self._over:
            for key, _ in self._selector.select():
                if key.data is None:
                    self._woken.recv_bytes()
                    self._jobs.get()()
                else:
                    self._hear(*key.data)

    def _hear(self, lane: HostLane, on_work: Callable[[HostLane], None]) -> None:
        if lane.closed:
            return
        try:
            on_work(lane)
        except (EOFError, OSError):
            self._forget(lane)
        except Exception:  # one front's bug must not make the others wait for ever
            log.exception("a batch could not be taken")
            lane.give({}, "internal error")

    def _forget(self, lane: HostLane) -> None:
        if not lane.closed:
            self._selector.unregister(lane.connection)
            lane.close()
