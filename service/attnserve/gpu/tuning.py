"""Finds the best plan by trying: one dimension after the other, within a budget of time. Knows no ONNX Runtime."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

from numpy.typing import NDArray

from attnserve.contract import Backend
from attnserve.gpu.bound_backend import GRAPHED
from attnserve.gpu.plan import CHOICES, Plan, first_plan, is_better, variants

log = logging.getLogger(__name__)


class Trial(Protocol):
    """A plan, opened, warm and measured."""

    @property
    def seconds(self) -> Mapping[int, float]:
        """Batch size -> seconds per batch with all its workers at work; the same sizes for every plan."""

    def close(self) -> None:
        """Free what it holds."""


T = TypeVar("T", bound=Trial)


def tune(
    attempt: Callable[[Plan], T],
    fixed: Mapping[str, str],
    barred: Collection[str],
    *,
    budget_s: float,
    clock: Callable[[], float],
) -> tuple[Plan, T]:
    """The best plan and its trial, the only one left open; blocks.

    A plan is tried only where the longest trial so far would still end within the budget; the first always is. One that
    cannot be opened is passed over with a warning.

    Args:
        fixed, barred: Words that every plan has, and that none may have.

    Raises:
        Exception: What the first attempt raised.
    """
    started = clock()
    best_plan = first_plan(fixed)
    best = attempt(best_plan)
    longest_s = clock() - started
    for dimension in CHOICES:
        for plan in list(variants(best_plan, dimension, fixed, barred)):
            began = clock()
            if began - started + longest_s > budget_s:
                log.info("plan %s: not tried, the time for tuning is over", plan)
                continue
            try:
                trial = attempt(plan)
            except Exception as error:  # onnxruntime has no one class for a provider that cannot
                log.warning("plan %s: cannot be used: %s", plan, error)
                continue
            longest_s = max(longest_s, clock() - began)
            if is_better(trial.seconds, best.seconds):
                best.close()
                best_plan, best = plan, trial
            else:
                trial.close()
    return best_plan, best


def seconds_per_batch(backends: Sequence[Backend], images: NDArray[Any], for_s: float) -> float:
    """Time of one batch of `probabilities` while all backends work at once, each on a thread; blocks for `for_s`."""
    end = time.perf_counter() + for_s

    def work(backend: Backend) -> int:
        runs = 0
        while not runs or time.perf_counter() < end:
            backend.run(images, GRAPHED)
            runs += 1
        return runs

    started = time.perf_counter()
    with ThreadPoolExecutor(len(backends)) as threads:
        runs = sum(threads.map(work, backends))
    return (time.perf_counter() - started) / runs
