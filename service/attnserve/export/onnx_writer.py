"""From a servable network to the bytes of an ONNX file, clean enough to publish.

Owns the exporter's settings and the cleaning; knows nothing of repositories or of whether the file is right (`parity`).
"""

from __future__ import annotations

import warnings
from typing import Any

import torch

from attnserve.card import Preprocessing
from attnserve.export.servable import Servable

OPSET = 20


def to_onnx(servable: Servable, outputs: list[str], preprocessing: Preprocessing) -> bytes:
    """An ONNX model with input `images` (batch, H, W, 3) uint8 and the named outputs; the batch is dynamic.

    The file holds no trace of the machine that made it: no stack traces, source paths or module names.
    """
    example = torch.zeros(2, preprocessing.height, preprocessing.width, 3, dtype=torch.uint8)  # 1 could specialise
    with warnings.catch_warnings():
        # torch.export pickles its own tree specs; the warning names no code of ours.
        warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)`", category=FutureWarning)
        program = torch.onnx.export(
            servable.eval(),
            (example,),
            dynamo=True,
            opset_version=OPSET,
            input_names=["images"],
            output_names=outputs,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
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
