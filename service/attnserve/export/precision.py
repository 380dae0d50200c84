"""From an exact float32 ONNX file to one that computes in float16 or int8, and what that costs.

Owns which nodes are narrowed, the two conversions and the rule that judges them; knows nothing of torch or of cards.
Attention gates, normalisation and the softmax stay in float32, and so do all inputs and outputs. How int8 is written
is `int8`'s.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from attnserve.errors import ConfigError
from attnserve.export import int8, onnx_writer
from attnserve.measure import spaced

PRECISIONS = ("fp32", "fp16", "int8")
LARGEST_FLOAT16 = 65504.0  # above it float16 has only infinity
CALIBRATION_IMAGES = 512  # ranges of activations settle long before; more only takes longer
BATCH_SIZE = 32  # every intermediate map of a batch is in memory at once
NARROW_OPS = ("Conv", "Gemm", "MatMul")
FOLLOWING_OPS = (*NARROW_OPS, "Relu", "Add", "Mul", "MaxPool", "Identity")  # fp16 also flows through these


@dataclass(frozen=True)
class Precision:
    """How a file computes, and how much accuracy that may cost.

    Attributes:
        kind: `fp32`, `fp16` or `int8`.
        images: (N, H, W, 3) uint8 real pictures: fp16 checks its range on them, int8 takes its scales from them. Of
            more than `CALIBRATION_IMAGES`, evenly spaced ones are used. Not needed for fp32.
        max_accuracy_drop: In points of 100, against the fp32 file on the same held-out pictures.
    """

    kind: str = "fp32"
    images: NDArray[np.uint8] | None = None
    max_accuracy_drop: float = 0.5

    def __post_init__(self) -> None:
        if self.kind not in PRECISIONS:
            raise ConfigError(f"precision: must be one of {', '.join(PRECISIONS)}, got {self.kind!r}")
        if not 0 <= self.max_accuracy_drop <= 100:
            raise ConfigError(f"max-accuracy-drop: points within 0..100, got {self.max_accuracy_drop}")
        if self.kind != "fp32" and (self.images is None or not len(self.images)):
            raise ConfigError(f"--precision {self.kind}: needs pictures, by --calibration-images or --calibrate")


def narrowed(model: bytes, precision: Precision) -> bytes:
    """A float32 file from `onnx_writer` in the given precision.

    Raises:
        ConfigError: float16 cannot hold a weight, or a value computed for one of the pictures.
    """
    if precision.kind == "fp32" or precision.images is None:
        return model
    proto = onnx.load_model_from_string(model)
    few = precision.images[spaced(len(precision.images), CALIBRATION_IMAGES)]
    if precision.kind == "fp16":
        converted = _float16(proto, few)
    else:
        converted = int8.int8(proto, gate_nodes(proto.graph), _batches(few))
    onnx_writer.clean(converted)
    onnx.checker.check_model(converted)
    return bytes(converted.SerializeToString())


def compare(
    exact: NDArray[np.float32], narrow: NDArray[np.float32], labels: NDArray[np.int64]
) -> dict[str, float | int]:
    """What a narrower type costs, from both files' (N, K) scores of the same pictures.

    Accuracies and agreement (share of equal answers) are 0..1, `accuracy_drop_points` is in points of 100.
    """
    ours, theirs = narrow.argmax(1), exact.argmax(1)
    accuracy, accuracy_fp32 = float(np.mean(ours == labels)), float(np.mean(theirs == labels))
    return {
        "images": len(labels),
        "accuracy_fp32": accuracy_fp32,
        "accuracy": accuracy,
        "accuracy_drop_points": round(100 * (accuracy_fp32 - accuracy), 4),
        "agreement": float(np.mean(ours == theirs)),
    }


def check(cost: dict[str, float | int], max_accuracy_drop: float) -> None:
    """Raise `ConfigError` where the drop is over the limit, in points."""
    if cost["accuracy_drop_points"] > max_accuracy_drop:
        raise ConfigError(
            f"precision: accuracy falls from {cost['accuracy_fp32']:.2%} to {cost['accuracy']:.2%} on {cost['images']}"
            f" pictures, more than the {max_accuracy_drop:g} points of --max-accuracy-drop"
        )


def gate_nodes(graph: Any) -> set[str]:
    """Names of the nodes that compute attention, found by structure. Nodes must be in topological order.

    That is what one factor of an elementwise product depends on and the other does not, which holds for every way of
    writing CBAM or BAM, and the matrix products of two computed factors, which only self-attention has.
    """
    maker: dict[str, int] = {}  # tensor -> the set of nodes it depends on, one bit each
    gates = 0
    for position, node in enumerate(graph.node):
        needs = 1 << position
        for name in node.input:
            needs |= maker.get(name, 0)
        maker |= dict.fromkeys(node.output, needs)
        if node.op_type == "Mul" and all(name in maker for name in node.input):
            gates |= maker[node.input[0]] ^ maker[node.input[1]]
        if node.op_type == "MatMul" and all(name in maker for name in node.input):
            gates |= 1 << position
    return {node.name for position, node in enumerate(graph.node) if gates >> position & 1}


def _float16(model: Any, images: NDArray[np.uint8]) -> Any:
    """Weights and maps of the trunk in float16."""
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    kept = gate_nodes(model.graph) | _before_the_first_convolution(model.graph)
    kept |= {node.name for node in model.graph.node if node.op_type not in FOLLOWING_OPS}
    _check_range(model, kept, images)
    narrow = convert_float_to_float16(model, keep_io_types=True, op_block_list=[], node_block_list=sorted(kept))
    _merge_twins(narrow.graph)
    _join_float32(narrow.graph)
    OnnxModel(narrow).topological_sort(is_deterministic=True)  # the converter puts its casts last
    return narrow


def _merge_twins(graph: Any) -> None:
    """Keep one of the equal casts that the converter of onnxruntime before 1.32 writes for each reader of a tensor."""
    for nodes in (graph.node, graph.value_info):
        seen: set[str] = set()
        for position in range(len(nodes) - 1, -1, -1):
            entry = nodes[position]
            name = entry.output[0] if hasattr(entry, "output") else entry.name
            if name in seen:
                del nodes[position]
            seen.add(name)


def _before_the_first_convolution(graph: Any) -> set[str]:
    """The normalisation: small work whose rounding every layer would see."""
    names: list[str] = [node.name for node in graph.node]
    first = next((i for i, node in enumerate(graph.node) if node.op_type in NARROW_OPS), len(names))
    return set(names[:first])


def _check_range(model: Any, kept: set[str], images: NDArray[np.uint8]) -> None:
    """Refuse weights and activations that float16 turns into infinity.

    Asked of the float32 file: a CPU computes float16 graphs in float32 and would not show it.
    """
    nodes = [node for node in model.graph.node if node.name not in kept]
    used = {name for node in nodes for name in node.input}
    for weight in model.graph.initializer:
        if weight.name in used and weight.data_type == onnx.TensorProto.FLOAT:
            _refuse_overflow(weight.name, onnx.numpy_helper.to_array(weight))
    values = [name for node in nodes for name in node.output]
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    del probe.graph.output[:]
    probe.graph.output.extend(onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, None) for n in values)
    session = onnxruntime.InferenceSession(probe.SerializeToString(), providers=["CPUExecutionProvider"])
    for batch in _batches(images):
        for name, value in zip(values, session.run(values, {"images": batch}), strict=True):
            _refuse_overflow(name, value)


def _refuse_overflow(name: str, value: NDArray[Any]) -> None:
    largest = float(np.max(np.abs(value), initial=0.0))
    if not largest <= LARGEST_FLOAT16:  # catches NaN too
        raise ConfigError(f"--precision fp16: {name} reaches {largest:.3g}, float16 ends at {LARGEST_FLOAT16:.0f}")


def _join_float32(graph: Any) -> None:
    """Between two nodes kept in float32, take out the converter's detour through float16."""
    makers = {name: node for node in graph.node for name in node.output}
    for node in graph.node:
        before = makers.get(node.input[0]) if node.op_type == "Cast" else None
        if before is not None and before.op_type == "Cast" and _target(before) == onnx.TensorProto.FLOAT16:
            node.op_type = "Identity"  # kept for its name, which may be an output's
            del node.attribute[:]
            node.input[0] = before.input[0]
    wanted = {name for node in graph.node for name in node.input} | {output.name for output in graph.output}
    for node in [node for node in graph.node if not wanted & set(node.output)]:
        graph.node.remove(node)


def _target(cast: Any) -> int:
    return int(next(attribute.i for attribute in cast.attribute if attribute.name == "to"))


def _batches(images: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
    return (images[start : start + BATCH_SIZE] for start in range(0, len(images), BATCH_SIZE))
