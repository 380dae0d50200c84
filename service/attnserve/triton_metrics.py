"""Triton's metrics under Triton's names, for the dashboards that exist; read from `Statistics` at each scrape.

Triton's counters lack the suffix `_total`. prometheus_client cannot write such counters, so they are collected as
`unknown`. In the plain text format `with_counter_types` makes them counters; in OpenMetrics, where a counter's sample
must end in `_total`, they stay `unknown`, for the names are what dashboards go by.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, Metric, UnknownMetricFamily
from prometheus_client.registry import Collector

from attnserve.contract import ModelKey
from attnserve.inference import grpc_service_pb2 as pb
from attnserve.models import Model
from attnserve.statistics import Statistics

_MODEL = ("model", "version")


class TritonCounter(NamedTuple):
    """One of the counters that are a field of ModelStatistics."""

    name: str
    documentation: str
    read: Callable[[pb.ModelStatistics], float]


COUNTERS = (
    TritonCounter(
        "nv_inference_request_success", "Requests answered with a result.", lambda m: m.inference_stats.success.count
    ),
    TritonCounter("nv_inference_count", "Images classified.", lambda m: m.inference_count),
    TritonCounter("nv_inference_exec_count", "Batches run.", lambda m: m.execution_count),
    TritonCounter(
        "nv_inference_request_duration_us",
        "Microseconds from arrival to answer, summed over the requests that succeeded.",
        lambda m: m.inference_stats.success.ns / 1e3,
    ),
    TritonCounter(
        "nv_inference_queue_duration_us",
        "Microseconds in the queue, summed over the same requests.",
        lambda m: m.inference_stats.queue.ns / 1e3,
    ),
    TritonCounter(
        "nv_inference_compute_input_duration_us",
        "Microseconds of decoding, summed over the same requests.",
        lambda m: m.inference_stats.compute_input.ns / 1e3,
    ),
    TritonCounter(
        "nv_inference_compute_infer_duration_us",
        "Microseconds of inference, summed over the same requests, not over the batches they share.",
        lambda m: m.inference_stats.compute_infer.ns / 1e3,
    ),
    TritonCounter(
        "nv_inference_compute_output_duration_us",
        "Microseconds of making answers, summed over the same requests.",
        lambda m: m.inference_stats.compute_output.ns / 1e3,
    ),
)
FAILURES = ("nv_inference_request_failure", "Requests to a model answered with an error.", (*_MODEL, "reason"))
PENDING = ("nv_inference_pending_request_count", "Requests of which an image waits for a worker.", _MODEL)
DESCRIBED = [*((each.name, "counter", each.documentation, _MODEL) for each in COUNTERS),
             (FAILURES[0], "counter", *FAILURES[1:]), (PENDING[0], "gauge", *PENDING[1:])]  # fmt: skip
"""Name, type, documentation and labels of each."""


class TritonMetrics(Collector):
    """Collects them for every model version served. Any thread may call it."""

    def __init__(self, statistics: Statistics, registry: CollectorRegistry) -> None:
        self._statistics = statistics
        self._models: dict[ModelKey, Model] = {}
        registry.register(self)

    def model_loaded(self, model: Model) -> None:
        """Collect for it from now on, from zero or from where it stood when it was served last."""
        self._models = {**self._models, model.key: model}

    def model_gone(self, model: Model) -> None:
        """Collect for it no longer."""
        self._models = {key: served for key, served in self._models.items() if served is not model}

    def describe(self) -> Iterable[Metric]:
        """Names and types, so that the registry refuses others of those names."""
        kinds = {"counter": UnknownMetricFamily, "gauge": GaugeMetricFamily}
        return [kinds[kind](name, text, labels=labels) for name, kind, text, labels in DESCRIBED]

    def collect(self) -> Iterable[Metric]:
        """For the registry."""
        models = self._models
        messages = {key: self._statistics.message(key) for key in models}
        for name, text, read in COUNTERS:
            family = UnknownMetricFamily(name, text, labels=_MODEL)
            for key, message in messages.items():
                family.add_metric(key, read(message))
            yield family
        failures = UnknownMetricFamily(FAILURES[0], FAILURES[1], labels=FAILURES[2])
        pending = GaugeMetricFamily(PENDING[0], PENDING[1], labels=PENDING[2])
        for key, model in models.items():
            for reason, count in self._statistics.failures(key).items():
                failures.add_metric((*key, reason), count)
            pending.add_metric(key, model.scheduler.queued_requests)
        yield from (failures, pending)


def with_counter_types(page: bytes) -> bytes:
    """A page of the plain text format, the counters marked as what they are."""
    for name in (*(each.name for each in COUNTERS), FAILURES[0]):
        page = page.replace(f"\n# TYPE {name} untyped\n".encode(), f"\n# TYPE {name} counter\n".encode())
    return page
