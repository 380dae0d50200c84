"""Tiny models whose every answer names their version, in a repository that a test writes to while servers read it."""

from __future__ import annotations

import dataclasses
import os
import shutil
import time
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from attnserve.card import Card, sha256_of

ROOT = Path(__file__).parents[2]
TEMPLATE = "fashion-mnist-bam"


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
