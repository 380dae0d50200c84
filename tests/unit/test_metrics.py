"""Facts become Prometheus samples with the right names and labels."""

from __future__ import annotations

import dataclasses

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from attnserve.contract import ModelKey, Timings
from attnserve.errors import InvalidArgument, Overloaded
from attnserve.metrics import Metrics

NET = ModelKey("net", "1")
MODEL = {"model": "net", "version": "1"}


@pytest.fixture
def metrics():
    return Metrics()


@pytest.fixture
def sample(metrics):
    return lambda name, **labels: metrics.registry.get_sample_value(name, labels)


@pytest.fixture
def finish(metrics, ask, clock):
    def run(model=NET, images=1, seconds=0.0, error=None, **timings) -> None:
        asked = ask(listener=metrics)
        asked.call.model, asked.call.images, asked.call.timings = model, images, Timings(**timings)
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


def test_pending_images_are_read_at_each_scrape(metrics, sample):
    pending = [7]
    metrics.watch_pending(lambda: pending[0])
    assert sample("attnserve_pending_images") == 7
    pending[0] = 3
    assert sample("attnserve_pending_images") == 3


def test_a_loaded_model_is_described_and_its_queue_is_read_at_each_scrape(
    metrics, sample, new_model, puppet, new_entry
):
    model = new_model(puppet, precision="fp16")
    metrics.model_loaded(model)
    digest = model.files.card.digest
    labels = {"execution_provider": "PuppetExecutionProvider", "precision": "fp16", "card_digest": digest}
    assert sample("attnserve_model_info", **MODEL, **labels) == 1
    assert sample("attnserve_model_load_seconds", **MODEL) == 1.5
    assert sample("attnserve_queued_images", **MODEL) == 0
    model.scheduler.submit(new_entry(1))
    puppet.next()
    model.scheduler.submit(new_entry(2, 3))
    assert sample("attnserve_queued_images", **MODEL) == 2


def test_a_kept_model_is_served_no_longer_but_still_takes_memory_and_one_that_is_gone_leaves_nothing(
    metrics, sample, new_model, puppet
):
    model = dataclasses.replace(new_model(puppet), memory_bytes=700)
    names = ("attnserve_model_memory_bytes", "attnserve_model_load_seconds", "attnserve_queued_images")
    metrics.model_loaded(model)
    metrics.model_gone(model, kept=True)
    assert [sample(name, **MODEL) for name in names] == [700, 1.5, None]
    metrics.model_gone(model, kept=False)
    assert [sample(name, **MODEL) for name in names] == [None, None, None]
    assert b"attnserve_model_info{" not in generate_latest(metrics.registry)
    metrics.model_loaded(model)
    assert [sample(name, **MODEL) for name in names] == [700, 1.5, 0]


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
    Metrics().dropped(NET, "expired", 5)
    assert sample("attnserve_dropped_images_total", reason="expired", **MODEL) == 1


def test_the_process_and_the_garbage_collector_are_watched_too(metrics):
    names = {family.name for family in metrics.registry.collect()}
    assert {"python_info", "python_gc_collections"} <= names


def test_every_metric_of_ours_has_our_prefix_and_a_help_text(metrics):
    for family in metrics.registry.collect():
        assert family.documentation
        assert family.name.startswith(("attnserve_", "process_", "python_"))
