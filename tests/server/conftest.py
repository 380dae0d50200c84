"""Tiny models whose every answer names their version, for tests that replace them.

Also callers that never stop, and an OTLP collector.
"""

from __future__ import annotations

import dataclasses
import os
import queue
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from attnserve.card import Card, sha256_of
from attnserve.client import Client, ClientError
from attnserve.inference import grpc_service_pb2 as pb

ROOT = Path(__file__).parents[2]
TEMPLATE = "fashion-mnist-bam"
PATIENCE_S = 20.0
EXPORT = "opentelemetry.proto.collector.trace.v1.TraceService"


def constant_graph(answer: int) -> bytes:
    """images (N, 28, 28, 3) -> probabilities and logits (N, 10): 1 for class `answer`, else 0."""
    row = np.zeros((1, 10), np.float32)
    row[0, answer] = 1
    constants = [numpy_helper.from_array(np.zeros((2352, 10), np.float32), "columns")]
    constants += [numpy_helper.from_array(row, "row"), numpy_helper.from_array(np.array([-1, 2352], np.int64), "shape")]
    nodes = [
        helper.make_node("Cast", ["images"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["pixels", "shape"], ["flat"]),
        helper.make_node("MatMul", ["flat", "columns"], ["nothing"]),
        helper.make_node("Add", ["nothing", "row"], ["probabilities"]),
        helper.make_node("Identity", ["probabilities"], ["logits"]),
    ]
    images = helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", 28, 28, 3])
    outputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 10]) for name in ("probabilities", "logits")
    ]
    made = helper.make_graph(nodes, "constant", [images], outputs, constants)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString()


class Repository:
    """A model repository to write to while a server reads it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, version: int, answer: int, name: str = "net", *, broken: bool = False) -> None:
        """Put a version there at once, whose every answer is class `answer`; a broken one is not what its card says."""
        folder = self.path / name
        if not folder.exists():
            folder.mkdir()
            shutil.copy(ROOT / "model_repo" / TEMPLATE / "labels.txt", folder)
            self.configure(name=name)
        made = self.path / f".{name}-{version}"
        made.mkdir()
        (made / "model.onnx").write_bytes(constant_graph(answer))
        card = Card.from_json((ROOT / "model_repo" / TEMPLATE / "1/model.json").read_text())
        digest = "0" * 64 if broken else sha256_of(made / "model.onnx")
        card = dataclasses.replace(card, name=name, sites=(), explain=(), files={"model.onnx": digest})
        (made / "model.json").write_text(card.to_json())
        if (folder / str(version)).exists():
            os.rename(folder / str(version), self.path / f".old-{name}-{version}-{time.monotonic_ns()}")
        os.rename(made, folder / str(version))

    def configure(self, policy: str = "", name: str = "net", max_batch_size: int = 8) -> None:
        """Write config.pbtxt with that version policy."""
        text = (ROOT / "model_repo" / TEMPLATE / "config.pbtxt").read_text()
        text = text.replace(f'name: "{TEMPLATE}"', f'name: "{name}"')
        text = text.replace("max_batch_size: 64", f"max_batch_size: {max_batch_size}")
        written = self.path / f".config-{name}"
        written.write_text(f"{text}\nversion_policy {{ {policy} }}\n" if policy else text)
        os.replace(written, self.path / name / "config.pbtxt")

    def remove(self, version: int, name: str = "net") -> None:
        shutil.rmtree(self.path / name / str(version))


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
