"""Whole inputs of every kind, to be broken."""

from __future__ import annotations

import base64
import functools
import io
import json
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf import text_format
from google.protobuf.message import Message
from onnx import (
    AttributeProto,
    ModelProto,
    SparseTensorProto,
    StringStringEntryProto,
    TensorProto,
    helper,
    numpy_helper,
)
from PIL import Image

from attnserve.inference import grpc_service_pb2 as oip
from attnserve.inference import model_config_pb2
from attnserve.v1 import attention_pb2 as pb

REPOSITORY = Path(__file__).parents[2] / "model_repo"
SIDE = 28
_SMALL = 64 << 10  # bytes: a larger picture costs more time than it shows


def committed(name: str) -> list[bytes]:
    """The files of that name in model_repo."""
    return [path.read_bytes() for path in sorted(REPOSITORY.rglob(name))]


def corpus() -> list[Path]:
    """The files of real pictures, whole and broken, below the folder that FUZZ_CORPUS names; none without it."""
    folder = os.environ.get("FUZZ_CORPUS")
    return sorted(path for path in Path(folder).rglob("*") if path.is_file()) if folder else []


@functools.cache
def pictures() -> list[bytes]:
    """Files of every format that Pillow writes, some that unpack to far more than they are, and the small real ones."""
    base = Image.effect_mandelbrot((60, 40), (-2, -1, 1, 1), 20)
    exif = Image.Exif()
    exif[0x0112] = 6
    wanted = [("JPEG", "RGB", {"exif": exif}), ("JPEG", "RGB", {"progressive": True}), ("JPEG", "L", {})]
    wanted += [("JPEG", "RGB", {"subsampling": "4:1:1", "restart_marker_blocks": 2}), ("JPEG", "CMYK", {})]
    wanted += [("MPO", "RGB", {"save_all": True, "append_images": [base.convert("RGB")]})]
    wanted += [("PNG", mode, {}) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")]
    wanted += [("PNG", "RGB", {"exif": exif}), ("PNG", "RGB", {"save_all": True, "append_images": [base]})]
    wanted += [("WEBP", "RGB", {"exif": exif}), ("WEBP", "RGBA", {"lossless": True}), ("WEBP", "RGBA", {})]
    wanted += [("WEBP", "RGB", {"save_all": True, "append_images": [base.convert("RGB")]})]
    wanted += [(format, "L", {}) for format in ("GIF", "BMP", "TIFF", "ICO", "PPM", "TGA", "SGI", "PCX")]
    files = [_file(base.convert("L").convert(mode), format, **options) for format, mode, options in wanted]
    bombs = [_file(Image.new("L", (side, side)), format) for format, side in (("PNG", 9000), ("WEBP", 4000))]
    real = [path.read_bytes() for path in corpus() if path.stat().st_size <= _SMALL]
    return [*files, *bombs, *real]


def _file(image: Image.Image, format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def tensors() -> list[oip.ModelInferRequest]:
    """Requests of the Open Inference Protocol."""
    encoded = b"".join(struct.pack("<I", 9) + b"a picture" for _ in range(2))
    found = []
    for datatype, shape, raw in [("UINT8", [1, SIDE, SIDE, 3], bytes(SIDE * SIDE * 3)), ("BYTES", [2], encoded)]:
        request = oip.ModelInferRequest(model_name="m", id="1", raw_input_contents=[raw])
        request.inputs.add(name="images", datatype=datatype, shape=shape)
        request.outputs.add(name="probabilities").parameters["classification"].int64_param = 3
        request.outputs.add(name="logits")
        request.parameters["timeout"].int64_param = 1000
        request.parameters["priority"].uint64_param = 1
        found.append(request)
    typed = oip.ModelInferRequest(model_name="m")
    typed.inputs.add(name="images", datatype="BYTES", shape=[1, 1]).contents.bytes_contents.append(b"a picture")
    numbers = oip.ModelInferRequest(model_name="m")
    numbers.inputs.add(name="images", datatype="UINT8", shape=[1, SIDE, SIDE, 3])
    numbers.inputs[0].contents.uint_contents.extend([7] * SIDE * SIDE * 3)
    return [*found, typed, numbers]


def requests() -> list[pb.ClassifyRequest]:
    """Requests of attnserve.v1."""
    raw = pb.Image(raw=pb.RawImage(pixels=bytes(12), height=2, width=2, channels=3))
    view = pb.Image(raw=pb.RawImage(pixels=bytes(SIDE * SIDE), height=SIDE, width=SIDE, channels=1))
    file = pb.Image(encoded=_file(Image.new("RGB", (9, 8)), "PNG"))
    full = pb.AttentionOptions(level=pb.ATTENTION_LEVEL_FULL, sites=["bam1", "bam3"])
    asked = {"explain": pb.ExplainOptions(layers=["last"], method="gradcam", top_k=2)}
    drawn = pb.MapOptions(form=pb.MAP_FORM_OVERLAY, colormap="viridis", alpha=0.3)
    return [
        pb.ClassifyRequest(model="m", images=[raw, file], attention=full),
        pb.ClassifyRequest(model="m", images=[view, raw], attention=full, top_k=5, maps=drawn),
        pb.ClassifyRequest(model="m", images=[view], maps=pb.MapOptions(form=pb.MAP_FORM_NORMALISED), **asked),
        pb.ClassifyRequest(model="m", images=[file], explain=pb.ExplainOptions(classes=[0, 9]), attention=full),
    ]


def rest_bodies() -> list[tuple[dict[str, Any], bytes]]:
    """JSON, and the tensors that follow it."""
    pixels = {"name": "images", "datatype": "UINT8", "shape": [1, SIDE, SIDE, 3]}
    listed = {**pixels, "data": np.zeros((SIDE, SIDE, 3), int).tolist()}
    binary = {**pixels, "parameters": {"binary_data_size": SIDE * SIDE * 3}}
    file = {"name": "images", "datatype": "BYTES", "shape": [1], "data": [base64.b64encode(b"a picture").decode()]}
    wanted = [{"name": "probabilities", "parameters": {"classification": 2, "binary_data": True}}, {"name": "logits"}]
    return [
        ({"id": "1", "inputs": [binary], "outputs": wanted, "parameters": {"timeout": 5}}, bytes(SIDE * SIDE * 3)),
        ({"inputs": [binary], "parameters": {"binary_data_output": True, "priority": 1}}, bytes(SIDE * SIDE * 3)),
        ({"inputs": [{**file, "parameters": {"content_type": "base64"}}], "outputs": wanted}, b""),
        ({"inputs": [listed]}, b""),
        ({"ready": True}, b""),
        ({"parameters": {"unload_dependents": True, "config": "{}", "number": 4}}, b""),
    ]


def configs() -> list[model_config_pb2.ModelConfig]:
    """Committed config.pbtxt, nameless so that they fit any folder, and one that says all it can."""
    found = [text_format.Parse(text, model_config_pb2.ModelConfig()) for text in committed("config.pbtxt")[:2]]
    for config in found:
        config.name = ""
        config.parameters.clear()
    full = model_config_pb2.ModelConfig()
    full.CopyFrom(found[0])
    full.version_policy.specific.versions.append(1)
    full.instance_group.add(count=2, gpus=[0])
    batching = full.dynamic_batching
    batching.preferred_batch_size.extend([4, 8])
    batching.max_queue_delay_microseconds, batching.priority_levels, batching.default_priority_level = 100, 3, 2
    batching.default_queue_policy.default_timeout_microseconds = 1000
    return [*found, full]


def access_files() -> list[dict[str, Any]]:
    """What an access file says."""
    lab = {"token_sha256": ["0123456789abcdef" * 4], "certificates": ["spiffe://lab/robot"], "models": ["fashion-*"]}
    rates = {"requests_per_s": 100, "images_per_s": 2000.5, "burst_s": 2}
    operator = {"token_sha256": ["f" * 64, "e" * 64], "rights": ["metadata", "admin"]}
    return [
        {"clients": {"lab": {**lab, **rates}, "operator": operator}, "anonymous": {"rights": ["metadata"]}},
        {"clients": {"lab": {**lab, "rights": ["infer", "GetModel"]}}},
        {"anonymous": {"requests_per_s": 5, "models": ["*", "a?[bc]"]}},
    ]


def graphs() -> list[ModelProto]:
    """Small graphs that hold every message of ONNX that is walked, and the small ones of model_repo."""
    weights = numpy_helper.from_array(np.ones(3, np.float32), "w")
    sparse = SparseTensorProto(values=weights, indices=numpy_helper.from_array(np.arange(3), "i"), dims=[9])
    value = helper.make_tensor_value_info("x", 1, ["batch", 3])
    inner = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "inner", [value], [value], [weights])
    branch = helper.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=inner)
    constant = helper.make_node("Constant", [], ["c"], value=weights)
    all_kinds = helper.make_node("Anything", ["x"], ["z"], domain="com.microsoft", f=0.5, i=3, s="text")
    all_kinds.attribute.add(name="graphs", type=AttributeProto.GRAPHS).graphs.append(inner)
    all_kinds.attribute.add(name="tensors", type=AttributeProto.TENSORS).tensors.append(weights)
    all_kinds.attribute.add(name="sparse", type=AttributeProto.SPARSE_TENSOR).sparse_tensor.CopyFrom(sparse)
    all_kinds.attribute.add(name="numbers", type=AttributeProto.INTS).ints.extend([1, 2, 3])
    nodes = [branch, constant, all_kinds]
    made = helper.make_graph(nodes, "g", [value], [value], [weights], sparse_initializer=[sparse])
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    full = helper.make_model(made, opset_imports=opsets, ir_version=10)
    return [full, *(ModelProto.FromString(data) for data in committed("last.onnx")[:2])]


def forbidden_parts() -> list[Message]:
    """What must not get into a graph that is served."""
    location = StringStringEntryProto(key="location", value="weights.bin")
    elsewhere = TensorProto(name="w", dims=[1], data_type=1, external_data=[location], data_location=1)
    engine = helper.make_node("EPContext", [], ["y"], domain="com.microsoft", ep_cache_context="../x", embed_mode=0)
    foreign = helper.make_node("Run", ["x"], ["y"], domain="com.evil")
    return [elsewhere, engine, foreign, helper.make_opsetid("com.evil", 1)]


def card(files: dict[str, str]) -> dict[str, Any]:
    """A committed card of a model called net, of those files: with its sites, and the layers whose graphs are there."""
    found = json.loads((REPOSITORY / "fashion-mnist-bam/1/model.json").read_text())
    explain = [entry for entry in found["explain"] if entry["file"] in files]
    records = {key: {"by": "somebody"} for key in ("architecture", "training", "calibration", "made_with")}
    kept = {"name": "net", "files": files, "explain": explain, "evaluation": found["evaluation"], "faithfulness": []}
    return {**found, **records, **kept}
