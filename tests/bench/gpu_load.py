"""Load for a server that answers thousands of pictures a second: several processes, each with several callers.

Every answer is checked: an error ends the run. A paced load sends by the clock, whether or not answers have come, and
counts each delay from when the request was due.
"""

from __future__ import annotations

import io
import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, field
from multiprocessing.synchronize import Barrier

import numpy as np
from PIL import Image

from attnserve.client import Client, Explain

_ready: Barrier | None = None


@dataclass(frozen=True)
class Load:
    """What the callers do.

    Attributes:
        images: Per request.
        form: `raw` pixels of the model's view, or a `jpeg` of 500 x 375.
        explain: Ask for Grad-CAM by the last layer too.
        callers: Of each process.
        rate: Requests per second of all callers together; 0 is as many as get answers.
    """

    model: str
    images: int
    form: str = "raw"
    explain: bool = False
    callers: int = 4
    rate: float = 0.0
    size: int = 224


@dataclass
class Outcome:
    """What came of it.

    Attributes:
        seconds: From the common start to the last answer.
        latencies: Of each request, in seconds.
    """

    images: int = 0
    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)

    @property
    def images_per_s(self) -> float:
        """Throughput."""
        return self.images / self.seconds

    def percentile_ms(self, percent: float) -> float:
        """Latency below which that share of requests lies."""
        return float(np.percentile(self.latencies, percent)) * 1e3


class Crowd:
    """The processes; they stay between loads.

    Args:
        target: HOST:PORT of the server.
    """

    def __init__(self, target: str, processes: int) -> None:
        self._target = target
        self._processes = processes
        context = multiprocessing.get_context("spawn")
        ready = context.Barrier(processes)
        self._pool = ProcessPoolExecutor(processes, mp_context=context, initializer=_begin, initargs=(ready,))

    def drive(self, load: Load, seconds: float) -> Outcome:
        """Run the load; blocks."""
        jobs = [
            self._pool.submit(_drive, self._target, load, index, self._processes, seconds)
            for index in range(self._processes)
        ]
        whole = Outcome()
        for job in jobs:
            part = job.result()
            whole.images += part.images
            whole.seconds = max(whole.seconds, part.seconds)
            whole.latencies += part.latencies
        return whole

    def close(self) -> None:
        """End the processes."""
        self._pool.shutdown()


def _begin(ready: Barrier) -> None:
    """In each process: what all wait at when they are ready, so that each takes one share and all start together."""
    global _ready
    _ready = ready


def _drive(target: str, load: Load, index: int, processes: int, seconds: float) -> Outcome:
    """One process's share."""
    pictures = [_picture(load.form, load.size, seed) for seed in range(load.images)]
    callers = load.callers * processes
    total = Outcome()
    with Client(target, timeout_s=120) as client, ThreadPoolExecutor(load.callers) as threads:

        def call() -> None:
            answers = client.classify(pictures, model=load.model, top_k=1, explain=Explain() if load.explain else None)
            assert len(answers) == load.images
            assert all(bool(answer.explanations) == load.explain for answer in answers)

        call()
        assert _ready is not None
        _ready.wait(120)
        start = time.perf_counter()
        end = start + seconds
        places = range(index * load.callers, (index + 1) * load.callers)
        due = [_due(load.rate, place, callers, start) for place in places]
        for latencies in threads.map(lambda next_due: _loop(call, next_due, end), due):
            total.latencies += latencies
        total.seconds = time.perf_counter() - start
    total.images = load.images * len(total.latencies)
    return total


def _due(rate: float, place: int, callers: int, start: float) -> Callable[[int], float] | None:
    """When the caller's request of that number is due, callers taking turns; None without a rate."""
    if not rate:
        return None
    return lambda number: start + (number * callers + place) / rate


def _loop(call: Callable[[], None], due: Callable[[int], float] | None, end: float) -> list[float]:
    """Latencies of the calls until then, at least one."""
    latencies: list[float] = []
    while True:
        began = time.perf_counter() if due is None else due(len(latencies))
        if began >= end and latencies:
            return latencies
        time.sleep(max(0.0, began - time.perf_counter()))
        call()
        latencies.append(time.perf_counter() - began)


def _picture(form: str, size: int, seed: int) -> bytes | np.ndarray:
    random = np.random.default_rng(seed)
    if form == "raw":
        return random.integers(0, 256, (size, size, 3), np.uint8)
    rough = random.integers(0, 256, (12, 16, 3), np.uint8)  # smooth when enlarged, as photos are
    file = io.BytesIO()
    Image.fromarray(rough).resize((500, 375), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    return file.getvalue()
