"""Prometheus metrics: a listener that turns the core's facts into counters and histograms, in a registry of its own."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial
from importlib.metadata import version

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
)

from attnserve.contract import Call, ModelKey
from attnserve.models import Model

SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Bucket bounds: a small net answers in half a millisecond, a ResNet-50 on a loaded CPU in seconds."""

SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_MODEL = ("model", "version")


class Metrics:
    """All metrics of one server. Any thread may call it."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self.registry)
        counter = partial(Counter, registry=self.registry)
        gauge = partial(Gauge, registry=self.registry)
        histogram = partial(Histogram, buckets=SECONDS, registry=self.registry)
        self.requests = counter(
            "attnserve_requests_total", "Requests answered, by gRPC status code.", ("method", *_MODEL, "code")
        )
        self.request_duration = histogram(
            "attnserve_request_duration_seconds",
            "From the request's arrival to its answer, successful requests to a model only.",
            ("method", *_MODEL),
        )
        self.stage_duration = histogram(
            "attnserve_stage_duration_seconds",
            "Time of one request in a stage: decode, queue, infer, postprocess.",
            (*_MODEL, "stage"),
        )
        self.batch_size = histogram(
            "attnserve_batch_size", "Images in a batch that a worker ran.", _MODEL, buckets=SIZES
        )
        self.batch_duration = histogram("attnserve_batch_duration_seconds", "Time of one run of the engine.", _MODEL)
        self.images = counter("attnserve_images_total", "Images classified.", _MODEL)
        self.drops = counter(
            "attnserve_dropped_images_total",
            "Images refused or dropped without being run: expired, cancelled, overloaded, shutdown.",
            (*_MODEL, "reason"),
        )
        self.pending = gauge("attnserve_pending_images", "Images accepted and not yet answered.")
        self.queued = gauge("attnserve_queued_images", "Images that wait for a worker.", _MODEL)
        self.model_info = gauge(
            "attnserve_model_info",
            "1 for each model version served.",
            (*_MODEL, "execution_provider", "precision", "card_digest"),
        )
        self.load_duration = gauge("attnserve_model_load_seconds", "Time to load and warm a model version.", _MODEL)
        self.model_memory = gauge(
            "attnserve_model_memory_bytes",
            "Host memory that a loaded model version took, one kept for a roll-back too.",
            _MODEL,
        )
        self.load_failures = counter(
            "attnserve_model_load_failures_total", "Model versions that could not be loaded.", _MODEL
        )
        self.ready = gauge("attnserve_ready", "1 while the server takes requests.")
        build = gauge("attnserve_build_info", "1; the version is a label.", ("version",))
        build.labels(version("attnserve")).set(1)

    def watch_pending(self, read: Callable[[], int]) -> None:
        """Report pending images by calling `read` at each scrape."""
        self.pending.set_function(read)

    def model_loaded(self, model: Model) -> None:
        """Report a model version from now on."""
        card = model.files.card
        self.model_info.labels(*model.key, model.provider, card.precision, card.digest).set(1)
        self.load_duration.labels(*model.key).set(model.load_s)
        self.model_memory.labels(*model.key).set(model.memory_bytes)
        self.queued.labels(*model.key).set_function(lambda: model.scheduler.queued_images)

    def model_gone(self, model: Model, *, kept: bool) -> None:
        """Report a model version no longer; where it is kept, still what it takes."""
        with contextlib.suppress(KeyError):  # it was kept, and no longer served, before
            self.model_info.remove(*model.key, model.provider, model.files.card.precision, model.files.card.digest)
            self.queued.remove(*model.key)
        if not kept:
            self.load_duration.remove(*model.key)
            self.model_memory.remove(*model.key)

    def load_failed(self, model: ModelKey) -> None:
        """Count a version that could not be loaded."""
        self.load_failures.labels(*model).inc()

    def batch_finished(self, model: ModelKey, rows: int, infer_s: float) -> None:
        """Count a batch."""
        self.batch_size.labels(*model).observe(rows)
        self.batch_duration.labels(*model).observe(infer_s)

    def dropped(self, model: ModelKey, reason: str, rows: int) -> None:
        """Count images that were not run."""
        self.drops.labels(*model, reason).inc(rows)

    def call_finished(self, call: Call) -> None:
        """Count an answer; durations only of requests that a model answered."""
        model = call.model or ModelKey("", "")
        self.requests.labels(call.method, *model, call.code).inc()
        if call.model is None or call.code != "OK":
            return
        self.images.labels(*model).inc(call.images)
        self.request_duration.labels(call.method, *model).observe(call.total_s)
        timings = call.timings
        stages = (("decode", timings.decode_s), ("queue", timings.queue_s), ("infer", timings.infer_s),
                  ("postprocess", timings.postprocess_s))  # fmt: skip
        for stage, seconds in stages:
            self.stage_duration.labels(*model, stage).observe(seconds)
