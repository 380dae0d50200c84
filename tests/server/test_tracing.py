"""A trace from the client through the server to a collector, each in a place of its own."""

from __future__ import annotations

import json
import subprocess
import sys

import grpc
import pytest

from attnserve.client import Client
from attnserve.inference import grpc_service_pb2 as oip

MODEL = "fashion-mnist-cbam"


def taken(spans) -> dict:
    """What the collector has got, by name."""
    return {span.name: span for span in (spans.get_nowait() for _ in range(spans.qsize()))}


@pytest.mark.both_transports
def test_the_client_s_span_is_the_parent_of_the_server_s_and_that_of_each_stage_s(start_server, collector, pictures):
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider

    endpoint, spans = collector
    caller = TracerProvider(shutdown_on_exit=False).get_tracer("test").start_span("caller")
    with (
        start_server("--otel-endpoint", endpoint) as server,
        Client(server.grpc) as client,
        trace.use_span(caller),
    ):
        client.classify([pictures[0]], model=MODEL)
    found = taken(spans)
    assert set(found) == {"Classify", "decode", "queue", "infer", "postprocess"}
    context = caller.get_span_context()
    assert {span.trace_id for span in found.values()} == {context.trace_id.to_bytes(16, "big")}
    whole = found.pop("Classify")
    assert whole.parent_span_id == context.span_id.to_bytes(8, "big")
    assert {span.parent_span_id for span in found.values()} == {whole.span_id}
    for span in found.values():
        assert whole.start_time_unix_nano <= span.start_time_unix_nano < span.end_time_unix_nano
        assert span.end_time_unix_nano <= whole.end_time_unix_nano


@pytest.mark.both_transports
def test_a_call_is_found_by_the_same_ids_in_traces_and_in_the_log(start_server, collector, pictures):
    endpoint, spans = collector
    request = oip.ModelInferRequest(model_name=MODEL, raw_input_contents=[pictures[:1].tobytes()])
    request.inputs.add(name="images", datatype="UINT8", shape=[1, 28, 28, 3])
    flags = ["--otel-endpoint", endpoint, "--log-level", "debug", "--log-format", "json"]
    with start_server(*flags) as server, grpc.insecure_channel(server.grpc) as channel:
        infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer", lambda m: m.SerializeToString())
        traceparent = f"00-{'ab' * 16}-{'cd' * 8}-01"
        infer(request, timeout=30, metadata=[("x-request-id", "order-7"), ("traceparent", traceparent)])
    span = taken(spans)["ModelInfer"]
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == ("ab" * 16, "cd" * 8)
    attributes = {each.key: each.value for each in span.attributes}
    assert attributes["attnserve.request_id"].string_value == "order-7"
    assert attributes["attnserve.images"].int_value == 1
    (event,) = [e for e in map(json.loads, server.log.splitlines()) if e.get("request_id") == "order-7"]
    expected = {"trace_id": "ab" * 16, "method": "ModelInfer", "model": MODEL, "version": "1", "images": 1}
    assert expected.items() <= event.items()
    assert event["code"] == "OK"
    seconds = (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9
    assert event["total_ms"] == pytest.approx(seconds * 1e3, abs=0.001)
    stages = [event[f"{stage}_ms"] for stage in ("queue", "infer", "postprocess")]
    assert min(stages) > 0
    assert sum(stages) <= event["total_ms"] + 0.01  # each is rounded


def test_without_an_endpoint_nothing_of_opentelemetry_is_imported():
    code = "import sys, attnserve.server, attnserve.client; sys.exit('opentelemetry' in ' '.join(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_an_endpoint_without_the_extra_is_refused_at_start():
    code = (
        "import sys; sys.modules['opentelemetry.context'] = None\n"
        "from attnserve.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    flags = ["serve", "--model-repository", "model_repo", "--otel-endpoint", "http://localhost:4317"]
    flags += ["--grpc-address", "127.0.0.1:0", "--http-address", "127.0.0.1:0"]
    run = subprocess.run([sys.executable, "-c", code, *flags], capture_output=True, text=True, timeout=60)
    assert run.returncode != 0
    assert "otel_endpoint needs the extra otel" in run.stderr
    assert "Traceback" not in run.stderr
