"""Prometheus metrics: a listener that turns the core's facts into counters and histograms, in a registry of its own.

No metric has a label for the client: clients are free strings, and every new one would be a new series for ever. How
they share a model shows in `attnserve_queued_clients` and in the queue stage's durations; who they are, in the log.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable
from functools import partial
from importlib.metadata import version

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    PlatformCollector,
    ProcessCollector,
)
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from attnserve.admission import Admission
from attnserve.contract import Call, ModelKey
from attnserve.distribution import Distribution, Tally
from attnserve.lifecycle import Status
from attnserve.models import Model
from attnserve.statistics import Statistics
from attnserve.triton_metrics import TritonMetrics

SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Bucket bounds: a small net answers in half a millisecond, a ResNet-50 on a loaded CPU in seconds."""

SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
DEPTHS = (0, *SIZES, 512, 1024, 2048, 4096)  # 4096 images is the default bound on what is accepted
CONFIDENCES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999, 1.0)
ENTROPIES = (0.5, 0.7, 0.8, 0.9, 0.95, 0.97, 0.98, 0.99, 0.995, 0.998, 0.999, 1.0)
"""Gates of trained nets are nearly even: the median of the committed models' sites is 0.968 to 0.9995."""

MOST_GONE = 16
"""Versions that are served no longer whose series are kept, so that the last scrapes see all that they did."""

_MODEL = ("model", "version")
_OUTCOMES = {"OK": "served", "RESOURCE_EXHAUSTED": "refused", "DEADLINE_EXCEEDED": "expired"}


class FailedVersions(Collector):
    """The versions that do not serve as they should, read at each scrape; unlike a counter it ends with the trouble."""

    name = "attnserve_model_version_failed"
    documentation = (
        "1 for each version that should be served and cannot, or is served from files that newer, bad ones replaced; "
        "version is empty where the trouble is the whole model's."
    )
    labelnames = _MODEL

    def __init__(self, registry: CollectorRegistry) -> None:
        self.read: Callable[[], Iterable[tuple[ModelKey, Status]]] = tuple
        registry.register(self)

    def describe(self) -> Iterable[GaugeMetricFamily]:
        """Its name and type, so that the registry refuses a second one of that name."""
        return [GaugeMetricFamily(self.name, self.documentation, labels=self.labelnames)]

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """For the registry."""
        family = GaugeMetricFamily(self.name, self.documentation, labels=self.labelnames)
        for key, status in self.read():
            if status.failed or status.stale:
                family.add_metric(key, 1)
        return [family]


class Metrics:
    """All metrics of one server. Any thread may call it.

    Args:
        statistics: What Triton's metrics are read from.
    """

    def __init__(self, statistics: Statistics) -> None:
        self.registry = CollectorRegistry()
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self.registry)
        self._of_requests()
        self._of_batches_and_queues()
        self._of_answers()
        self._of_models()
        self._statistics = statistics
        self._triton = TritonMetrics(statistics, self.registry)
        self._lock = threading.Lock()
        self._loaded: set[ModelKey] = set()
        self._gone: dict[ModelKey, None] = {}  # those that have series and are not loaded, the longest first

    def _of_requests(self) -> None:
        histogram = partial(Distribution, bounds=SECONDS, registry=self.registry)
        self.requests = Tally(
            "attnserve_requests_total",
            "Requests answered, by gRPC status code.",
            ("method", *_MODEL, "code"),
            registry=self.registry,
        )
        self.request_duration = histogram(
            "attnserve_request_duration_seconds",
            "From the request's arrival to its answer, successful requests to a model only.",
            ("method", *_MODEL),
        )
        self.stage_duration = histogram(
            "attnserve_stage_duration_seconds",
            "Time of one successful request in a stage that it went through: decode, queue, infer, explain, "
            "postprocess.",
            (*_MODEL, "stage"),
        )
        self.deadline_misses = Counter(
            "attnserve_deadline_misses_total",
            "Requests not answered by their deadline: late (answered after it) or expired (given up for it).",
            (*_MODEL, "outcome"),
            registry=self.registry,
        )
        self.inflight = Gauge(
            "attnserve_inflight_requests", "Requests begun and not yet answered.", registry=self.registry
        )

    def _of_batches_and_queues(self) -> None:
        gauge = partial(Gauge, registry=self.registry)
        histogram = partial(Distribution, registry=self.registry)
        self.batch_size = histogram(
            "attnserve_batch_size", "Images in a batch that a worker ran.", _MODEL, bounds=SIZES
        )
        self.batch_duration = histogram(
            "attnserve_batch_duration_seconds", "Time of one run of the engine.", _MODEL, bounds=SECONDS
        )
        self.queue_depth = histogram(
            "attnserve_queue_depth_images",
            "Images that still waited when a worker had taken a batch.",
            _MODEL,
            bounds=DEPTHS,
        )
        self.drops = Counter(
            "attnserve_dropped_images_total",
            "Images refused or dropped without being run: expired, cancelled, overloaded, rate_limited, shutdown.",
            (*_MODEL, "reason"),
            registry=self.registry,
        )
        self.pending = gauge("attnserve_pending_images", "Images accepted and not yet answered.")
        self.pending_limit = gauge("attnserve_pending_images_limit", "How many of them there may be.")
        self.pending_bytes = gauge("attnserve_pending_bytes", "Bytes of images accepted and not yet answered.")
        self.pending_bytes_limit = gauge("attnserve_pending_bytes_limit", "How many of them there may be.")
        self.queued = gauge("attnserve_queued_images", "Images that wait for a worker.", _MODEL)
        self.queued_clients = gauge(
            "attnserve_queued_clients",
            "Clients that have an image waiting; one that waits in two priority classes counts in both.",
            _MODEL,
        )

    def _of_answers(self) -> None:
        counter = partial(Tally, registry=self.registry)
        self.images = counter("attnserve_images_total", "Images classified.", _MODEL)
        self.level_images = counter(
            "attnserve_priority_images_total",
            "Images by the priority class of their request: served, refused (RESOURCE_EXHAUSTED) or expired.",
            (*_MODEL, "level", "outcome"),
        )
        self.confidence = Distribution(
            "attnserve_top1_confidence",
            "Probability of the first class, per image whose answer holds probabilities.",
            _MODEL,
            bounds=CONFIDENCES,
            registry=self.registry,
        )
        self.entropy = Distribution(
            "attnserve_attention_entropy",
            "Normalised entropy of a spatial map (0 one position, 1 even), by site asked for, 8 images of an answer.",
            (*_MODEL, "site"),
            bounds=ENTROPIES,
            registry=self.registry,
        )

    def _of_models(self) -> None:
        gauge = partial(Gauge, registry=self.registry)
        self.model_info = gauge(
            "attnserve_model_info",
            "1 for each model version served; plan is how it runs on a GPU.",
            (*_MODEL, "execution_provider", "placement", "precision", "plan", "card_digest"),
        )
        self.cpu_nodes = gauge(
            "attnserve_model_cpu_nodes", "Nodes of a graph on a GPU that were left to the CPU.", _MODEL
        )
        self.load_duration = gauge("attnserve_model_load_seconds", "Time to load and warm a model version.", _MODEL)
        self.model_memory = gauge(
            "attnserve_model_memory_bytes",
            "Host memory that a loaded model version took, one kept for a roll-back too.",
            _MODEL,
        )
        self.load_failures = Counter(
            "attnserve_model_load_failures_total",
            "Model versions that could not be loaded.",
            _MODEL,
            registry=self.registry,
        )
        self.failed_versions = FailedVersions(self.registry)
        self.ready = gauge("attnserve_ready", "1 while the server takes requests.")
        build = gauge("attnserve_build_info", "1; the version is a label.", ("version",))
        build.labels(version("attnserve")).set(1)

    def watch_pending(self, admission: Admission) -> None:
        """Report at each scrape how full the house is."""
        self.pending.set_function(lambda: admission.images)
        self.pending_bytes.set_function(lambda: admission.bytes)
        self.pending_limit.set(admission.max_images)
        self.pending_bytes_limit.set(admission.max_bytes)

    def watch_inflight(self, read: Callable[[], int]) -> None:
        """Report requests in flight by calling `read` at each scrape."""
        self.inflight.set_function(read)

    def watch_versions(self, read: Callable[[], Iterable[tuple[ModelKey, Status]]]) -> None:
        """Report the versions that failed by calling `read` at each scrape; see `Models.statuses`."""
        self.failed_versions.read = read

    def model_loaded(self, model: Model) -> None:
        """Report a model version from now on."""
        with self._lock:
            self._loaded.add(model.key)
            self._gone.pop(model.key, None)
        self.model_info.labels(*_info(model)).set(1)
        if model.cpu_nodes is not None:
            self.cpu_nodes.labels(*model.key).set(model.cpu_nodes)
        self.load_duration.labels(*model.key).set(model.load_s)
        self.model_memory.labels(*model.key).set(model.memory_bytes)
        self.queued.labels(*model.key).set_function(lambda: model.scheduler.queued_images)
        self.queued_clients.labels(*model.key).set_function(lambda: model.scheduler.queued_clients)
        self._triton.model_loaded(model)

    def model_gone(self, model: Model, *, kept: bool) -> None:
        """Report a model version no longer; where it is kept, still what it takes."""
        self._triton.model_gone(model)
        with contextlib.suppress(KeyError):  # it was kept, and no longer served, before
            self.model_info.remove(*_info(model))
            if model.cpu_nodes is not None:
                self.cpu_nodes.remove(*model.key)
            self.queued.remove(*model.key)
            self.queued_clients.remove(*model.key)
        if not kept:
            self.load_duration.remove(*model.key)
            self.model_memory.remove(*model.key)
            with self._lock:
                self._loaded.discard(model.key)
            self._leave(model.key)

    def load_failed(self, model: ModelKey) -> None:
        """Count a version that could not be loaded."""
        self.load_failures.labels(*model).inc()
        self._leave(model)

    def _leave(self, model: ModelKey) -> None:
        """Keep the series of a version that is not loaded for a while: a new version a night must not fill memory."""
        with self._lock:
            if model in self._loaded:
                return
            self._gone.pop(model, None)
            self._gone[model] = None
            oldest = next(iter(self._gone)) if len(self._gone) > MOST_GONE else None
            if oldest is not None:
                del self._gone[oldest]
        if oldest is not None:
            self._forget(oldest)

    def _forget(self, model: ModelKey) -> None:
        labels = {"model": model.name, "version": model.version}
        for metric in (self.deadline_misses, self.drops, self.load_failures):
            metric.remove_by_labels(labels)
        for distribution in (self.stage_duration, self.batch_size, self.batch_duration, self.queue_depth,
                             self.confidence, self.entropy):  # fmt: skip
            distribution.forget(model)
        for tally in (self.images, self.level_images):
            tally.forget(model)
        self.requests.forget(model, at=1)  # the method comes first
        self.request_duration.forget(model, at=1)
        self._statistics.forget(model)

    def batch_started(self, model: ModelKey, rows: int, waiting: int) -> None:  # noqa: ARG002
        """Note how deep the queue is; scrapes alone would miss every burst between two of them."""
        self.queue_depth.observe(model, waiting)

    def batch_finished(self, model: ModelKey, rows: int, infer_s: float) -> None:
        """Count a batch."""
        self.batch_size.observe(model, rows)
        self.batch_duration.observe(model, infer_s)

    def dropped(self, model: ModelKey, reason: str, rows: int) -> None:
        """Count images that were not run."""
        self.drops.labels(*model, reason).inc(rows)

    def call_finished(self, call: Call) -> None:
        """Count an answer; durations only of requests that a model answered."""
        model, code = call.model, call.code or ""
        self.requests.add((call.method, *(model or ("", "")), code))
        if model is None:
            return
        outcome = _OUTCOMES.get(code)
        if outcome is not None:  # of others the class may be any number that the caller wrote
            self.level_images.add((*model, str(call.level), outcome), call.images)
        if code == "DEADLINE_EXCEEDED":
            self.deadline_misses.labels(*model, "expired").inc()
        elif code == "OK":
            self._answered(call, model)

    def _answered(self, call: Call, model: ModelKey) -> None:
        self.images.add(model, call.images)
        trace = call.trace
        exemplar = {"trace_id": trace.trace_id} if trace is not None and trace.sampled else None
        self.request_duration.observe((call.method, *model), call.total_s, exemplar)
        for stage, seconds in call.timings.stages():
            if seconds:  # it happened
                self.stage_duration.observe((*model, stage), seconds)
        if call.started_at + call.total_s > call.deadline:
            self.deadline_misses.labels(*model, "late").inc()
        if call.confidences is not None:
            self.confidence.add(model, call.confidences)
        for site, values in call.entropies.items():
            self.entropy.add((*model, site), values)


def _info(model: Model) -> tuple[str, ...]:
    """The labels of `model_info`."""
    card = model.files.card
    return (*model.key, model.provider, model.placement, card.precision, model.plan, card.digest)
