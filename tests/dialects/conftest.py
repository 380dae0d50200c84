"""The oracles: for each dialect a network of somebody else's code, and what its gates are."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs the extra `export`")

from torch import Tensor, nn  # noqa: E402


def _module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"dialects_{name}", Path(__file__).with_name(f"{name}.py"))
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


references = _module("references")


@cache
def _torchvision_operators() -> Any:
    """torchvision beside a CPU build of torch wants these declared before it can be imported."""
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library


def package(name: str) -> Any:
    """A package's module, or a skip that says what is missing."""
    if "torchvision" not in sys.modules:
        _torchvision_operators()
    return pytest.importorskip(name, reason=f"the oracle {name.partition('.')[0]} is not installed")


@dataclass(frozen=True)
class Oracle:
    """A network of somebody else's code.

    Attributes:
        gates: For `channel` and `spatial`: the names of the modules whose output shows it, and what to do with that.
        square: Whether the source takes square pictures only.
        facts: What the user must say.
    """

    dialect: str
    build: Callable[[int], nn.Module]
    gates: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = field(default_factory=dict)
    square: bool = False
    facts: dict[str, object] = field(default_factory=dict)


def _same(x: Tensor) -> Tensor:
    return x


MARKED = {"channel": (r".*channel_gate", _same), "spatial": (r".*spatial_gate", _same)}


def _torchvision(depth: int) -> nn.Module:
    return getattr(package("torchvision.models"), f"resnet{depth}")(num_classes=10)


def _timm(attention: str | None = None) -> Callable[[int], nn.Module]:
    def build(depth: int) -> nn.Module:
        more = {"block_args": {"attn_layer": attention}} if attention else {}
        return package("timm").create_model(f"resnet{depth}", num_classes=10, **more)

    return build


def _pytorchcv(kind: str) -> Callable[[int], nn.Module]:
    def build(depth: int) -> nn.Module:
        net = getattr(package(f"pytorchcv.models.{kind}resnet"), f"{kind}_resnet{depth}")(num_classes=10)
        net.features.final_pool = nn.AdaptiveAvgPool2d(1)  # its 7x7 pool is the same at 224 px, and fails elsewhere
        return net

    return build


def _vector(x: Tensor) -> Tensor:
    return x.flatten(2)[:, :, 0]


def _map(x: Tensor) -> Tensor:
    return x[:, 0]


ORACLES = {
    "torchvision": Oracle("torchvision", _torchvision),
    "timm": Oracle("timm", _timm()),
    "jongchan-cbam": Oracle("jongchan-cbam", lambda depth: references.Net(depth, references.jongchan_cbam), MARKED),
    "jongchan-cbam-cifar": Oracle(
        "jongchan-cbam", lambda depth: references.Net(depth, references.jongchan_cbam, small=True), MARKED
    ),
    "jongchan-bam": Oracle(
        "jongchan-bam", lambda depth: references.Net(depth, after=references.JongchanBam), MARKED, square=True
    ),
    "luuuyi": Oracle("luuuyi", lambda depth: references.Net(depth, references.luuuyi("fc")), MARKED),
    "luuuyi-old": Oracle("luuuyi-old", lambda depth: references.Net(depth, references.luuuyi("fc1")), MARKED),
    "pytorchcv-cbam": Oracle(
        "pytorchcv-cbam",
        _pytorchcv("cbam"),
        {"channel": (r".*ch_gate\.sigmoid", _same), "spatial": (r".*sp_gate\.sigmoid", _map)},
    ),
    "pytorchcv-bam": Oracle(
        "pytorchcv-bam", _pytorchcv("bam"), {"channel": (r".*ch_att", _vector), "spatial": (r".*sp_att", _map)}
    ),
    "timm-cbam": Oracle(
        "timm-cbam",
        _timm("cbam"),
        {"channel": (r".*se\.channel\.gate", _vector), "spatial": (r".*se\.spatial\.gate", _map)},
    ),
    "timm-lcbam": Oracle(
        "timm-lcbam",
        _timm("lcbam"),
        {
            "channel": (r".*se\.channel\.fc2", lambda x: torch.sigmoid(_vector(x))),  # its sigmoid is a function
            "spatial": (r".*se\.spatial\.gate", _map),
        },
    ),
    "notebook": Oracle("notebook", lambda depth: references.Notebook(depth), MARKED),
    "cbam-by-shape": Oracle(
        "cbam-by-shape",
        lambda depth: references.Net(depth, references.renamed),
        MARKED,
        facts={"spatial_order": "max,avg", "residual": True},
    ),
}


def _randomise(network: nn.Module) -> nn.Module:
    """Random statistics and affine parameters, so that no normalisation is the identity and no gate is flat."""
    generator = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            one = module.num_features == 1
            module.running_mean.normal_(0, 0.3, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
            module.weight.data.uniform_(*((1.0, 2.0) if one else (0.4, 0.9)), generator=generator)
            module.bias.data.normal_(0, 0.3, generator=generator)
    return network.eval()


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """These networks see few pixels: threads would mostly wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def oracles() -> dict[str, Oracle]:
    return ORACLES


@pytest.fixture(scope="session")
def refs() -> ModuleType:
    return references


@pytest.fixture(scope="session")
def build() -> Callable[..., nn.Module]:
    """Makes an oracle's network with the same random weights every time."""

    def make(maker: Callable[[], nn.Module]) -> nn.Module:
        torch.manual_seed(0)
        return _randomise(maker())

    return make


@dataclass
class Seen:
    """What an oracle computed: its logits and, in the order of computation, its gates."""

    logits: Tensor
    channel: list[Tensor]
    spatial: list[Tensor]


@pytest.fixture(scope="session")
def observe() -> Callable[..., Seen]:
    def run(network: nn.Module, gates: dict[str, tuple[str, Callable[[Tensor], Tensor]]], x: Tensor) -> Seen:
        """Gates from the last call of each marked module: the lcbam's second layer is called once, others too."""
        seen: dict[str, list[Tensor]] = {"channel": [], "spatial": []}
        hooks = [
            module.register_forward_hook(lambda *args, kind=kind, show=show: seen[kind].append(show(args[2])))
            for kind, (pattern, show) in gates.items()
            for name, module in network.named_modules()
            if re.fullmatch(pattern, name)
        ]
        with torch.inference_mode():
            logits = network(x)
        for hook in hooks:
            hook.remove()
        return Seen(logits, **seen)

    return run


def largest(expected: Tensor, got: Tensor) -> float:
    """|expected - got| in units of max(1, max|expected|)."""
    assert expected.shape == got.shape
    return float((expected - got).abs().max() / max(1.0, float(expected.abs().max())))


@pytest.fixture(scope="session")
def differences() -> Callable[..., dict[str, float]]:
    def measure(seen: Seen, evidence: Any) -> dict[str, float]:
        """By output: `logits` and the outputs of each site."""
        assert len(seen.channel) == len(seen.spatial) == len(evidence.maps)
        found = {"logits": largest(seen.logits, evidence.logits)}
        for (name, maps), channel, spatial in zip(evidence.maps.items(), seen.channel, seen.spatial, strict=True):
            found |= {
                f"{name}.channel": largest(channel, maps.channel),
                f"{name}.spatial": largest(spatial, maps.spatial),
            }
        return found

    return measure
