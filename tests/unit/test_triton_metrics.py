"""Triton's names in both text formats, with Triton's labels, and equal to ModelStatistics."""

from __future__ import annotations

import re

import pytest
from prometheus_client import generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from attnserve.contract import ModelKey, Timings
from attnserve.errors import AttnserveError, Cancelled, DeadlineExceeded, Internal, InvalidArgument, Overloaded
from attnserve.metrics import Metrics
from attnserve.statistics import Statistics
from attnserve.triton_metrics import with_counter_types

NET = ModelKey("net", "1")
DURATIONS = ("request", "queue", "compute_input", "compute_infer", "compute_output")
COUNTERS = ["nv_inference_request_success", "nv_inference_request_failure", "nv_inference_count",
            "nv_inference_exec_count", *(f"nv_inference_{part}_duration_us" for part in DURATIONS)]  # fmt: skip


@pytest.fixture
def statistics():
    return Statistics()


@pytest.fixture
def registry(statistics, new_model, puppet):
    metrics = Metrics(statistics)
    metrics.model_loaded(new_model(puppet))
    return metrics.registry


@pytest.fixture
def finish(ask, clock, statistics):
    def run(error: AttnserveError | None = None, images: int = 1, seconds: float = 0.0, **timings: float) -> None:
        asked = ask(listener=statistics)
        asked.call.model, asked.call.images, asked.call.timings = NET, images, Timings(**timings)
        clock.advance(seconds)
        asked.call.fail(error) if error else asked.call.reply("message")

    return run


def text(registry) -> str:
    return with_counter_types(generate_latest(registry)).decode()


@pytest.mark.parametrize("name", COUNTERS)
def test_in_plain_text_a_counter_is_a_counter_under_triton_s_very_name(registry, name):
    page = text(registry)
    assert f"# TYPE {name} counter\n" in page
    assert re.search(rf'^{name}{{model="net",(reason="OTHER",)?version="1"}} 0.0$', page, re.MULTILINE)
    assert f"{name}_total" not in page


def test_the_pending_requests_are_a_gauge(registry):
    page = text(registry)
    assert "# TYPE nv_inference_pending_request_count gauge\n" in page
    assert 'nv_inference_pending_request_count{model="net",version="1"} 0.0\n' in page


def test_prometheus_own_parsers_take_both_formats(registry):
    kinds = {family.name: family.type for family in parse_text(text(registry))}
    assert {kinds[name] for name in COUNTERS} == {"counter"}
    families = {family.name: family for family in parse_openmetrics(generate_openmetrics(registry).decode())}
    for name in COUNTERS:
        assert families[name].type == "unknown"
        assert {sample.name for sample in families[name].samples} == {name}


def test_the_figures_are_those_of_model_statistics(registry, finish, statistics):
    finish(images=3, seconds=1, decode_s=0.125, queue_s=0.25, infer_s=0.5, postprocess_s=0.0625)
    finish(images=2, seconds=2, decode_s=0.125, queue_s=0.25, infer_s=0.5, postprocess_s=0.0625)
    statistics.batch_finished(NET, 5, 0.5)
    found = {name: registry.get_sample_value(name, {"model": "net", "version": "1"}) for name in COUNTERS}
    del found["nv_inference_request_failure"]
    assert list(found.values()) == [2, 5, 1, 3_000_000, 500_000, 250_000, 1_000_000, 125_000]


def test_failures_count_by_triton_s_reasons(registry, finish, statistics):
    for error in (Overloaded("full"), DeadlineExceeded("late"), Cancelled("gone"), Internal("ours"), Internal("ours"),
                  InvalidArgument("no")):  # fmt: skip
        finish(error)
    reasons = ("REJECTED", "CANCELED", "BACKEND", "OTHER")
    name = "nv_inference_request_failure"
    labels = {"model": "net", "version": "1"}
    found = [registry.get_sample_value(name, {**labels, "reason": reason}) for reason in reasons]
    assert found == [2, 1, 2, 1]
    assert sum(found) == statistics.message(NET).inference_stats.fail.count
    assert registry.get_sample_value("nv_inference_request_success", labels) == 0


def test_only_type_lines_are_rewritten():
    page = b"# HELP a b\n# TYPE nv_inference_count untyped\nnv_inference_count 1\n# TYPE other untyped\n"
    assert with_counter_types(page) == page.replace(b"nv_inference_count untyped", b"nv_inference_count counter")
