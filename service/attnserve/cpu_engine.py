"""Opens a model's sessions on the CPU as a placement says, and measures which placement is the best; blocks."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from attnserve import placement as placing
from attnserve.contract import Backend, Outputs
from attnserve.placement import Measured, Node, Placement

log = logging.getLogger(__name__)

BUDGET_S = 4.0
"""After that no further placement is tried: a model should be served soon. One try runs to its end."""
_ROUNDS = 4  # of each of two placements by turns, so that both meet what else runs on the machine; the first warms up
_ROUND_S = 0.1
_BATCH = 8  # enough for the gain of batches
_SHORT_S = 0.1  # a longer batch is measured by single pictures


Pin = Callable[[frozenset[int]], None]


def pinned_to(cpus: frozenset[int]) -> None:
    """Keep the calling thread, and what threads it starts, on the CPUs."""
    os.sched_setaffinity(0, cpus)  # 0 is the calling thread; there are memory nodes on Linux only


class Session(Protocol):
    """A model file, opened for one or several workers.

    Attributes:
        provider: What it runs on.
        height, width: Of its pictures.
        output_types: ONNX type by output.
        output_shapes: Likewise the shape, whose first axis is the batch.
    """

    provider: str
    height: int
    width: int
    output_types: dict[str, str]
    output_shapes: dict[str, tuple[int | str, ...]]

    def backend(self) -> Backend:
        """One for a worker; the same object twice where it allows concurrent runs."""

    def warm_up(self, batch_sizes: Sequence[int]) -> dict[int, float]:
        """Run at each batch size; returns the seconds that `probabilities` take at each."""


OpenSession = Callable[[int, int], Session]
"""Opens a session for that many workers, each run of theirs shared by so many threads."""


@dataclass(frozen=True)
class Crew:
    """A placement with its sessions open.

    Attributes:
        sessions: One for each memory node, or one for each worker where several threads share a run.
        backends: One per worker.
    """

    placement: Placement
    sessions: Sequence[Session]
    backends: Sequence[Backend]


def open_crew(
    open_session: OpenSession,
    placement: Placement,
    nodes: Sequence[Node],
    *,
    pools: bool = True,
    pin: Pin = pinned_to,
) -> Crew:
    """The placement's sessions, each opened by a thread on its node: memory lies where it is first written.

    Args:
        open_session: The engine.
        placement: What to open.
        nodes: Of memory.
        pools: Whether a session whose runs are shared by threads serves one worker only.
        pin: Keeps the calling thread on CPUs.
    """
    homes = placing.homes(placement, nodes)
    alone = pools and placement.threads > 1
    groups = [(home, 1) for home in homes] if alone else [(home, homes.count(home)) for home in dict.fromkeys(homes)]
    sessions, backends = [], []
    for home, workers in groups:
        with _staying(home, pin):
            session = open_session(workers, placement.threads)
        sessions.append(session)
        for _ in range(workers):
            backend = session.backend()
            backends.append(backend if home is None else PinnedBackend(backend, home, pin))
    return Crew(placement, sessions, backends)


def best_crew(
    open_session: OpenSession,
    profile: str,
    nodes: Sequence[Node],
    *,
    pools: bool = True,
    measure: Callable[[Crew], Measured],
    clock: Callable[[], float] = time.monotonic,
) -> Crew:
    """The placement that measures best for the profile; a later one must be better by more than noise.

    Two crews are open at a time. One worker per core comes first; for latency one per node comes next.
    """
    first, *others = placing.candidates(nodes)
    if profile == placing.LATENCY:
        others.reverse()
    started = clock()
    champion = open_crew(open_session, first, nodes, pools=pools)
    for tried, placement in enumerate(others):
        if clock() - started > BUDGET_S:
            log.info("placements not tried, as the time for it is over: %s", ", ".join(map(str, others[tried:])))
            break
        challenger = open_crew(open_session, placement, nodes, pools=pools)
        theirs, ours = measure(challenger), measure(champion)
        for _ in range(_ROUNDS - 1):
            theirs, ours = theirs.or_better(measure(challenger)), ours.or_better(measure(champion))
        log.info("placement %s: %.4g images/s, one in %.4g ms; %s: %.4g images/s, one in %.4g ms",
                 champion.placement, ours.images_per_s, 1e3 * ours.image_s,
                 placement, theirs.images_per_s, 1e3 * theirs.image_s)  # fmt: skip
        if placing.better(profile, theirs, ours):
            champion = challenger
        del challenger  # lest it be open while the next one is opened
    return champion


def measured(crew: Crew) -> Measured:
    """One round: what the crew does with all workers busy, and with one."""
    session = crew.sessions[0]
    picture = np.zeros((1, session.height, session.width, 3), np.uint8)

    def one() -> float:
        started = time.perf_counter()
        crew.backends[0].run(picture, ["probabilities"])
        return time.perf_counter() - started

    with ThreadPoolExecutor(len(crew.backends)) as pool:  # a worker may stay on a node, which the caller must not
        image_s = pool.submit(one).result()
        images = np.repeat(picture, _BATCH if _BATCH * image_s < _SHORT_S else 1, axis=0)
        return Measured(_rate(pool, crew.backends, images), image_s)


def _rate(pool: ThreadPoolExecutor, backends: Sequence[Backend], images: NDArray[np.uint8]) -> float:
    """Images per second of all backends at once: the sum of their own rates, so that no last run is waited for."""

    def work(backend: Backend) -> float:
        started, done, elapsed = time.perf_counter(), 0, 0.0
        while elapsed < _ROUND_S:
            backend.run(images, ["probabilities"])
            done += len(images)
            elapsed = time.perf_counter() - started
        return done / elapsed

    return sum(pool.map(work, backends))


def warm_up(crew: Crew, batch_sizes: Sequence[int]) -> dict[int, float]:
    """Warm every session up; returns the seconds that `probabilities` take the first one at each size.

    The others, alike, only allocate: each runs its largest batch, all at once.
    """
    first = crew.sessions[0]
    seconds = first.warm_up(batch_sizes)
    if len(crew.sessions) > 1:
        images = np.zeros((batch_sizes[-1], first.height, first.width, 3), np.uint8)
        with ThreadPoolExecutor(len(crew.backends)) as pool:
            list(pool.map(lambda backend: backend.run(images, backend.outputs), crew.backends))
    return seconds


class PinnedBackend:
    """A backend whose worker stays on a memory node's CPUs, from its first run on."""

    def __init__(self, backend: Backend, cpus: frozenset[int], pin: Pin) -> None:
        self._backend = backend
        self._cpus = cpus
        self._pin = pin
        self._here = threading.local()  # of each thread that runs it: a thread's number comes again after its end

    @property
    def outputs(self) -> Sequence[str]:
        """The backend's."""
        return self._backend.outputs

    def run(self, images: NDArray[Any], outputs: Sequence[str]) -> Outputs:
        """The backend's; the calling thread does not leave the node any more."""
        if not hasattr(self._here, "pinned"):
            self._pin(self._cpus)
            self._here.pinned = True
        return self._backend.run(images, outputs)


@contextmanager
def _staying(cpus: frozenset[int] | None, pin: Pin) -> Iterator[None]:
    """Keep the calling thread, and what threads it starts, on the CPUs meanwhile."""
    if cpus is None:
        yield
        return
    before = frozenset(os.sched_getaffinity(0))
    pin(cpus)
    try:
        yield
    finally:
        pin(before)
