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


class _Total:
    """What one model version was asked for so far, in whole numbers: a message's fields are slow to change."""

    def __init__(self) -> None:
        self.images = self.batches = self.last_inference_ms = 0
        self.successes = 0
        self.success_ns = self.queue_ns = self.input_ns = self.infer_ns = self.output_ns = 0
        self.failures: Counter[str] = Counter()
        self.failure_ns = 0
        self.batch_counts: Counter[int] = Counter()
        self.batch_ns: Counter[int] = Counter()


class Statistics(QuietListener):
    """A listener that keeps the counts of ModelStatistics per model version. Any thread may call it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._totals: defaultdict[ModelKey, _Total] = defaultdict(_Total)

    def message(self, model: ModelKey) -> pb.ModelStatistics:
        """The model version's counts, batch sizes in ascending order."""
        with self._lock:
            total = self._totals[model]
            answer = pb.ModelStatistics(
                name=model.name,
                version=model.version,
                last_inference=total.last_inference_ms,
                inference_count=total.images,
                execution_count=total.batches,
            )
            stats, succeeded = answer.inference_stats, total.successes
            _fill(stats.success, succeeded, total.success_ns)
            _fill(stats.fail, total.failures.total(), total.failure_ns)
            _fill(stats.queue, succeeded, total.queue_ns)
            _fill(stats.compute_input, succeeded, total.input_ns)
            _fill(stats.compute_infer, succeeded, total.infer_ns)
            _fill(stats.compute_output, succeeded, total.output_ns)
            for size, count in sorted(total.batch_counts.items()):
                _fill(answer.batch_stats.add(batch_size=size).compute_infer, count, total.batch_ns[size])
            return answer

    def failures(self, model: ModelKey) -> dict[str, int]:
        """Failed requests by each of the `FAILURE_REASONS`; they add up to the message's `fail.count`."""
        with self._lock:
            counted = self._totals[model].failures
            return {reason: counted[reason] for reason in FAILURE_REASONS}

    def forget(self, model: ModelKey) -> None:
        """Begin the model version's counts anew."""
        with self._lock:
            self._totals.pop(model, None)

    def batch_finished(self, model: ModelKey, rows: int, infer_s: float) -> None:
        """Count a batch."""
        with self._lock:
            total = self._totals[model]
            total.batches += 1
            total.batch_counts[rows] += 1
            total.batch_ns[rows] += int(infer_s * 1e9)

    def call_finished(self, call: Call) -> None:
        """Count a request that reached a model."""
        if call.model is None:
            return
        timings = call.timings
        with self._lock:
            total = self._totals[call.model]
            if call.code != "OK":
                total.failures[_REASON_OF_CODE.get(call.code or "", "OTHER")] += 1
                total.failure_ns += int(call.total_s * 1e9)
                return
            total.last_inference_ms = time.time_ns() // 1_000_000
            total.images += call.images
            total.successes += 1
            total.success_ns += int(call.total_s * 1e9)
            total.queue_ns += int(timings.queue_s * 1e9)
            total.input_ns += int(timings.decode_s * 1e9)
            total.infer_ns += int((timings.infer_s + timings.explain_s) * 1e9)
            total.output_ns += int(timings.postprocess_s * 1e9)


def _fill(duration: pb.StatisticDuration, count: int, ns: int) -> None:
    if count:  # else the field stays unset
        duration.count, duration.ns = count, ns
