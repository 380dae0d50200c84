"""A repository of tiny models, what a test asks its server of it, callers that never stop, and an OTLP collector."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest

from attnserve.client import Client, ClientError
from attnserve.inference import grpc_service_pb2 as pb
from tiny_models import Repository

PATIENCE_S = 20.0
EXPORT = "opentelemetry.proto.collector.trace.v1.TraceService"


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    (tmp_path / "models").mkdir()
    return Repository(tmp_path / "models")


class Control:
    """The model repository RPCs, and waiting for what they say."""

    def __init__(self, target: str) -> None:
        self._channel = grpc.insecure_channel(target)

    def close(self) -> None:
        self._channel.close()

    def _call(self, name: str, request: Any, reply: Any) -> Any:
        path = f"/inference.GRPCInferenceService/{name}"
        return self._channel.unary_unary(path, lambda m: m.SerializeToString(), reply.FromString)(request, timeout=60)

    def load(self, name: str = "net") -> None:
        self._call(
            "RepositoryModelLoad", pb.RepositoryModelLoadRequest(model_name=name), pb.RepositoryModelLoadResponse
        )

    def unload(self, name: str = "net") -> None:
        request = pb.RepositoryModelUnloadRequest(model_name=name)
        self._call("RepositoryModelUnload", request, pb.RepositoryModelUnloadResponse)

    def states(self, name: str = "net", **request: Any) -> dict[str, tuple[str, str]]:
        """Version -> (state, reason)."""
        reply = self._call("RepositoryIndex", pb.RepositoryIndexRequest(**request), pb.RepositoryIndexResponse)
        return {entry.version: (entry.state, entry.reason) for entry in reply.models if entry.name == name}

    def wait(
        self, told: Callable[[dict[str, tuple[str, str]]], object], name: str = "net"
    ) -> dict[str, tuple[str, str]]:
        """Ask for the states until they are so."""
        end = time.monotonic() + PATIENCE_S
        while not told(states := self.states(name)):
            assert time.monotonic() < end, states
            time.sleep(0.02)
        return states


@pytest.fixture
def control() -> Iterator[Callable[[str], Control]]:
    opened: list[Control] = []

    def connect(target: str) -> Control:
        opened.append(Control(target))
        return opened[-1]

    yield connect
    for connected in opened:
        connected.close()


class Callers:
    """Threads that classify pictures without a pause, and what they were answered, in the order of the answers."""

    def __init__(self, target: str, picture: Any, name: str = "net", threads: int = 6) -> None:
        self.answers: list[int] = []
        self.errors: list[str] = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(target, picture, name)) for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    def _run(self, target: str, picture: Any, name: str) -> None:
        with Client(target, timeout_s=30) as client:
            while not self._stop.is_set():
                try:
                    results = client.classify([picture, picture], model=name, top_k=1)
                    assert len({result.predictions[0].index for result in results}) == 1
                    self.answers.append(results[0].predictions[0].index)
                except ClientError as error:
                    self.errors.append(str(error))
                except BaseException as error:
                    self.errors.append(repr(error))
                    raise

    def wait_for(self, answer: int) -> None:
        """Until some caller got this answer and many more were given."""
        end = time.monotonic() + PATIENCE_S
        while answer not in self.answers[-50:]:
            assert time.monotonic() < end, (self.answers[-50:], self.errors[:3])
            time.sleep(0.01)
        enough = len(self.answers) + 100
        while len(self.answers) < enough and not self.errors:
            time.sleep(0.01)

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout=PATIENCE_S)
            assert not thread.is_alive()


@pytest.fixture
def call_without_pause() -> Iterator[Callable[..., Callers]]:
    started: list[Callers] = []

    def start(*args: Any, **options: Any) -> Callers:
        started.append(Callers(*args, **options))
        return started[-1]

    yield start
    for callers in started:
        callers.stop()


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
