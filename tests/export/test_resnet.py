"""The network against torchvision's, and attention in every place it may stand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from attnserve.export.architecture import Architecture, Attention
from attnserve.export.resnet import ResNet


@pytest.fixture(scope="module")
def torchvision_models(oracle: Callable[[str], Any]) -> Any:
    return oracle("torchvision.models")


@pytest.mark.parametrize("depth", [18, 34, 50, 101])
def test_a_plain_network_has_torchvisions_keys_shapes_and_outputs(
    depth: int, torchvision_models: Any, randomise: Callable[..., Any]
) -> None:
    theirs = randomise(getattr(torchvision_models, f"resnet{depth}")(num_classes=11))
    ours = ResNet(Architecture(depth, 11)).eval()
    assert {key: value.shape for key, value in ours.state_dict().items()} == {
        key: value.shape for key, value in theirs.state_dict().items()
    }
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, 64, 96)
    with torch.inference_mode():
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("depth", "attention", "names"),
    [
        (18, Attention("cbam"), [f"layer{s}.{i}.cbam" for s in (1, 2, 3, 4) for i in (0, 1)]),
        (50, Attention("bam", "block", (4,)), ["layer4.0.bam", "layer4.1.bam", "layer4.2.bam"]),
        (18, Attention("cbam", "stage", (3, 4)), ["cbam3", "cbam4"]),
        (50, Attention("bam", "stage", (1, 2, 3)), ["bam1", "bam2", "bam3"]),
    ],
)
def test_attention_sits_where_the_architecture_says(depth: int, attention: Attention, names: list[str]) -> None:
    network = ResNet(Architecture(depth, 5, "small", 1, (8, 8, 16, 16), attention)).eval()
    evidence = network.evidence(torch.randn(2, 3, 16, 24))
    assert list(evidence.maps) == names
    modules = dict(network.named_modules())
    assert all(name in modules for name in names)
    expansion = 1 if depth == 18 else 4
    assert evidence.features.shape == (2, 16 * expansion, 2, 3)


@pytest.mark.parametrize("kind", ["cbam", "bam"])
@pytest.mark.parametrize("placement", ["block", "stage"])
def test_the_maps_are_what_each_module_computes_on_its_own_input(
    kind: str, placement: str, randomise: Callable[..., Any]
) -> None:
    torch.manual_seed(0)
    attention = Attention(kind, placement, reduction=4)
    network = randomise(ResNet(Architecture(18, 5, "small", 1, (8, 8, 16, 16), attention)))
    evidence = network.evidence(torch.randn(2, 3, 16, 16))
    logits = network.fc(evidence.features.mean((2, 3)))
    torch.testing.assert_close(evidence.logits, logits)
    for name, maps in evidence.maps.items():
        module = network.get_submodule(name)
        seen: list[torch.Tensor] = []
        handle = module.channel.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(inputs[0]))
        again = network.evidence(torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(4)))
        handle.remove()
        assert len(seen) == 1, f"{name} ran more than once in one pass"
        assert again.maps[name].channel.shape[1:] == maps.channel.shape[1:]


def test_attention_changes_the_answer() -> None:
    torch.manual_seed(0)
    network = ResNet(Architecture(18, 5, "small", 1, (8, 8, 16, 16), Attention("cbam", reduction=4))).eval()
    x = torch.randn(2, 3, 16, 16)
    before = network(x)
    with torch.no_grad():
        network.get_parameter("layer3.1.cbam.spatial.conv.weight").mul_(-3)
    assert not torch.allclose(before, network(x))
