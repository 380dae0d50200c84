"""Bodies of the Open Inference Protocol over REST <-> the messages of its gRPC form, with Triton's binary tensors.

Raises `InvalidArgument` naming the field for whatever is no such body; what a request means is for `open_inference` to
judge, alike for both forms.
"""

from __future__ import annotations

import base64
import binascii
import zlib
from collections.abc import Mapping
from itertools import chain
from typing import Any, NamedTuple

import numpy as np

from attnserve.codec.json_form import read, written
from attnserve.errors import InvalidArgument, TooLarge
from attnserve.inference import grpc_service_pb2 as pb
from attnserve.served_graph import INPUT

BASE64 = "base64"
"""The `content_type` of an input whose strings are files in base64, as MLServer calls it."""

MOST_JSON_BYTES = 4 << 20
"""Of a request. Python's parser lets nobody else run meanwhile: a twentieth of a second for so many numbers."""

_EITHER = 32 + zlib.MAX_WBITS  # gzip's header or zlib's, which is what HTTP calls deflate
_MOST_NAMES = 1024  # of tensors or parameters in one request; no model has as many
_MOST_DIMENSIONS = 16
_INT64 = range(-(1 << 63), 1 << 63)
_UINT64 = range(1 << 64)


class Body(NamedTuple):
    """What came with a POST: `json_bytes` of JSON, then tensors; all of it is JSON where that is None."""

    data: bytes
    json_bytes: int | None = None


class Binary(NamedTuple):
    """Which outputs are to come as binary data: those named True, and those not named where `others`."""

    named: Mapping[str, bool]
    others: bool

    @property
    def everything(self) -> bool:
        """Whether no output is to be written as JSON."""
        return all(self.named.values()) if self.named else self.others

    def __call__(self, output: str) -> bool:
        """Whether this output is."""
        return self.named.get(output, self.others)


def unpacked(data: bytes, encoding: str, most_bytes: int) -> bytes:
    """A body as its Content-Encoding says: gzip, deflate or none. Raises `TooLarge` as soon as it is."""
    if encoding.lower() in ("", "identity"):
        return data
    if encoding.lower() not in ("gzip", "deflate"):
        raise InvalidArgument(f"Content-Encoding: may be gzip or deflate, got {encoding!r}")
    unpacking = zlib.decompressobj(_EITHER)
    try:
        found = unpacking.decompress(data, most_bytes + 1)
    except zlib.error as error:
        raise InvalidArgument(f"Content-Encoding: the body is not {encoding}: {error}") from None
    if len(found) > most_bytes:
        raise too_large(most_bytes)
    if not unpacking.eof or unpacking.unused_data:
        raise InvalidArgument(f"Content-Encoding: the body is not one whole {encoding}")
    return found


def too_large(most_bytes: int) -> TooLarge:
    """What is said of a body that has more."""
    hint = ": send pictures as binary data" if most_bytes == MOST_JSON_BYTES else " (max_request_bytes)"
    return TooLarge(f"a body may have {most_bytes} bytes{hint}")


def infer_request(body: Body, model: str, version: str) -> pb.ModelInferRequest:
    """The request to infer; its binary and numeric tensors are in `raw_input_contents`."""
    request = pb.ModelInferRequest(model_name=model, model_version=version)
    if body.json_bytes == 0:
        return _one_file(request, body.data)
    head = len(body.data) if body.json_bytes is None else body.json_bytes
    if head > len(body.data):
        raise InvalidArgument(f"the body has {len(body.data)} bytes, of which {head} were to be JSON")
    document = read(body.data[:head])
    request.id = _text(document.get("id", ""), "id")
    _set_parameters(request.parameters, document, "parameters")
    rest = memoryview(body.data)[head:]
    for tensor in _tensors(document, "inputs"):
        rest = _add_input(request, tensor, rest)
    for tensor in _tensors(document, "outputs"):
        output = request.outputs.add(name=_text(tensor.get("name"), "outputs: name"))
        _set_parameters(output.parameters, tensor, f"outputs: parameters of {output.name!r}")
    if rest:
        raise InvalidArgument(f"the body has {len(rest)} bytes more than JSON and binary_data_size account for")
    return request


def index_request(body: Body) -> pb.RepositoryIndexRequest:
    """The request for the index: `ready`, if anything."""
    ready = _optional_document(body).get("ready", False)
    if not isinstance(ready, bool):
        raise InvalidArgument("ready: must be true or false")
    return pb.RepositoryIndexRequest(ready=ready)


def load_parameters(body: Body) -> dict[str, pb.ModelRepositoryParameter]:
    """The `parameters` of a load or an unload."""
    found: dict[str, pb.ModelRepositoryParameter] = {}
    for name, value in _object(_optional_document(body), "parameters").items():
        parameter = _parameter(value, f"parameters: {name!r}")
        kind = parameter.WhichOneof("parameter_choice")
        if kind not in ("bool_param", "int64_param", "string_param"):
            raise InvalidArgument(f"parameters: {name!r}: must be a string, true, false or a whole number")
        found[name] = pb.ModelRepositoryParameter(**{kind: getattr(parameter, kind)})
    return found


def binary_outputs(request: pb.ModelInferRequest) -> Binary:
    """How the request wants its outputs."""
    others = _flag(request.parameters, "binary_data_output", "parameters")
    named = {output.name: _flag(output.parameters, "binary_data", f"outputs: {output.name!r}", others)
             for output in request.outputs}  # fmt: skip
    return Binary(named, others)


def infer_reply(response: pb.ModelInferResponse, binary: Binary) -> Body:
    """The body of an answer. Raises `ValueError` where a number that is none in JSON was not wanted as binary data."""
    outputs: list[dict[str, Any]] = []
    parts: list[bytes] = []
    for tensor, raw in zip(response.outputs, response.raw_output_contents, strict=True):
        output: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}
        if binary(tensor.name):
            output["parameters"] = {"binary_data_size": len(raw)}
            parts.append(raw)
        else:
            output["data"] = _strings(raw) if tensor.datatype == "BYTES" else np.frombuffer(raw, "<f4").tolist()
        outputs.append(output)
    named = {"id": response.id} if response.id else {}
    reply = {**named, "model_name": response.model_name, "model_version": response.model_version, "outputs": outputs}
    head = written(reply)
    return Body(b"".join([head, *parts]), len(head) if parts else None)


def _one_file(request: pb.ModelInferRequest, data: bytes) -> pb.ModelInferRequest:
    """A body without JSON, Triton's raw request: one encoded picture."""
    request.inputs.add(name=INPUT, datatype="BYTES", shape=[1]).contents.bytes_contents.append(data)
    return request


def _optional_document(body: Body) -> dict[str, Any]:
    return read(body.data) if body.data.strip() else {}


def _object(within: Mapping[str, Any], name: str, path: str = "") -> dict[str, Any]:
    found = within.get(name, {})
    if not isinstance(found, dict):
        raise InvalidArgument(f"{path or name}: must be an object")
    if len(found) > _MOST_NAMES:
        raise InvalidArgument(f"{path or name}: at most {_MOST_NAMES}, got {len(found)}")
    return found


def _tensors(document: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    found = document.get(name, [])
    if not isinstance(found, list) or not all(isinstance(tensor, dict) for tensor in found):
        raise InvalidArgument(f"{name}: must be an array of objects")
    if len(found) > _MOST_NAMES:
        raise InvalidArgument(f"{name}: at most {_MOST_NAMES}, got {len(found)}")
    return found


def _text(value: object, path: str) -> str:
    if not isinstance(value, str):
        raise InvalidArgument(f"{path}: must be a string")
    return value


def _set_parameters(parameters: Any, within: Mapping[str, Any], path: str) -> None:
    """Fill a message's map of parameters."""
    for name, value in _object(within, "parameters", path).items():
        parameters[name].CopyFrom(_parameter(value, f"{path}: {name!r}"))


def _parameter(value: object, path: str) -> pb.InferParameter:
    if isinstance(value, bool):
        return pb.InferParameter(bool_param=value)
    if isinstance(value, int) and value in _INT64:
        return pb.InferParameter(int64_param=value)
    if isinstance(value, int) and value in _UINT64:
        return pb.InferParameter(uint64_param=value)
    if isinstance(value, float):
        return pb.InferParameter(double_param=value)
    if isinstance(value, str):
        return pb.InferParameter(string_param=value)
    raise InvalidArgument(f"{path}: must be a string, true, false or a number of 64 bits")


def _flag(parameters: Mapping[str, pb.InferParameter], name: str, path: str, default: bool = False) -> bool:
    if name not in parameters:
        return default
    if parameters[name].WhichOneof("parameter_choice") != "bool_param":
        raise InvalidArgument(f"{path}: {name} must be true or false")
    return parameters[name].bool_param


def _add_input(request: pb.ModelInferRequest, tensor: Mapping[str, Any], rest: memoryview) -> memoryview:
    """Add one input; returns what it left of the binary data."""
    name = _text(tensor.get("name"), "inputs: name")
    datatype = _text(tensor.get("datatype"), f"{name!r}: datatype")
    added = request.inputs.add(name=name, datatype=datatype, shape=_shape(tensor.get("shape"), name))
    _set_parameters(added.parameters, tensor, f"{name!r}: parameters")
    if "binary_data_size" in added.parameters:
        if "data" in tensor:
            raise InvalidArgument(f"{name!r}: data and binary_data_size exclude each other")
        size = _object(tensor, "parameters")["binary_data_size"]
        if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= len(rest):
            raise InvalidArgument(f"{name!r}: binary_data_size must be within 0..{len(rest)}, what the body has left")
        request.raw_input_contents.append(bytes(rest[:size]))
        return rest[size:]
    data = _flat(tensor.get("data", []), name)
    if datatype == "BYTES":
        added.contents.bytes_contents.extend(_files(data, name, _content_type(added.parameters, name)))
    elif datatype == "UINT8":
        request.raw_input_contents.append(_pixels(data, name))
    return rest  # no model has an input of another type


def _shape(shape: object, name: str) -> list[int]:
    if not isinstance(shape, list) or len(shape) > _MOST_DIMENSIONS:
        raise InvalidArgument(f"{name!r}: shape must be an array of at most {_MOST_DIMENSIONS} numbers")
    if not all(isinstance(size, int) and not isinstance(size, bool) and size in _INT64 for size in shape):
        raise InvalidArgument(f"{name!r}: shape must be an array of whole numbers")
    return shape


def _flat(data: object, name: str) -> list[Any]:
    """The elements of nested arrays, in row-major order."""
    if not isinstance(data, list):
        raise InvalidArgument(f"{name!r}: data must be an array")
    for _ in range(_MOST_DIMENSIONS):
        if not (data and isinstance(data[0], list)):
            return data
        if not all(isinstance(row, list) for row in data):
            break
        data = list(chain.from_iterable(data))
    raise InvalidArgument(f"{name!r}: data is nested unevenly or too deeply")


def _pixels(data: list[Any], name: str) -> bytes:
    try:
        return bytes(data)
    except (TypeError, ValueError):
        raise InvalidArgument(f"{name!r}: data must be whole numbers from 0 to 255") from None


def _content_type(parameters: Mapping[str, pb.InferParameter], name: str) -> str:
    content_type = parameters["content_type"].string_param if "content_type" in parameters else "str"
    if content_type not in ("str", BASE64):
        raise InvalidArgument(f"{name!r}: content_type may be str or {BASE64}, got {content_type!r}")
    return content_type


def _files(data: list[Any], name: str, content_type: str) -> list[bytes]:
    if not all(isinstance(element, str) for element in data):
        raise InvalidArgument(f"{name!r}: data must be strings")
    if content_type != BASE64:
        return [element.encode() for element in data]
    try:
        return [base64.b64decode(element, validate=True) for element in data]
    except (binascii.Error, ValueError):
        raise InvalidArgument(f"{name!r}: data must be {BASE64}") from None


def _strings(raw: bytes) -> list[str]:
    """Elements of a raw BYTES tensor of ours, each behind 4 bytes of length."""
    found = []
    position = 0
    while position < len(raw):
        start = position + 4
        position = start + int.from_bytes(raw[position:start], "little")
        found.append(raw[start:position].decode())
    return found
