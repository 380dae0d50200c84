"""Requests ready to be sent, each with the check of its answer; no sockets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from attnserve.inference import grpc_service_pb2 as inference
from attnserve.v1 import attention_pb2 as v1

from .events import WrongAnswer
from .http2 import grpc_message
from .pictures import TOLERANCE, Pictures

PATHS = {
    "unary": "/attnserve.v1.AttentionService/Classify",
    "stream": "/attnserve.v1.AttentionService/ClassifyStream",
    "infer": "/inference.GRPCInferenceService/ModelInfer",
}
DIFFERENT_REQUESTS = 16

Check = Callable[[bytes], None]


@dataclass(frozen=True)
class Request:
    """What is sent, how many images it holds, and the check of the answer, which raises `WrongAnswer`."""

    body: bytes
    images: int
    check: Check


def requests(form: str, model: str, pictures: Pictures, images: int) -> list[Request]:
    """Different requests of so many images each, to be sent in turns; `form` as in `PATHS`, or `http` for raw bytes."""
    made = []
    for first in range(DIFFERENT_REQUESTS):
        chosen = [index % len(pictures.views) for index in range(first, first + images)]
        expected = pictures.probabilities[chosen]
        if form == "http":
            body, check = pictures.views[chosen].tobytes(), _raw_check(expected)
        elif form == "infer":
            body, check = grpc_message(_infer(model, pictures.views[chosen])), _infer_check(expected)
        else:
            body = grpc_message(_classify(model, pictures, chosen))
            check = _classify_check(expected) if form == "unary" else _stream_check(expected)
        made.append(Request(body, images, check))
    return made


def _classify(model: str, pictures: Pictures, chosen: list[int]) -> bytes:
    images = []
    for index in chosen:
        if pictures.files:
            images.append(v1.Image(encoded=pictures.files[index]))
        else:
            height, width = pictures.views[index].shape[:2]
            raw = v1.RawImage(pixels=pictures.views[index].tobytes(), height=height, width=width)
            images.append(v1.Image(raw=raw))
    return v1.ClassifyRequest(model=model, images=images, top_k=1).SerializeToString()


def _infer(model: str, views: NDArray[np.uint8]) -> bytes:
    tensor = inference.ModelInferRequest.InferInputTensor(name="images", datatype="UINT8", shape=views.shape)
    output = inference.ModelInferRequest.InferRequestedOutputTensor(name="probabilities")
    return inference.ModelInferRequest(
        model_name=model, inputs=[tensor], outputs=[output], raw_input_contents=[views.tobytes()]
    ).SerializeToString()


def _classify_check(expected: NDArray[np.float32]) -> Check:
    check_results = _results_check(expected)

    def check(data: bytes) -> None:
        check_results(v1.ClassifyResponse.FromString(data).results)

    return check


def _stream_check(expected: NDArray[np.float32]) -> Check:
    check_results = _results_check(expected)

    def check(data: bytes) -> None:
        reply = v1.ClassifyStreamResponse.FromString(data)
        if reply.code:
            raise WrongAnswer(f"status {reply.code}: {reply.message}")
        check_results(reply.response.results)

    return check


def _results_check(expected: NDArray[np.float32]) -> Callable[[Sequence[v1.ImageResult]], None]:
    """Of one prediction per picture."""
    rows = [[float(value) for value in row] for row in expected]
    best = [max(row) for row in rows]

    def check(results: Sequence[v1.ImageResult]) -> None:
        if len(results) != len(rows):
            raise WrongAnswer(f"{len(results)} answers for {len(rows)} pictures")
        for row, highest, result in zip(rows, best, results, strict=True):
            (found,) = result.predictions
            allowed = TOLERANCE * highest
            if abs(found.probability - row[found.index]) > allowed or found.probability < highest - allowed:
                raise WrongAnswer(f"class {found.index} with {found.probability}, expected {highest}")

    return check


def _infer_check(expected: NDArray[np.float32]) -> Check:
    check_bytes = _raw_check(expected)

    def check(data: bytes) -> None:
        reply = inference.ModelInferResponse.FromString(data)
        if [output.name for output in reply.outputs] != ["probabilities"]:
            raise WrongAnswer(f"outputs {[output.name for output in reply.outputs]}")
        check_bytes(reply.raw_output_contents[0])

    return check


def _raw_check(expected: NDArray[np.float32]) -> Check:
    """Of float32 probabilities, row by row; the tolerance is of each row's best."""
    flat = np.ascontiguousarray(expected).reshape(-1)
    allowed = np.repeat(TOLERANCE * expected.max(axis=1), expected.shape[1])

    def check(data: bytes) -> None:
        found = np.frombuffer(data, np.float32)
        if found.shape != flat.shape or not (np.abs(found - flat) <= allowed).all():
            raise WrongAnswer("other probabilities than ONNX Runtime's")

    return check
