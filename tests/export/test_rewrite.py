"""The cheaper formulas compute the same as the plain network, and are what the file holds."""

from __future__ import annotations

import onnx
import pytest
import torch

from attnserve.card import Preprocessing
from attnserve.export.architecture import Architecture, Attention
from attnserve.export.cbam import SpatialGate
from attnserve.export.onnx_writer import to_onnx
from attnserve.export.resnet import ResNet
from attnserve.export.rewrite import WIDE, ConvolvedSpatialGate, rewritten
from attnserve.export.servable import Servable, find_sites, output_names

VIEW = Preprocessing(32, 24, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


def servable(attention: Attention | None) -> tuple[Servable, Architecture]:
    torch.manual_seed(0)
    architecture = Architecture(18, 5, "small", 1, (8, 8, 16, 16), attention)
    network = ResNet(architecture)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2)
            torch.nn.init.normal_(module.weight, 1, 0.2)
            torch.nn.init.normal_(module.bias, 0, 0.2)
    return Servable(network, VIEW).eval(), architecture


CHOICES = [
    None,
    Attention("cbam", reduction=2),
    Attention("cbam", reduction=2, pooling="avg", kernel=3),
    Attention("cbam", reduction=2, pooling="max", placement="stage", stages=(3, 4)),
    Attention("cbam", reduction=2, bias=True, spatial_norm=True, spatial_order="max,avg"),
    Attention("cbam", reduction=2, light=True),
    Attention("bam", reduction=2, placement="stage", stages=(1, 2, 3)),
]


@pytest.mark.parametrize("attention", CHOICES, ids=str)
def test_every_output_is_the_plain_network_s(attention):
    plain, _ = servable(attention)
    images = torch.randint(0, 256, (3, 32, 24, 3), dtype=torch.uint8)
    with torch.inference_mode():
        expected = plain(images)
        got = rewritten(plain)(images)
    for one, other in zip(expected, got, strict=True):
        assert (one - other).abs().max() <= 1e-5 * max(1.0, one.abs().max())


@pytest.mark.parametrize("order", ["avg,max", "max,avg"])
@pytest.mark.parametrize("norm", [False, True])
def test_the_wide_form_of_the_spatial_gate_is_the_gate(order, norm):
    torch.manual_seed(0)
    plain = SpatialGate(7, order, False, norm, False).eval()
    x = torch.randn(2, WIDE, 9, 7)
    with torch.inference_mode():
        assert torch.allclose(ConvolvedSpatialGate(plain, WIDE)(x), plain(x), atol=1e-6)


def test_wide_gates_take_the_wide_form_and_narrow_ones_do_not():
    architecture = Architecture(
        18, 5, "small", 1, (8, 8, 16, WIDE), Attention("cbam", placement="stage", stages=(3, 4))
    )
    network = rewritten(Servable(ResNet(architecture), VIEW)).network
    assert isinstance(network.get_submodule("cbam3.spatial"), SpatialGate)
    assert isinstance(network.get_submodule("cbam4.spatial"), ConvolvedSpatialGate)


def test_the_plain_network_is_left_alone():
    plain, _ = servable(CHOICES[1])
    before = {name: tensor.clone() for name, tensor in plain.state_dict().items()}
    rewritten(plain)
    after = plain.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_file_holds_the_cheaper_form():
    """One second layer per gate instead of two; no division of the picture; nothing expanded; BatchNorm folded."""
    plain, architecture = servable(Attention("cbam", reduction=2, bias=True, spatial_norm=True))
    names = output_names(find_sites(architecture, plain.network, VIEW))
    graph = onnx.load_from_string(to_onnx(rewritten(plain), names, VIEW)).graph
    kinds = [node.op_type for node in graph.node]
    assert kinds.count("Gemm") + kinds.count("MatMul") == 8 * 3 + 1
    assert "Div" not in kinds
    assert "Expand" not in kinds
    assert "BatchNormalization" not in kinds
    assert kinds.index("Transpose") < kinds.index("Sub")
