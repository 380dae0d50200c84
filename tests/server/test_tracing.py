"""A trace from the client through the server to a collector, each in a place of its own."""

from __future__ import annotations

import queue
import subprocess
import sys
from concurrent import futures

import grpc
import pytest

from attnserve.client import Client

MODEL = "fashion-mnist-cbam"
EXPORT = "opentelemetry.proto.collector.trace.v1.TraceService"


@pytest.fixture
def collector():
    """Address of an OTLP collector and the spans that it was sent."""
    messages = pytest.importorskip(
        "opentelemetry.proto.collector.trace.v1.trace_service_pb2", reason="needs the extra otel"
    )
    pytest.importorskip("opentelemetry.exporter.otlp.proto.grpc", reason="needs the extra otel")
    spans: queue.Queue = queue.Queue()

    def export(request, context):  # noqa: ARG001
        for resource in request.resource_spans:
            for scope in resource.scope_spans:
                for span in scope.spans:
                    spans.put(span)
        return messages.ExportTraceServiceResponse()

    handler = grpc.unary_unary_rpc_method_handler(
        export, messages.ExportTraceServiceRequest.FromString, lambda m: m.SerializeToString()
    )
    server = grpc.server(futures.ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(EXPORT, {"Export": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"http://127.0.0.1:{port}", spans
    server.stop(None).wait()


@pytest.mark.both_transports
def test_the_client_s_span_is_the_parent_of_the_server_s(start_server, collector, pictures):
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
    found = {span.name: span for span in (spans.get_nowait() for _ in range(spans.qsize()))}
    assert set(found) == {"Classify", "decode", "queue", "infer", "postprocess"}
    context = caller.get_span_context()
    assert found["Classify"].parent_span_id == context.span_id.to_bytes(8, "big")
    assert {span.trace_id for span in found.values()} == {context.trace_id.to_bytes(16, "big")}


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
