"""From a network to the bytes of an ONNX file, clean enough to publish.

Owns the exporter's settings and the cleaning; knows nothing of repositories or of whether the file is right (`parity`).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from attnserve.card import Preprocessing
from attnserve.export.servable import Servable

OPSET = 20


def to_onnx(servable: Servable, outputs: list[str], preprocessing: Preprocessing) -> bytes:
    """An ONNX model with input `images` (batch, H, W, 3) uint8 and the named outputs; the batch is dynamic."""
    example = torch.zeros(2, preprocessing.height, preprocessing.width, 3, dtype=torch.uint8)  # 1 could specialise
    return write(servable, {"images": example}, outputs)


def write(module: nn.Module, inputs: dict[str, Tensor], outputs: Sequence[str]) -> bytes:
    """An ONNX model of the module with the named outputs.

    The file holds no trace of the machine that made it: no stack traces, source paths or module names.

    Args:
        inputs: Examples of the arguments by the names they get, in order, each a batch of the same 2 or more; the
            first axis is dynamic, the others are not.
    """
    batch = torch.export.Dim("batch")
    with warnings.catch_warnings():
        # torch.export pickles its own tree specs; the warning names no code of ours.
        warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)`", category=FutureWarning)
        # That the inputs share one batch axis is what is wanted.
        warnings.filterwarnings("ignore", message="# The axis name: batch will not be used", category=UserWarning)
        program = torch.onnx.export(
            module.eval(),
            tuple(inputs.values()),
            dynamo=True,
            opset_version=OPSET,
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_shapes=tuple({0: batch} for _ in inputs),
            verbose=False,
        )
    if program is None:
        raise RuntimeError("torch.onnx.export returned no program")
    model = program.model_proto
    clean(model)
    return model.SerializeToString()


def clean(message: Any) -> None:
    """Clear documentation and metadata everywhere in an ONNX protobuf message, and the shapes of inner values."""
    for field, value in message.ListFields():
        if field.name in ("doc_string", "metadata_props", "value_info"):
            message.ClearField(field.name)
        elif field.message_type is not None:
            for child in value if field.is_repeated else (value,):
                clean(child)
