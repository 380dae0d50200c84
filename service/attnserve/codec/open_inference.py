"""Open Inference Protocol v2 messages <-> arrays, with Triton's semantics.

Raises `InvalidArgument` naming the field for whatever does not fit; replies always carry raw contents, one per output,
because the C++ client indexes them without looking.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Collection, Iterable, Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from attnserve.contract import Outputs
from attnserve.errors import InvalidArgument, Unimplemented
from attnserve.inference import grpc_service_pb2 as pb
from attnserve.postprocess import top_k
from attnserve.served_graph import INPUT


class WantedOutput(NamedTuple):
    """An output to return; `classification` > 0 turns it into that many `value:index:label` strings."""

    name: str
    classification: int = 0


def images_of(
    request: pb.ModelInferRequest, height: int, width: int, max_images: int
) -> NDArray[np.uint8] | list[bytes]:
    """The request's pictures: views (N, H, W, 3) uint8, or N encoded files where they came as BYTES."""
    if len(request.inputs) != 1 or request.inputs[0].name != INPUT:
        names = ", ".join(repr(tensor.name) for tensor in request.inputs) or "none"
        raise InvalidArgument(f"inputs: needs exactly one, {INPUT!r}; got {names}")
    tensor = request.inputs[0]
    if "shared_memory_region" in tensor.parameters:
        raise Unimplemented("shared memory inputs are not supported")
    shape = list(tensor.shape)
    if not shape or not 1 <= shape[0] <= max_images:
        raise InvalidArgument(f"{INPUT!r}: shape {shape} must begin with a batch of 1 to {max_images}")
    raw = _raw_contents(request)
    if tensor.datatype == "BYTES":
        return _encoded_images(tensor, raw, shape)
    if tensor.datatype != "UINT8":
        raise InvalidArgument(f"{INPUT!r}: datatype must be UINT8 or BYTES, got {tensor.datatype!r}")
    if shape[1:] != [height, width, 3]:
        raise InvalidArgument(f"{INPUT!r}: shape must be [n, {height}, {width}, 3], got {shape}")
    return _pixels(tensor, raw, shape)


def _raw_contents(request: pb.ModelInferRequest) -> bytes | None:
    if not request.raw_input_contents:
        return None
    if len(request.raw_input_contents) != 1:
        raise InvalidArgument(f"raw_input_contents: 1 input needs 1 entry, got {len(request.raw_input_contents)}")
    if request.inputs[0].HasField("contents"):
        raise InvalidArgument(f"{INPUT!r}: contents and raw_input_contents exclude each other")
    return request.raw_input_contents[0]


def _pixels(tensor: pb.ModelInferRequest.InferInputTensor, raw: bytes | None, shape: list[int]) -> NDArray[np.uint8]:
    count = math.prod(shape)
    given = len(tensor.contents.uint_contents) if raw is None else len(raw)
    if given != count:
        raise InvalidArgument(f"{INPUT!r}: shape {shape} needs {count} bytes, got {given}")
    if raw is not None:
        return np.frombuffer(raw, np.uint8).reshape(shape)
    values = np.asarray(tensor.contents.uint_contents, dtype=np.uint32)
    if values.max() > 255:
        raise InvalidArgument(f"{INPUT!r}: uint_contents holds values above 255")
    return values.astype(np.uint8).reshape(shape)


def _encoded_images(tensor: pb.ModelInferRequest.InferInputTensor, raw: bytes | None, shape: list[int]) -> list[bytes]:
    if shape[1:] not in ([], [1]):
        raise InvalidArgument(f"{INPUT!r}: BYTES must have shape [n] or [n, 1], got {shape}")
    elements = tensor.contents.bytes_contents if raw is None else _length_prefixed(raw)
    files = list(islice(elements, shape[0] + 1))  # one more tells enough: a message can hold millions of empty ones
    if len(files) != shape[0]:
        more = "or more" if len(files) > shape[0] else ""
        raise InvalidArgument(f"{INPUT!r}: shape {shape} needs {shape[0]} elements, got {len(files)} {more}".rstrip())
    return files


def _length_prefixed(raw: bytes) -> Iterable[bytes]:
    """Elements of a raw BYTES tensor: 4 bytes of little-endian length before each."""
    position = 0
    while position < len(raw):
        start = position + 4
        if start > len(raw):
            raise InvalidArgument(f"{INPUT!r}: raw BYTES contents end inside a length")
        (length,) = struct.unpack_from("<I", raw, position)
        position = start + length
        if position > len(raw):
            raise InvalidArgument(f"{INPUT!r}: raw BYTES contents end inside an element")
        yield raw[start:position]


def outputs_of(request: pb.ModelInferRequest, available: Collection[str]) -> list[WantedOutput]:
    """What to return; `probabilities` where the request names nothing."""
    wanted: list[WantedOutput] = []
    for output in request.outputs:
        if output.name not in available:
            raise InvalidArgument(f"outputs: unknown {output.name!r}; the model has {', '.join(sorted(available))}")
        if "shared_memory_region" in output.parameters:
            raise Unimplemented("shared memory outputs are not supported")
        wanted.append(WantedOutput(output.name, _classification_of(output)))
    if len({output.name for output in wanted}) != len(wanted):
        raise InvalidArgument("outputs: each may be asked for once")
    return wanted or [WantedOutput("probabilities")]


def _classification_of(output: pb.ModelInferRequest.InferRequestedOutputTensor) -> int:
    if "classification" not in output.parameters:
        return 0
    k = _integer(output.parameters["classification"])
    if k is None:
        raise InvalidArgument(f"outputs: classification of {output.name!r} must be an integer")
    if k < 0:
        raise InvalidArgument(f"outputs: classification of {output.name!r} must be positive, got {k}")
    if k and output.name not in ("probabilities", "logits"):
        raise InvalidArgument(f"outputs: {output.name!r} has no classes; classification needs probabilities or logits")
    return k


def timeout_s_of(request: pb.ModelInferRequest) -> float | None:
    """The `timeout` parameter (microseconds on the wire) in seconds; None where it is absent or 0."""
    for name in request.parameters:
        if name.startswith("triton_") and name != "triton_enable_empty_final_response":
            raise InvalidArgument(f"parameters: {name!r} is reserved")
    if "timeout" not in request.parameters:
        return None
    microseconds = _integer(request.parameters["timeout"])
    if microseconds is None:
        raise InvalidArgument("parameters: timeout must be an integer of microseconds")
    if microseconds < 0:
        raise InvalidArgument(f"parameters: timeout must not be negative, got {microseconds}")
    return microseconds / 1e6 if microseconds else None


def priority_of(request: pb.ModelInferRequest) -> int:
    """The `priority` parameter, 1 being the highest; 0, the model's default, where it is absent."""
    if "priority" not in request.parameters:
        return 0
    priority = _integer(request.parameters["priority"])
    if priority is None or priority < 0:
        raise InvalidArgument("parameters: priority must be a whole number, not negative")
    return priority


def _integer(parameter: pb.InferParameter) -> int | None:
    """The parameter's value where it is one of the two integer kinds."""
    if parameter.WhichOneof("parameter_choice") not in ("int64_param", "uint64_param"):
        return None
    return parameter.int64_param or parameter.uint64_param


def reply(
    request: pb.ModelInferRequest, version: str, wanted: Sequence[WantedOutput], result: Outputs, labels: Sequence[str]
) -> pb.ModelInferResponse:
    """The response, outputs in the order asked for."""
    response = pb.ModelInferResponse(model_name=request.model_name, model_version=version, id=request.id)
    for output in wanted:
        array = result[output.name]
        if output.classification:
            contents, shape, datatype = _classes(array, output.classification, labels)
        else:
            contents, shape, datatype = array.astype("<f4", copy=False).tobytes(), array.shape, "FP32"
        response.outputs.add(name=output.name, datatype=datatype, shape=shape)
        response.raw_output_contents.append(contents)
    return response


def _classes(scores: NDArray[np.float32], k: int, labels: Sequence[str]) -> tuple[bytes, tuple[int, int], str]:
    """The k best of each row of (N, K) scores as a BYTES tensor (N, k) of `value:index:label`."""
    k = min(k, scores.shape[1])
    elements: list[bytes] = []
    for row in scores:
        for index in top_k(row, k):
            text = f"{row[index]:f}:{index}:{labels[index]}".encode()
            elements += (struct.pack("<I", len(text)), text)
    return b"".join(elements), (len(scores), k), "BYTES"
