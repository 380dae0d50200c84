"""The ceiling: raw ONNX Runtime on the same file, one session of one thread per core. Knows no server."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from attnserve.cores import available_cores

CPU = "CPUExecutionProvider"
BATCHES = (1, 2, 4, 8, 16, 32, 64)
LONGEST_RUN_S = 2.0
"""A batch that takes longer is not the best one of any CPU: what batching saves is saved long before."""


class Ceiling:
    """`session.run` of the probabilities, and nothing else.

    Args:
        model: The file.
        views: (N, H, W, 3) uint8, of which batches are made.
        threads: That run at once, each with a session of its own.
        providers: ONNX Runtime's execution providers, with options where they have some.
    """

    def __init__(
        self,
        model: Path,
        views: NDArray[np.uint8],
        threads: int | None = None,
        providers: Sequence[str | tuple[str, dict[str, Any]]] = (CPU,),
    ) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._sessions = [
            ort.InferenceSession(model, options, providers=list(providers)) for _ in range(threads or available_cores())
        ]
        self._views = views
        self.batch = self._best_batch()

    def cpu_s_per_image(self, seconds: float) -> float:
        """CPU time of one thread alone, at the best batch."""
        began, images = time.thread_time(), self._run(0, self.batch, seconds)[0]
        return (time.thread_time() - began) / images

    def p50_ms(self, seconds: float) -> float:
        """Median latency of a batch of 1, one thread alone."""
        return median(self._run(0, 1, seconds)[1])

    def together(self, seconds: float) -> tuple[float, float]:
        """(images per second, CPU seconds per image) of all threads at once, at the best batch."""
        cpu, began = time.process_time(), time.perf_counter()
        with ThreadPoolExecutor(len(self._sessions)) as pool:
            done = pool.map(lambda number: self._run(number, self.batch, seconds)[0], range(len(self._sessions)))
            images = sum(done)
        return images / (time.perf_counter() - began), (time.process_time() - cpu) / images

    def _run(self, number: int, batch: int, seconds: float) -> tuple[int, list[float]]:
        """Images done by one session, and the latency of each run in ms; at least one run."""
        run = self._runner(number, batch)
        latencies: list[float] = []
        end = time.perf_counter() + seconds
        while (began := time.perf_counter()) < end or not latencies:
            run()
            latencies.append(1e3 * (time.perf_counter() - began))
        return batch * len(latencies), latencies

    def _runner(self, number: int, batch: int) -> Callable[[], object]:
        images = np.resize(self._views, (batch, *self._views.shape[1:]))
        session = self._sessions[number]
        return lambda: session.run(["probabilities"], {"images": images})

    def _best_batch(self) -> int:
        """The one with the least CPU time per image, the best of three looks at each."""
        costs: dict[int, float] = {}
        for batch in BATCHES:
            _, (warm_up_ms,) = self._run(0, batch, 0)
            if warm_up_ms > 1e3 * LONGEST_RUN_S:
                break
            looks = []
            for _ in range(3):
                began, (images, _) = time.thread_time(), self._run(0, batch, 0.1)
                looks.append((time.thread_time() - began) / images)
            costs[batch] = min(looks)
        return min(costs, key=lambda batch: costs[batch]) if costs else 1
