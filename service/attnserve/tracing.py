"""OpenTelemetry spans, made of a call's timings when it has ended; imported only where an endpoint is configured.

Needs the extra `otel`. What OpenTelemetry reads from its own `OTEL_*` variables (the sampler, headers, the service's
name) holds here too.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib.metadata import version

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, StatusCode, TraceFlags, set_span_in_context
from opentelemetry.util.types import AttributeValue

from attnserve.contract import Call, ModelKey
from attnserve.correlation import Trace
from attnserve.listeners import QuietListener

_EXPORT_TIMEOUT_S = 5  # a collector that is away holds up the end of the server no longer than about this


class Tracing(QuietListener):
    """A listener that makes one server span of each call, and a child of each stage that it went through.

    Args:
        processor: Takes the finished spans; must not block.
        wall_clock: Nanoseconds since 1970.
    """

    def __init__(self, processor: SpanProcessor, wall_clock: Callable[[], int] = time.time_ns) -> None:
        named = Resource.create({"service.name": "attnserve", "service.version": version("attnserve")})
        self._provider = TracerProvider(resource=named.merge(OTELResourceDetector().detect()), shutdown_on_exit=False)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("attnserve", version("attnserve"))
        self._wall_clock = wall_clock

    def close(self) -> None:
        """Send what is left. Blocks for a few seconds where the collector is away."""
        self._provider.shutdown()

    def call_finished(self, call: Call) -> None:
        """Make the call's spans.

        Only durations are known of the stages: postprocess ends with the call, the others follow each other from its
        beginning. Of a request that was run in parts, the longest run may follow the longest wait only in these spans,
        which therefore end with the call at the latest.
        """
        end_ns = self._wall_clock()
        start_ns = end_ns - _ns(call.total_s)
        span = self._tracer.start_span(
            call.method, _parent(call.trace), SpanKind.SERVER, _attributes(call), start_time=start_ns
        )
        if span.is_recording():
            within = set_span_in_context(span, Context())
            for stage, seconds in call.timings.stages():
                if seconds:
                    if stage == "postprocess":
                        start_ns = end_ns - _ns(seconds)
                    child = self._tracer.start_span(stage, within, start_time=start_ns)
                    start_ns = min(start_ns + _ns(seconds), end_ns)
                    child.end(start_ns)
            if call.code == "INTERNAL":
                span.set_status(StatusCode.ERROR)  # the other codes tell of the caller, the load or the moment
        span.end(end_ns)


def to_collector(endpoint: str) -> Tracing:
    """Tracing to an OTLP collector over gRPC; `http://HOST:PORT` in the clear, `https://` with TLS."""
    return Tracing(BatchSpanProcessor(OTLPSpanExporter(endpoint, timeout=_EXPORT_TIMEOUT_S)))


def _parent(trace: Trace | None) -> Context:
    """The caller's span as a parent; without one the span begins a trace."""
    if trace is None:
        return Context()
    flags = TraceFlags(TraceFlags.SAMPLED if trace.sampled else TraceFlags.DEFAULT)
    caller = SpanContext(int(trace.trace_id, 16), int(trace.span_id, 16), is_remote=True, trace_flags=flags)
    return set_span_in_context(NonRecordingSpan(caller), Context())


def _attributes(call: Call) -> dict[str, AttributeValue]:
    model = call.model or ModelKey("", "")
    verb, _, route = call.method.partition(" ")  # of a method of gRPC there is no route
    over_http = {"http.request.method": verb, "http.route": route}
    return {
        **(over_http if route else {"rpc.system": "grpc", "rpc.method": call.method}),
        "attnserve.status": call.code or "",
        "attnserve.request_id": call.request_id,
        "attnserve.model": model.name,
        "attnserve.version": model.version,
        "attnserve.images": call.images,
    }


def _ns(seconds: float) -> int:
    return int(seconds * 1e9)
