"""Triton's ModelStatistics, counted from the facts that the core emits."""

from __future__ import annotations

import threading
import time
from collections import Counter, defaultdict

from attnserve.contract import Call, ModelKey
from attnserve.inference import grpc_service_pb2 as pb
from attnserve.listeners import QuietListener

FAILURE_REASONS = ("REJECTED", "CANCELED", "BACKEND", "OTHER")
"""Triton's: refused or dropped before it ran, given up by the caller, the engine's fault, anything else."""

_REASON_OF_CODE = {
    "RESOURCE_EXHAUSTED": "REJECTED",
    "DEADLINE_EXCEEDED": "REJECTED",
    "UNAVAILABLE": "REJECTED",
    "CANCELLED": "CANCELED",
    "INTERNAL": "BACKEND",
}


class Statistics(QuietListener):
    """A listener that keeps one ModelStatistics message per model version. Any thread may call it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._totals: dict[ModelKey, pb.ModelStatistics] = {}
        self._batches: dict[ModelKey, dict[int, pb.StatisticDuration]] = defaultdict(
            lambda: defaultdict(pb.StatisticDuration)
        )
        self._failures: dict[ModelKey, Counter[str]] = defaultdict(Counter)

    def message(self, model: ModelKey) -> pb.ModelStatistics:
        """A copy of the model version's counts, batch sizes in ascending order."""
        with self._lock:
            answer = pb.ModelStatistics()
            answer.CopyFrom(self._total(model))
            for size, infer in sorted(self._batches[model].items()):
                answer.batch_stats.add(batch_size=size).compute_infer.CopyFrom(infer)
            return answer

    def failures(self, model: ModelKey) -> dict[str, int]:
        """Failed requests by each of the `FAILURE_REASONS`; they add up to the message's `fail.count`."""
        with self._lock:
            counted = self._failures[model]
            return {reason: counted[reason] for reason in FAILURE_REASONS}

    def forget(self, model: ModelKey) -> None:
        """Begin the model version's counts anew."""
        with self._lock:
            for counts in (self._totals, self._batches, self._failures):
                counts.pop(model, None)

    def batch_finished(self, model: ModelKey, rows: int, infer_s: float) -> None:
        """Count a batch."""
        with self._lock:
            total = self._total(model)
            total.execution_count += 1
            _add(self._batches[model][rows], infer_s)

    def call_finished(self, call: Call) -> None:
        """Count a request that reached a model."""
        if call.model is None:
            return
        with self._lock:
            total = self._total(call.model)
            stats = total.inference_stats
            if call.code != "OK":
                _add(stats.fail, call.total_s)
                self._failures[call.model][_REASON_OF_CODE.get(call.code or "", "OTHER")] += 1
                return
            total.last_inference = time.time_ns() // 1_000_000
            total.inference_count += call.images
            _add(stats.success, call.total_s)
            _add(stats.queue, call.timings.queue_s)
            _add(stats.compute_input, call.timings.decode_s)
            _add(stats.compute_infer, call.timings.infer_s + call.timings.explain_s)
            _add(stats.compute_output, call.timings.postprocess_s)

    def _total(self, model: ModelKey) -> pb.ModelStatistics:
        if model not in self._totals:
            self._totals[model] = pb.ModelStatistics(name=model.name, version=model.version)
        return self._totals[model]


def _add(duration: pb.StatisticDuration, seconds: float) -> None:
    duration.count += 1
    duration.ns += int(seconds * 1e9)
