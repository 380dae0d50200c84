"""Spans say what the timings say, and hang where the caller's trace says."""

from __future__ import annotations

import pytest

pytest.importorskip("opentelemetry.sdk", reason="needs the extra otel")
pytest.importorskip("opentelemetry.exporter.otlp.proto.grpc", reason="needs the extra otel")

from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from attnserve.contract import ModelKey, Timings
from attnserve.correlation import Trace
from attnserve.errors import Internal, InvalidArgument
from attnserve.tracing import Tracing

END_NS = 1_700_000_000_000_000_000
CALLER = Trace("ab" * 16, "cd" * 8, True)


@pytest.fixture
def spans_of(ask, clock):
    def run(error=None, *, seconds=1.0, trace=None, method="Classify", **timings):
        exporter = InMemorySpanExporter()
        tracing = Tracing(SimpleSpanProcessor(exporter), lambda: END_NS)
        asked = ask(listener=tracing, request_id="order-7", trace=trace, method=method)
        asked.call.model, asked.call.images, asked.call.timings = ModelKey("net", "1"), 3, Timings(**timings)
        clock.advance(seconds)
        asked.call.fail(error) if error else asked.call.reply("message")
        found = exporter.get_finished_spans()
        tracing.close()
        return found

    return run


def test_a_call_is_a_server_span_with_a_child_for_each_stage(spans_of):
    *children, server = spans_of(decode_s=0.125, queue_s=0.25, infer_s=0.5, postprocess_s=0.0625)
    assert (server.name, server.kind, server.parent) == ("Classify", SpanKind.SERVER, None)
    assert (server.start_time, server.end_time) == (END_NS - 1_000_000_000, END_NS)
    begin = server.start_time
    assert [(child.name, (child.start_time - begin) / 1e9, (child.end_time - begin) / 1e9) for child in children] == [
        ("decode", 0, 0.125),
        ("queue", 0.125, 0.375),
        ("infer", 0.375, 0.875),
        ("postprocess", 0.9375, 1),
    ]
    assert {child.parent.span_id for child in children} == {server.context.span_id}
    assert {child.context.trace_id for child in children} == {server.context.trace_id}


def test_no_stage_outlasts_the_call_though_those_of_its_parts_add_up_to_more(spans_of):
    *children, server = spans_of(queue_s=0.75, infer_s=0.5, postprocess_s=0.125)
    assert [(child.name, (child.end_time - server.start_time) / 1e9) for child in children] == [
        ("queue", 0.75),
        ("infer", 1),
        ("postprocess", 1),
    ]
    assert all(server.start_time <= child.start_time <= child.end_time for child in children)


def test_a_stage_that_did_not_happen_has_no_span(spans_of):
    assert [span.name for span in spans_of(queue_s=0.25, infer_s=0.5)] == ["queue", "infer", "Classify"]


def test_the_caller_s_span_is_the_parent(spans_of):
    (server,) = spans_of(trace=CALLER)
    assert f"{server.context.trace_id:x}" == CALLER.trace_id
    assert f"{server.parent.span_id:x}" == CALLER.span_id
    assert server.parent.is_remote


def test_what_the_caller_does_not_sample_is_not_recorded(spans_of):
    assert spans_of(trace=CALLER._replace(sampled=False), queue_s=0.25) == ()


def test_the_span_names_the_request_and_the_model(spans_of):
    (server,) = spans_of()
    assert dict(server.attributes) == {
        "rpc.system": "grpc",
        "rpc.method": "Classify",
        "attnserve.status": "OK",
        "attnserve.request_id": "order-7",
        "attnserve.model": "net",
        "attnserve.version": "1",
        "attnserve.images": 3,
    }
    assert server.resource.attributes["service.name"] == "attnserve"


def test_the_span_of_a_call_over_rest_names_its_route(spans_of):
    (server,) = spans_of(method="POST /v2/models/{model}/infer")
    assert server.attributes["http.request.method"] == "POST"
    assert server.attributes["http.route"] == "/v2/models/{model}/infer"
    assert not any(name.startswith("rpc.") for name in server.attributes)


@pytest.mark.parametrize(
    ("error", "status"), [(Internal("ours"), StatusCode.ERROR), (InvalidArgument("no"), StatusCode.UNSET)]
)
def test_only_our_own_failure_is_the_span_s_error(spans_of, error, status):
    (server,) = spans_of(error)
    assert (server.status.status_code, server.attributes["attnserve.status"]) == (status, error.status)


def test_the_service_may_be_named_by_opentelemetry_s_own_variable(spans_of, monkeypatch):
    monkeypatch.setenv("OTEL_SERVICE_NAME", "patches")
    (server,) = spans_of()
    assert server.resource.attributes["service.name"] == "patches"
