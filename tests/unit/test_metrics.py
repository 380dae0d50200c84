"""Facts become Prometheus samples with the right names and labels."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from prometheus_client import generate_latest
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from attnserve.admission import Admission
from attnserve.contract import ModelKey, Timings
from attnserve.correlation import trace_of
from attnserve.errors import DeadlineExceeded, InvalidArgument, Overloaded
from attnserve.lifecycle import KEPT, LOADING, READY, STALE, UNAVAILABLE, UNLOADED, Status
from attnserve.metrics import Metrics
from attnserve.statistics import Statistics

NET = ModelKey("net", "1")
MODEL = {"model": "net", "version": "1"}


@pytest.fixture
def statistics():
    return Statistics()


@pytest.fixture
def metrics(statistics):
    return Metrics(statistics)


@pytest.fixture
def sample(metrics):
    return lambda name, **labels: metrics.registry.get_sample_value(name, labels)


@pytest.fixture
def finish(metrics, ask, clock):
    def run(model=NET, images=1, seconds=0.0, error=None, call=(), **timings) -> None:
        asked = ask(listener=metrics)
        asked.call.model, asked.call.images, asked.call.timings = model, images, Timings(**timings)
        for field, value in dict(call).items():
            setattr(asked.call, field, value)
        clock.advance(seconds)
        asked.call.fail(error) if error else asked.call.reply("message")

    return run


def test_every_answer_counts_by_its_code(finish, sample):
    finish()
    finish()
    finish(error=InvalidArgument("no"))
    finish(error=Overloaded("full"))
    counted = [
        sample("attnserve_requests_total", method="Classify", code=code, **MODEL)
        for code in ("OK", "INVALID_ARGUMENT", "RESOURCE_EXHAUSTED")
    ]
    assert counted == [2, 1, 1]


def test_a_call_that_reached_no_model_counts_without_a_name(finish, sample):
    finish(model=None, error=InvalidArgument("no"))
    name = "attnserve_requests_total"
    assert sample(name, method="Classify", code="INVALID_ARGUMENT", model="", version="") == 1


def test_durations_are_of_answered_requests_only(finish, sample):
    finish(seconds=0.3, images=4, decode_s=0.1, queue_s=0.02, infer_s=0.15, postprocess_s=0.03)
    finish(seconds=9, images=4, error=InvalidArgument("no"), decode_s=5)
    assert sample("attnserve_images_total", **MODEL) == 4
    assert sample("attnserve_request_duration_seconds_count", method="Classify", **MODEL) == 1
    assert sample("attnserve_request_duration_seconds_sum", method="Classify", **MODEL) == pytest.approx(0.3)
    for stage, seconds in [("decode", 0.1), ("queue", 0.02), ("infer", 0.15), ("postprocess", 0.03)]:
        assert sample("attnserve_stage_duration_seconds_sum", stage=stage, **MODEL) == pytest.approx(seconds)
        assert sample("attnserve_stage_duration_seconds_count", stage=stage, **MODEL) == 1


def test_a_stage_that_did_not_happen_is_not_observed(finish, sample):
    finish(queue_s=0.5, infer_s=0.5)
    name = "attnserve_stage_duration_seconds_count"
    assert [sample(name, stage=stage, **MODEL) for stage in ("decode", "queue", "infer")] == [None, 1, 1]


def test_an_answer_after_the_deadline_is_late_and_a_request_given_up_for_it_is_expired(finish, sample, clock):
    finish(seconds=1, call={"deadline": clock.now + 1})
    finish(seconds=1.5, call={"deadline": clock.now + 1})
    finish(seconds=2, error=DeadlineExceeded("late"), call={"deadline": clock.now + 1})
    finish(seconds=2, error=InvalidArgument("no"), call={"deadline": clock.now + 1})
    name = "attnserve_deadline_misses_total"
    assert [sample(name, outcome=outcome, **MODEL) for outcome in ("late", "expired")] == [1, 1]


def test_images_count_by_priority_class_and_what_came_of_them(finish, sample):
    finish(images=3, call={"level": 1})
    finish(images=2, call={"level": 2})
    finish(images=4, call={"level": 2}, error=Overloaded("full"))
    finish(images=5, call={"level": 2}, error=DeadlineExceeded("late"))
    name = "attnserve_priority_images_total"
    found = [
        sample(name, level=level, outcome=outcome, **MODEL)
        for level, outcome in [("1", "served"), ("2", "served"), ("2", "refused"), ("2", "expired"), ("1", "refused")]
    ]
    assert found == [3, 2, 4, 5, None]


def test_a_priority_that_the_caller_made_up_is_no_label(finish, metrics):
    finish(call={"level": 4_000_000_000}, error=InvalidArgument("priority"))
    assert b"4000000000" not in generate_latest(metrics.registry)


def test_no_client_is_a_label(finish, metrics):
    finish(call={"client": "somebody"})
    finish(call={"client": "somebody"}, error=Overloaded("full"))
    assert b"somebody" not in generate_latest(metrics.registry)


def test_confidences_and_entropies_are_distributed_in_bulk(finish, sample):
    confidences, entropies = np.float32([0.25, 0.5, 0.97, 1.0]), np.float32([0.75, 0.999])
    finish(images=4, call={"confidences": confidences, "entropies": {"layer1.cbam": entropies}})
    finish(images=1, call={"confidences": np.float32([0.05])})
    name = "attnserve_top1_confidence"
    below = [
        sample(f"{name}_bucket", le=le, **MODEL) for le in ("0.1", "0.2", "0.3", "0.5", "0.95", "0.99", "1.0", "+Inf")
    ]
    assert below == [1, 1, 2, 3, 3, 4, 5, 5]
    assert sample(f"{name}_count", **MODEL) == 5
    assert sample(f"{name}_sum", **MODEL) == pytest.approx(2.77)
    name = "attnserve_attention_entropy"
    assert sample(f"{name}_count", site="layer1.cbam", **MODEL) == 2
    assert sample(f"{name}_bucket", le="0.8", site="layer1.cbam", **MODEL) == 1


def test_what_an_answer_does_not_hold_is_not_distributed(finish, metrics):
    finish()
    page = generate_latest(metrics.registry)
    assert b"attnserve_top1_confidence_count" not in page
    assert b"attnserve_attention_entropy_count" not in page


def test_the_depth_of_the_queue_is_noted_with_every_batch(metrics, sample):
    for waiting in (0, 0, 3):
        metrics.batch_started(NET, 8, waiting)
    name = "attnserve_queue_depth_images"
    assert [sample(f"{name}_bucket", le=le, **MODEL) for le in ("0.0", "2.0", "4.0")] == [2, 2, 3]
    assert sample(f"{name}_sum", **MODEL) == 3


def test_requests_in_flight_are_read_at_each_scrape(metrics, sample):
    metrics.watch_inflight(lambda: 7)
    assert sample("attnserve_inflight_requests") == 7


@pytest.mark.parametrize(("flags", "exemplars"), [("01", 1), ("00", 0)])
def test_a_sampled_trace_is_the_duration_s_exemplar(finish, metrics, flags, exemplars):
    finish(seconds=0.3, call={"trace": trace_of(f"00-{'ab' * 16}-{'cd' * 8}-{flags}")})
    page = openmetrics.generate_latest(metrics.registry).decode()
    found = [
        (sample.labels["le"], sample.exemplar.labels, sample.exemplar.value)
        for family in parse_openmetrics(page)
        for sample in family.samples
        if sample.exemplar
    ]
    assert found == [("0.5", {"trace_id": "ab" * 16}, pytest.approx(0.3))] * exemplars


def test_batches_count_by_size_and_time(metrics, sample):
    for rows in (1, 2, 8):
        metrics.batch_finished(NET, rows, 0.5)
    assert sample("attnserve_batch_size_count", **MODEL) == 3
    assert sample("attnserve_batch_size_sum", **MODEL) == 11
    assert sample("attnserve_batch_size_bucket", le="2.0", **MODEL) == 2
    assert sample("attnserve_batch_duration_seconds_sum", **MODEL) == 1.5


@pytest.mark.parametrize("reason", ["expired", "cancelled", "overloaded", "shutdown"])
def test_drops_count_images_by_reason(metrics, sample, reason):
    metrics.dropped(NET, reason, 3)
    metrics.dropped(NET, reason, 2)
    assert sample("attnserve_dropped_images_total", reason=reason, **MODEL) == 5


def test_how_full_the_house_is_is_read_at_each_scrape(metrics, sample):
    admission = Admission(max_images=10, max_bytes=1000)
    metrics.watch_pending(admission)
    names = ("images", "bytes", "images_limit", "bytes_limit")
    admission.admit("a", images=7, size_bytes=300, wait_s=0, run_s=0, slack_s=1)
    assert [sample(f"attnserve_pending_{name}") for name in names] == [7, 300, 10, 1000]
    admission.release("a", images=7, size_bytes=300)
    assert [sample(f"attnserve_pending_{name}") for name in names] == [0, 0, 10, 1000]


def test_a_version_is_failed_while_it_should_be_served_and_is_not(metrics, sample):
    standing = {
        "1": Status(READY),
        "2": Status(UNAVAILABLE, "broken"),
        "3": Status(UNAVAILABLE, KEPT),
        "4": Status(UNAVAILABLE, UNLOADED),
        "5": Status(LOADING),
        "6": Status(READY, f"{STALE}: broken"),
    }
    metrics.watch_versions(lambda: [(ModelKey("net", version), how) for version, how in standing.items()])
    failed = {v: sample("attnserve_model_version_failed", model="net", version=v) for v in standing}
    assert failed == {"1": None, "2": 1, "3": None, "4": None, "5": None, "6": 1}
    standing["2"] = Status(READY)
    assert sample("attnserve_model_version_failed", model="net", version="2") is None


def test_a_loaded_model_is_described_and_its_queue_is_read_at_each_scrape(
    metrics, sample, new_model, puppet, new_entry
):
    model = dataclasses.replace(new_model(puppet, precision="fp16"), plan="nhwc,graphs", cpu_nodes=3)
    metrics.model_loaded(model)
    digest = model.files.card.digest
    labels = {"execution_provider": "PuppetExecutionProvider", "precision": "fp16", "card_digest": digest}
    assert sample("attnserve_model_info", **MODEL, **labels, plan="nhwc,graphs", placement="") == 1
    assert sample("attnserve_model_cpu_nodes", **MODEL) == 3
    assert sample("attnserve_model_load_seconds", **MODEL) == 1.5
    assert sample("attnserve_queued_images", **MODEL) == 0
    model.scheduler.submit(new_entry(1))
    puppet.next()
    model.scheduler.submit(new_entry(2, 3, client="a"))
    model.scheduler.submit(new_entry(4, client="b"))
    model.scheduler.submit(new_entry(5, client="a"))
    assert sample("attnserve_queued_images", **MODEL) == 4
    assert sample("attnserve_queued_clients", **MODEL) == 2
    assert sample("nv_inference_pending_request_count", **MODEL) == 3


def test_a_kept_model_is_served_no_longer_but_still_takes_memory_and_one_that_is_gone_leaves_nothing(
    metrics, sample, new_model, puppet
):
    model = dataclasses.replace(new_model(puppet), memory_bytes=700, cpu_nodes=2)
    names = ("attnserve_model_memory_bytes", "attnserve_model_load_seconds", "attnserve_queued_images",
             "attnserve_queued_clients", "nv_inference_count")  # fmt: skip
    metrics.model_loaded(model)
    metrics.model_gone(model, kept=True)
    assert [sample(name, **MODEL) for name in names] == [700, 1.5, None, None, None]
    metrics.model_gone(model, kept=False)
    assert [sample(name, **MODEL) for name in names] == [None] * 5
    for name in (b"attnserve_model_info{", b"attnserve_model_cpu_nodes{"):
        assert name not in generate_latest(metrics.registry)
    metrics.model_loaded(model)
    assert [sample(name, **MODEL) for name in names] == [700, 1.5, 0, 0, 0]


def test_failed_loads_count_by_version(metrics, sample):
    metrics.load_failed(NET)
    metrics.load_failed(NET)
    assert sample("attnserve_model_load_failures_total", **MODEL) == 2


def test_readiness_and_build_are_shown(metrics, sample):
    assert sample("attnserve_ready") == 0
    metrics.ready.set(True)
    assert sample("attnserve_ready") == 1
    text = generate_latest(metrics.registry).decode()
    (build,) = [family for family in text_string_to_metric_families(text) if family.name == "attnserve_build_info"]
    (only,) = build.samples
    assert only.value == 1
    assert only.labels["version"]


def test_two_servers_in_one_process_do_not_share_counters(metrics, sample):
    metrics.dropped(NET, "expired", 1)
    Metrics(Statistics()).dropped(NET, "expired", 5)
    assert sample("attnserve_dropped_images_total", reason="expired", **MODEL) == 1


def test_the_process_and_the_garbage_collector_are_watched_too(metrics):
    names = {family.name for family in metrics.registry.collect()}
    assert {"python_info", "python_gc_collections"} <= names


def test_every_metric_of_ours_has_our_prefix_and_a_help_text(metrics):
    for family in metrics.registry.collect():
        assert family.documentation
        assert family.name.startswith(("attnserve_", "nv_inference_", "process_", "python_"))


def version(number: int) -> ModelKey:
    return ModelKey("net", str(number))


@pytest.fixture
def serve_for_a_while(metrics, new_model, finish, puppet):
    """Load a version, have it count everything that can be counted, and let it go."""
    loaded = new_model(puppet)

    def run(key: ModelKey) -> None:
        model = dataclasses.replace(loaded, files=dataclasses.replace(loaded.files, key=key))
        metrics.model_loaded(model)
        metrics.batch_started(key, 1, 2)
        metrics.batch_finished(key, 1, 0.5)
        metrics.dropped(key, "expired", 3)
        metrics.load_failed(key)
        maps = {"site": np.array([0.5], np.float32)}
        finish(model=key, seconds=9, infer_s=1.0, call={"confidences": np.array([0.5], np.float32), "entropies": maps})
        finish(model=key, error=DeadlineExceeded("late"))
        metrics.model_gone(model, kept=False)

    return run


def series_of(metrics: Metrics, key: ModelKey) -> set[str]:
    families = text_string_to_metric_families(generate_latest(metrics.registry).decode())
    samples = (sample for family in families for sample in family.samples)
    return {s.name for s in samples if (s.labels.get("model"), s.labels.get("version")) == key}


def test_of_versions_that_are_gone_the_last_sixteen_are_remembered(metrics, serve_for_a_while, statistics):
    for number in range(1, 17):
        serve_for_a_while(version(number))
    first = series_of(metrics, version(1))
    assert {"attnserve_requests_total", "attnserve_stage_duration_seconds_bucket", "attnserve_dropped_images_total",
            "attnserve_attention_entropy_sum", "attnserve_model_load_failures_total"} <= first  # fmt: skip
    serve_for_a_while(version(17))
    assert series_of(metrics, version(1)) == set()
    assert series_of(metrics, version(2)) == first
    assert statistics.message(version(1)).execution_count == 0


def test_a_version_that_comes_back_counts_on_and_is_forgotten_no_sooner(metrics, serve_for_a_while, sample):
    for number in range(1, 17):
        serve_for_a_while(version(number))
    serve_for_a_while(version(1))
    serve_for_a_while(version(17))
    assert series_of(metrics, version(2)) == set()
    assert sample("attnserve_images_total", model="net", version="1") == 2


def test_versions_that_never_load_are_forgotten_too_but_not_one_that_serves(metrics, new_model, puppet):
    served = new_model(puppet)
    metrics.model_loaded(served)
    metrics.load_failed(served.key)
    for number in range(2, 40):
        metrics.load_failed(version(number))
    assert "attnserve_model_load_failures_total" in series_of(metrics, served.key)
    left = [number for number in range(2, 40) if series_of(metrics, version(number))]
    assert left == list(range(24, 40))
