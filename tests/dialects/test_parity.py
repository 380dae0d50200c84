"""Every dialect against the code that wrote it: logits and every gate."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from attnserve.errors import ConfigError
from attnserve.export.dialects.loader import Choices, recognise
from attnserve.export.resnet import ResNet

NAMES = (
    "torchvision", "timm", "jongchan-cbam", "jongchan-cbam-cifar", "jongchan-bam", "luuuyi", "luuuyi-old",
    "pytorchcv-cbam", "pytorchcv-bam", "timm-cbam", "timm-lcbam", "notebook", "cbam-by-shape",
)  # fmt: skip
TOLERANCE = 1e-5  # of max(1, max|expected|)


def pictures(count: int, square: bool, small: bool = False) -> torch.Tensor:
    width = 64 if square else 48
    size = (3, 64, width) if not small else (3, 24, 16)  # a stem for CIFAR keeps every pixel
    return torch.randn(count, *size, generator=torch.Generator().manual_seed(count))


@pytest.mark.parametrize("depth", [18, 34, 50, 101])
@pytest.mark.parametrize("name", NAMES)
def test_the_loaded_network_computes_what_its_source_computes(
    name: str, depth: int, tmp_path: Path, oracles: Any, build: Any, observe: Any, differences: Any
) -> None:
    oracle = oracles[name]
    theirs = build(lambda: oracle.build(depth))
    torch.save(theirs.state_dict(), tmp_path / "net.pth")
    asked = oracle.dialect if name == "timm" else None  # its plain networks have torchvision's names
    found = recognise(tmp_path / "net.pth", Choices(asked, oracle.facts))
    assert found.dialect == oracle.dialect
    checkpoint = found.settled()
    assert (checkpoint.architecture.depth, checkpoint.architecture.num_classes) == (
        depth,
        theirs(pictures(1, True)).shape[1],
    )
    ours = checkpoint.network()
    for count in (1, 3):
        x = pictures(count, oracle.square, "cifar" in name)
        with torch.inference_mode():
            evidence = ours.evidence(x)
        wrong = {k: v for k, v in differences(observe(theirs, oracle.gates, x), evidence).items() if not v <= TOLERANCE}
        assert not wrong


def test_at_224_pixels_pytorchcv_agrees_as_published(
    tmp_path: Path, oracles: Any, build: Any, observe: Any, differences: Any
) -> None:
    oracle = oracles["pytorchcv-bam"]

    def published() -> torch.nn.Module:
        net = oracle.build(18)
        net.features.final_pool = torch.nn.AvgPool2d(7, stride=1)
        return net

    theirs, x = build(published), torch.randn(1, 3, 224, 224)
    torch.save(theirs.state_dict(), tmp_path / "net.pth")
    with torch.inference_mode():
        evidence = recognise(tmp_path / "net.pth").settled().network().evidence(x)
    assert max(differences(observe(theirs, oracle.gates, x), evidence).values()) <= TOLERANCE


WRONG = {
    ("combine", "mul"): "add", ("dilation", 4): 2, ("pooling", "avg+max"): "avg", ("residual", False): True,
    ("residual", True): False, ("spatial_order", "avg,max"): "max,avg", ("spatial_order", "max,avg"): "avg,max",
}  # fmt: skip


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("torchvision", "timm")])
def test_every_fact_that_a_file_does_not_show_changes_the_answer(
    name: str, tmp_path: Path, oracles: Any, build: Any, observe: Any, differences: Any
) -> None:
    """So the table's facts are tested by the parity above: none could be wrong unnoticed."""
    oracle = oracles[name]
    theirs = build(lambda: oracle.build(18))
    torch.save(theirs.state_dict(), tmp_path / "net.pth")
    x = pictures(2, oracle.square, "cifar" in name)
    right = recognise(tmp_path / "net.pth", Choices(facts=oracle.facts))
    attention = right.checkpoint.architecture.attention
    assert attention
    assert right.facts
    for fact in right.facts:
        other = WRONG[fact, getattr(attention, fact)]
        wrong = recognise(tmp_path / "net.pth", Choices(facts={**oracle.facts, fact: other})).settled()
        assert wrong.architecture.attention == dataclasses.replace(attention, **{fact: other})
        with torch.inference_mode():
            evidence = wrong.network().evidence(x)
        assert max(differences(observe(theirs, oracle.gates, x), evidence).values()) > 10 * TOLERANCE, fact


@pytest.mark.parametrize("name", ["jongchan-cbam", "timm-cbam", "pytorchcv-bam"])
def test_leaving_out_a_normalisation_changes_the_answer(
    name: str, tmp_path: Path, oracles: Any, build: Any, observe: Any, differences: Any
) -> None:
    oracle = oracles[name]
    theirs = build(lambda: oracle.build(18))
    torch.save(theirs.state_dict(), tmp_path / "net.pth")
    checkpoint = recognise(tmp_path / "net.pth").settled()
    last = "bam2.channel.1" if "bam2.channel.1.weight" in checkpoint.state_dict else "layer3.0.cbam.spatial.bn"
    ours, x = checkpoint.network(), pictures(2, True)
    parent, _, leaf = last.rpartition(".")
    setattr(ours.get_submodule(parent), leaf, torch.nn.Identity())
    with torch.inference_mode():
        evidence = ours.evidence(x)
    assert max(differences(observe(theirs, oracle.gates, x), evidence).values()) > 10 * TOLERANCE


NOTEBOOKS: dict[str, dict[str, Any]] = {
    "convolutions": {"style": "fc1", "names": ("channel_attention", "spatial_attention")},
    "sequential": {"style": "fc", "names": ("ca", "sa")},
    "linear-bias-k3-r8": {"style": "mlp", "names": ("channel", "spatial"), "bias": True, "kernel": 3, "ratio": 8},
    "stages-3-4-avg": {"style": "fc1", "at": (3, 4), "pools": ("avg",)},
}


@pytest.mark.parametrize("variant", NOTEBOOKS)
def test_the_notebooks_tunables_are_read_or_asked(
    variant: str, tmp_path: Path, oracles: Any, refs: Any, build: Any, observe: Any, differences: Any
) -> None:
    choices = NOTEBOOKS[variant]
    theirs = build(lambda: refs.Notebook(18, **choices))
    torch.save({"model_state_dict": theirs.state_dict(), "epoch": 3}, tmp_path / "net.pth")
    facts = {"pooling": "avg"} if choices.get("pools") else {}
    found = recognise(tmp_path / "net.pth", Choices(facts=facts))
    assert found.dialect == "notebook"
    attention = found.checkpoint.architecture.attention
    assert attention
    assert (attention.stages, attention.kernel, attention.reduction, attention.bias) == (
        choices.get("at", (1, 2, 3, 4)), choices.get("kernel", 7), choices.get("ratio", 16), choices.get("bias", False),
    )  # fmt: skip
    x = pictures(3, False)
    with torch.inference_mode():
        evidence = found.settled().network().evidence(x)
    assert max(differences(observe(theirs, oracles["notebook"].gates, x), evidence).values()) <= TOLERANCE


def test_a_module_of_unknown_names_is_exported_only_once_its_order_is_said(
    tmp_path: Path, oracles: Any, build: Callable[..., torch.nn.Module]
) -> None:
    torch.save(build(lambda: oracles["cbam-by-shape"].build(18)).state_dict(), tmp_path / "net.pth")
    found = recognise(tmp_path / "net.pth")
    assert found.asked == ("spatial_order", "residual")
    with pytest.raises(ConfigError, match="--spatial-order and --residual"):
        found.settled()


def test_our_own_weights_alone_are_recognised(tmp_path: Path, build: Any) -> None:
    from attnserve.export.architecture import Architecture, Attention

    attention = Attention("bam", "stage", (1, 3), reduction=8, final_norm=True)
    network = build(lambda: ResNet(Architecture(18, 4, "small", 1, (16, 16, 32, 64), attention)))
    torch.save(network.state_dict(), tmp_path / "net.pth")
    found = recognise(tmp_path / "net.pth")
    assert (found.dialect, found.checkpoint.architecture.attention) == ("attnserve", attention)
    x = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(found.settled().network()(x), network(x), rtol=0, atol=0)
