"""int8: between two convolutions a map stays 8-bit codes, through CBAM's gates and the residual sum."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from attnserve.card import Preprocessing
from attnserve.export import onnx_writer
from attnserve.export.cbam import Cbam
from attnserve.export.int8 import int8
from attnserve.export.parity import open_session
from attnserve.export.precision import Precision, gate_nodes, narrowed
from attnserve.export.rewrite import WIDE, rewritten
from attnserve.export.servable import Normalise

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:onnxruntime")
VIEW = Preprocessing(16, 16, mean=(0.1, 0.5, 0.9), std=(0.2, 0.3, 0.4))
NAMES = ["probabilities", "channel", "spatial"]


class Block(nn.Module):
    """One residual block with CBAM, as wide as a stage of a ResNet-50, behind the normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.normalise = Normalise(VIEW)
        self.network = nn.Module()
        self.network.conv1 = nn.Conv2d(3, WIDE, 3, padding=1)
        self.middle = nn.Conv2d(WIDE, WIDE, 1)
        self.cbam = Cbam(WIDE)
        self.fc = nn.Linear(WIDE, 5)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """The probabilities and both gates."""
        x = torch.relu(self.network.conv1(self.normalise(images.permute(0, 3, 1, 2).float())))
        y = self.middle(x)
        maps = self.cbam.attention(y)
        z = torch.relu(self.cbam.refine(y, maps) + x)
        return torch.softmax(self.fc(self.middle(z).mean((2, 3))), 1), maps.channel, maps.spatial


def pictures(count: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, 16, 16, 3), np.uint8)


@pytest.fixture(scope="module")
def exact() -> bytes:
    torch.manual_seed(0)
    return onnx_writer.to_onnx(rewritten(Block()), NAMES, VIEW)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def narrow(exact: bytes) -> bytes:
    return narrowed(exact, Precision("int8", pictures(40)))


def test_every_output_is_close_to_the_exact_one(exact: bytes, narrow: bytes) -> None:
    for got, expected in zip(
        *(open_session(m).run(None, {"images": pictures(6)}) for m in (narrow, exact)), strict=True
    ):
        np.testing.assert_allclose(got, expected, rtol=0, atol=0.01)


def test_onnx_runtime_computes_the_trunk_on_codes_and_the_gates_in_float32(narrow: bytes, tmp_path: Path) -> None:
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED  # the same everywhere
    options.log_severity_level = 3  # it warns that the file is meant for this machine
    onnxruntime.InferenceSession(narrow, options, providers=["CPUExecutionProvider"])
    graph = onnx.load(tmp_path / "optimised.onnx").graph
    kinds = Counter(node.op_type for node in graph.node)
    assert (kinds["QLinearConv"], kinds["QLinearMul"], kinds["QLinearAdd"]) == (4, 2, 1)  # 3 and the mean over channels
    assert kinds["Conv"] + kinds["FusedConv"] == 1  # the spatial gate's
    assert kinds["QLinearGlobalAveragePool"] == 2
    makers = {name: node for node in graph.node for name in node.output}
    floated = [makers[n.input[0]].op_type for n in graph.node if n.op_type == "DequantizeLinear"]
    assert not {"QLinearAdd", "QLinearMul"} & set(floated)


def test_no_two_products_share_weights_as_onnx_runtime_cannot_load_that_without_vnni(
    exact: bytes, narrow: bytes
) -> None:
    def weights(model: bytes) -> list[str]:
        graph = onnx.load_model_from_string(model).graph
        before = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "DequantizeLinear"}
        return [before.get(node.input[1], node.input[1]) for node in graph.node if node.op_type == "Conv"]

    assert max(Counter(weights(exact)).values()) == 2
    assert max(Counter(name for name in weights(narrow) if name.endswith("_quantized")).values()) == 1
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")  # as there
    onnxruntime.InferenceSession(narrow, options, providers=["CPUExecutionProvider"])


def test_the_largest_channel_is_taken_of_codes(narrow: bytes) -> None:
    graph = onnx.load_model_from_string(narrow).graph
    makers = {name: node.op_type for node in graph.node for name in node.output}
    assert [makers[node.input[0]] for node in graph.node if node.op_type == "ReduceMax"] == ["QuantizeLinear"]


def test_the_mean_is_taken_off_whole_rows(narrow: bytes) -> None:
    graph = onnx.load_model_from_string(narrow).graph
    (subtract,) = [node for node in graph.node if node.op_type == "Sub"]
    (mean,) = [numpy_helper.to_array(w) for w in graph.initializer if w.name == subtract.input[1]]
    np.testing.assert_allclose(mean, np.tile(255 * np.float32(VIEW.mean), 16)[None, None], rtol=1e-6)


def test_sums_and_products_of_anything_but_maps_stay_float32() -> None:
    """A transformer's tokens (N, T, C) lose too much by it."""
    weight = numpy_helper.from_array(np.random.default_rng(0).normal(size=(3, 3)).astype(np.float32), "weight")
    shape = numpy_helper.from_array(np.array([0, -1, 3]), "tokens_shape")
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["images"], ["pixels"], "cast", to=TensorProto.FLOAT),
            helper.make_node("Reshape", ["pixels", "tokens_shape"], ["tokens"], "reshape"),
            helper.make_node("MatMul", ["tokens", "weight"], ["mixed"], "mix"),
            helper.make_node("Add", ["mixed", "tokens"], ["sum"], "sum"),
        ],
        "tokens",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", 16, 16, 3])],
        [helper.make_tensor_value_info("sum", TensorProto.FLOAT, ["batch", 256, 3])],
        [weight, shape],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", onnx_writer.OPSET)], ir_version=10)
    nodes = int8(model, gate_nodes(model.graph), [pictures(2)]).graph.node
    makers = {name: node for node in nodes for name in node.output}
    (product,) = [node for node in nodes if node.op_type == "MatMul"]
    assert {makers[name].op_type for name in product.input} == {"DequantizeLinear"}
    assert makers["sum"].op_type == "Add"
