"""Models that must not be served, and the others that are served beside them; SIGTERM while models load."""

from __future__ import annotations

import dataclasses
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from attnserve.card import Card, sha256_of
from attnserve.client import Client

ROOT = Path(__file__).parents[2]
GOOD, BAD = "fashion-mnist-bam", "bad"


def graph(value: float = 0.1, kind: int = TensorProto.FLOAT, only_batch_one: bool = False) -> bytes:
    """images (N, 28, 28, 3) -> probabilities and logits (N, 10), all `value`."""
    columns = np.full((2352, 10), 0.0, np.float32)
    row = np.full((1, 10), value, np.float32)
    constants = [numpy_helper.from_array(columns, "columns"), numpy_helper.from_array(row, "row")]
    shape = [1, 2352] if only_batch_one else [-1, 2352]
    constants.append(numpy_helper.from_array(np.array(shape, np.int64), "shape"))
    nodes = [
        helper.make_node("Cast", ["images"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["pixels", "shape"], ["flat"]),
        helper.make_node("MatMul", ["flat", "columns"], ["nothing"]),
        helper.make_node("Add", ["nothing", "row"], ["sum"]),
        helper.make_node("Cast", ["sum"], ["probabilities"], to=kind),
        helper.make_node("Cast", ["sum"], ["logits"], to=kind),
    ]
    images = helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", 28, 28, 3])
    outputs = [helper.make_tensor_value_info(name, kind, ["batch", 10]) for name in ("probabilities", "logits")]
    made = helper.make_graph(nodes, "made", [images], outputs, constants)
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return model.SerializeToString()


@pytest.fixture
def repository(tmp_path):
    """Writes a repository of a good model and one with this graph."""

    def write(model: bytes, max_batch_size: int = 64) -> Path:
        for name in (GOOD, BAD):
            shutil.copytree(ROOT / "model_repo" / GOOD, tmp_path / name)
        folder = tmp_path / BAD
        config = (folder / "config.pbtxt").read_text().replace(f'name: "{GOOD}"', f'name: "{BAD}"')
        (folder / "config.pbtxt").write_text(config.replace("max_batch_size: 64", f"max_batch_size: {max_batch_size}"))
        (folder / "1/model.onnx").write_bytes(model)
        card = Card.from_json((folder / "1/model.json").read_text())
        card = dataclasses.replace(
            card, name=BAD, sites=(), explain=(), files={"model.onnx": sha256_of(folder / "1/model.onnx")}
        )
        (folder / "1/model.json").write_text(card.to_json())
        return tmp_path

    return write


@pytest.mark.parametrize(
    ("model", "max_batch_size", "reason"),
    [
        (graph(float("nan")), 64, "`probabilities` are none"),
        (graph(float("inf")), 64, "`probabilities` are none"),
        (graph(0.5), 64, "`probabilities` are none"),
        (graph(-0.1), 64, "`probabilities` are none"),
        (graph(kind=TensorProto.DOUBLE), 64, "must be tensor(float), found tensor(double)"),
        (graph(kind=TensorProto.INT32), 64, "must be tensor(float), found tensor(int32)"),
        (graph(only_batch_one=True), 64, "the warm-up failed"),
        (graph(), 2_000_000_000, "max_batch_size must be at most"),
        (b"no onnx at all", 64, "it is no ONNX model"),
    ],
    ids=["nan", "inf", "no sum of one", "negative", "double", "int", "fails at batch 2", "huge batch", "no onnx"],
)
def test_a_model_that_cannot_answer_is_not_served_and_the_other_is(
    start_server, repository, pictures, model, max_batch_size, reason
):
    folder = repository(model, max_batch_size)
    with start_server("--no-exit-on-error", repository=folder) as server, Client(server.grpc) as client:
        states = {status.name: status for status in client.models()}
        assert not states[BAD].ready
        assert reason in states[BAD].reason
        assert client.classify([pictures[0]], model=GOOD)[0].predictions[0].label == "Ankle boot"
    assert "Traceback" not in server.log


def test_the_graph_of_these_tests_is_served_where_nothing_is_wrong_with_it(start_server, repository, pictures):
    with start_server(repository=repository(graph())) as server, Client(server.grpc) as client:
        assert client.classify([pictures[0]], model=BAD)[0].predictions[0].probability == pytest.approx(0.1)


def test_sigterm_while_models_load_ends_the_process_at_once(repository):
    folder = repository(graph())
    slow = folder / "sign-digits-cbam"
    shutil.copytree(ROOT / "model_repo" / slow.name, slow)
    config = (slow / "config.pbtxt").read_text()
    (slow / "config.pbtxt").write_text(config.replace("max_batch_size: 64", "max_batch_size: 4096"))  # many seconds
    command = [sys.executable, "-m", "attnserve", "serve", "--model-repository", str(folder)]
    command += ["--grpc-address", "127.0.0.1:0", "--http-address", "127.0.0.1:0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while "loading models" not in process.stderr.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        output, log = process.communicate(timeout=5)
    assert process.returncode == 0
    assert "stopped while loading" in log
    assert output == ""
