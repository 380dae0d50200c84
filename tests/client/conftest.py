"""A server of `attnserve.v1` in this process whose answers the test chooses."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from attnserve.client import AsyncClient, Client
from attnserve.v1 import attention_pb2 as pb
from attnserve.v1 import attention_pb2_grpc

GATE = np.array([[0.1, 0.2, 0.3], [0.4, 0.5, 0.75]], np.float32)
BRANCH = np.array([[-1.5, 2.0], [0.25, 3.0]], np.float32)
EVIDENCE = np.array([[0, 1], [2, 8]], np.float32)
MEAN_GATE = np.array([[0.25, 0.5], [0.75, 1.0]], np.float32)


def float_map(values: np.ndarray[Any, Any]) -> pb.SpatialMap:
    return pb.SpatialMap(height=values.shape[0], width=values.shape[1], values=values.astype("<f4").tobytes())


class Refusal(Exception):
    """Makes the fake server answer with a status."""

    def __init__(self, code: int, message: str, retry_after_s: float | None = None) -> None:
        self.status = status_pb2.Status(code=code, message=message)
        self.retry_after_s = retry_after_s
        if retry_after_s is not None:
            info = error_details_pb2.RetryInfo()
            info.retry_delay.FromNanoseconds(int(retry_after_s * 1e9))
            self.status.details.add().Pack(info)


class FakeService(attention_pb2_grpc.AttentionServiceServicer):
    """Remembers requests, deadlines and who called; the label of an answer is the request's own bytes, or `pixels`."""

    def __init__(self) -> None:
        self.requests: list[pb.ClassifyRequest] = []
        self.deadlines_s: list[float | None] = []
        self.client_ids: list[str | None] = []
        self.classify_begun, self.classify_cancelled = threading.Event(), threading.Event()
        self.stream_over = threading.Event()
        self.answer: Callable[[pb.ClassifyRequest], pb.ClassifyResponse] = self.echo
        self.stream: Callable[[Iterator[pb.ClassifyRequest]], Iterator[pb.ClassifyStreamResponse]] = self.in_turn
        self.labels, self.card, self.card_digest = ["cat", "dog"], {"precision": "fp32"}, "ab12"
        self.explain_layers = [
            pb.ExplainLayer(layer=layer, height=2, width=2, stride=14, methods=["gradcam", "layercam"])
            for layer in ("last", "layer3")
        ]
        self.evidence: dict[int, np.ndarray[Any, Any]] = {0: EVIDENCE, 1: EVIDENCE / 2}
        self.statuses = [pb.ModelStatus(name="fake", version="3", ready=True)]

    def echo(self, request: pb.ClassifyRequest) -> pb.ClassifyResponse:
        if any(image.encoded.startswith(b"bad") for image in request.images):
            raise Refusal(code_pb2.INVALID_ARGUMENT, "images[0]: not a picture")
        return pb.ClassifyResponse(
            model=request.model,
            version=request.version or "3",
            results=[self.explained(image, request) for image in request.images],
            timings=pb.Timings(decode_ms=1, queue_ms=2, infer_ms=3),
        )

    def explained(self, image: pb.Image, request: pb.ClassifyRequest) -> pb.ImageResult:
        result = self.result(image, request.attention.level)
        if request.top_k:
            del result.predictions[request.top_k :]
        asked = request.explain
        classes = asked.classes or [each.index for each in result.predictions][: asked.top_k]
        result.explanations.extend(
            pb.Explanation(
                layer=layer,
                method=asked.method,
                class_index=index,
                label=self.labels[index],
                map=float_map(self.evidence[index]),
            )
            for layer in asked.layers
            for index in classes
        )
        return result

    def result(self, image: pb.Image, level: int) -> pb.ImageResult:
        label = image.encoded.decode("ascii", "ignore")[:8] if image.encoded else "pixels"
        channel = [0.5, 0.25] if level == pb.ATTENTION_LEVEL_FULL else []
        maps = [
            pb.AttentionMap(site="layer1.cbam", kind="cbam", spatial=float_map(GATE), channel=channel),
            pb.AttentionMap(site="bam1", kind="bam", spatial=float_map(BRANCH), combined=float_map(MEAN_GATE)),
        ]
        return pb.ImageResult(
            predictions=[pb.Prediction(index=7, label=label, probability=0.75)],
            attention=maps if level else [],
            view=pb.CropBox(left=0, top=0, right=28, bottom=28),
            image_height=28,
            image_width=28,
        )

    def in_turn(self, requests: Iterator[pb.ClassifyRequest]) -> Iterator[pb.ClassifyStreamResponse]:
        for sequence, request in enumerate(requests):
            self.requests.append(request)
            try:
                yield pb.ClassifyStreamResponse(sequence=sequence, response=self.answer(request))
            except Refusal as refusal:
                status = refusal.status
                yield pb.ClassifyStreamResponse(
                    sequence=sequence,
                    code=status.code,
                    message=status.message,
                    retry_after_ms=int((refusal.retry_after_s or 0) * 1000),
                )

    def called(self, context: Any) -> None:
        self.deadlines_s.append(context.time_remaining())
        self.client_ids.append(dict(context.invocation_metadata()).get("x-client-id"))

    def Classify(self, request: pb.ClassifyRequest, context: Any) -> pb.ClassifyResponse:  # noqa: N802
        self.called(context)
        self.requests.append(request)
        answered = threading.Event()
        context.add_callback(lambda: answered.is_set() or self.classify_cancelled.set())
        self.classify_begun.set()
        try:
            return self.answer(request)
        except Refusal as refusal:
            answered.set()
            context.abort_with_status(rpc_status.to_status(refusal.status))
            raise AssertionError("abort raises") from None
        finally:
            answered.set()

    def ClassifyStream(  # noqa: N802
        self, request_iterator: Iterator[pb.ClassifyRequest], context: Any
    ) -> Iterator[pb.ClassifyStreamResponse]:
        self.called(context)
        context.add_callback(self.stream_over.set)
        try:
            yield from self.stream(request_iterator)
        except Refusal as refusal:
            context.abort_with_status(rpc_status.to_status(refusal.status))

    def ListModels(self, request: pb.ListModelsRequest, context: Any) -> pb.ListModelsResponse:  # noqa: N802, ARG002
        self.called(context)
        return pb.ListModelsResponse(models=self.statuses)

    def GetModel(self, request: pb.GetModelRequest, context: Any) -> pb.Model:  # noqa: N802
        self.called(context)
        if request.name not in ("fake", "other", "plain"):
            context.abort(grpc.StatusCode.NOT_FOUND, f"model {request.name!r} is not served")
        site = pb.Site(
            name="layer1.cbam",
            kind="cbam",
            channels=2,
            height=2,
            width=3,
            stride=14,
            has_channel=True,
            has_spatial=True,
        )
        return pb.Model(
            name=request.name,
            version=request.version or "3",
            labels=self.labels,
            image_height=28,
            image_width=30,
            sites=[] if request.name == "plain" else [site],
            max_batch_size=16,
            execution_provider="CPUExecutionProvider",
            card_json=json.dumps(self.card),
            card_digest=self.card_digest,
            explain_layers=self.explain_layers,
        )


@pytest.fixture
def service() -> FakeService:
    return FakeService()


@pytest.fixture
def target(service: FakeService) -> Iterator[str]:
    server = grpc.server(futures.ThreadPoolExecutor(4))
    attention_pb2_grpc.add_AttentionServiceServicer_to_server(service, server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()


class Driven:
    """An `AsyncClient` with the face of a `Client`, on a loop of its own: one behaviour, one set of tests."""

    def __init__(self, target: str, *, sleep: Callable[[float], None] | None = None, **options: Any) -> None:
        self._runner = asyncio.Runner()

        async def waits(seconds: float) -> None:
            assert sleep is not None
            sleep(seconds)

        async def made() -> AsyncClient:
            return AsyncClient(target, sleep=waits if sleep else None, **options)

        try:
            self._client = self._runner.run(made())
        except BaseException:
            self._runner.close()
            raise

    def __enter__(self) -> Driven:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        self._runner.close()

    def close(self) -> None:
        self._runner.run(self._client.close())

    def classify(self, *args: Any, **options: Any) -> Any:
        return self._runner.run(self._client.classify(*args, **options))

    def models(self, **options: Any) -> Any:
        return self._runner.run(self._client.models(**options))

    def model(self, *args: Any, **options: Any) -> Any:
        return self._runner.run(self._client.model(*args, **options))

    def classify_stream(self, *args: Any, **options: Any) -> Iterator[Any]:
        outcomes = self._client.classify_stream(*args, **options)

        async def step() -> Any:
            return await anext(outcomes, None)

        try:
            while (outcome := self._runner.run(step())) is not None:
                yield outcome
        finally:
            self._runner.run(outcomes.aclose())


@pytest.fixture(params=[Client, Driven], ids=["blocking", "asyncio"])
def make_client(request: pytest.FixtureRequest) -> Any:
    """Both clients, each with the same face."""
    return request.param


@pytest.fixture
def client(target: str, make_client: Any) -> Iterator[Client]:
    """Tries once, so that a test sees each failure."""
    with make_client(target, timeout_s=7, retry=None) as client:
        yield client


@pytest.fixture
def refusal() -> type[Refusal]:
    return Refusal
