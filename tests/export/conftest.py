"""Small networks with nothing at its default value, and checkpoints of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs the extra `export`")
pytest.importorskip("onnxscript", reason="needs the extra `export`")
pytest.importorskip("onnxruntime", reason="needs the extra `cpu` or `gpu`")

from attnserve.card import Preprocessing  # noqa: E402
from attnserve.export.architecture import Architecture, Attention  # noqa: E402
from attnserve.export.checkpoint import Checkpoint  # noqa: E402
from attnserve.export.resnet import ResNet  # noqa: E402


def _randomise(module: Any, seed: int = 0) -> Any:
    """Random statistics and affine parameters, so that no normalisation is the identity."""
    generator = torch.Generator().manual_seed(seed)
    for layer in module.modules():
        if isinstance(layer, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.5, generator=generator)
            layer.running_var.uniform_(0.5, 1.5, generator=generator)
            layer.weight.data.uniform_(0.4, 0.9, generator=generator)  # below 1: depth must not explode
            layer.bias.data.normal_(0, 0.3, generator=generator)
    return module.eval()


@pytest.fixture(scope="session")
def randomise() -> Callable[..., Any]:
    return _randomise


@pytest.fixture(scope="session")
def oracle() -> Callable[[str], Any]:
    """Imports somebody else's package, or skips; beside a CPU build of torch torchvision lacks operators till then."""
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

    def imported(name: str, _kept_alive: Any = library) -> Any:
        return pytest.importorskip(name, reason="an oracle, which `make test` installs")

    return imported


@pytest.fixture(scope="session")
def tiny_checkpoint() -> Callable[..., Checkpoint]:
    """Makes a checkpoint of a 32 px network with the given attention."""

    def make(attention: Attention | None, depth: int = 18, **architecture: Any) -> Checkpoint:
        torch.manual_seed(0)
        choices = {"stem": "small", "stem_stride": 1, "widths": (8, 8, 16, 16), **architecture}
        described = Architecture(depth, 3, attention=attention, **choices)
        view = Preprocessing(32, 32, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
        weights = _randomise(ResNet(described)).state_dict()
        return Checkpoint(described, view, ("hat", "häß/lich", 'quo"te'), weights, {"dataset": "noise"})

    return make
