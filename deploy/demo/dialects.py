"""One random checkpoint per dialect, inspected and exported: `python deploy/demo/dialects.py [FOLDER]`.

Drives the product from outside, through the command line. Sources that are packages (torchvision, timm, pytorchcv) make
their own checkpoints where they are installed; the others are written under the names that their code gives.
"""

from __future__ import annotations

import functools
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from attnserve.export.architecture import Architecture, Attention
from attnserve.export.resnet import ResNet

CLASSES = 10
SIZE = "64"  # pixels; enough to see that it works
CBAM = Attention("cbam", bias=True, spatial_norm=True)
BARE = Attention("cbam")
BAM = Attention("bam", "stage", (1, 2, 3), final_norm=False)

Weights = dict[str, Tensor]


def ours(attention: Attention | None, names: dict[str, str], depth: int = 18) -> Callable[[], object]:
    """Weights of our network under the names of somebody else."""

    def make() -> Weights:
        weights = {}
        for key, value in ResNet(Architecture(depth, CLASSES, attention=attention)).state_dict().items():
            for pattern, name in names.items():
                key = re.sub(pattern, name, key)
            weights[key] = value
        return weights

    return make


JONGCHAN_CBAM = {
    r"channel\.mlp\.0": "ChannelGate.mlp.1",
    r"channel\.mlp\.2": "ChannelGate.mlp.3",
    r"cbam\.spatial": "cbam.SpatialGate.spatial",
}
JONGCHAN_BAM = {
    r"channel\.0": "channel_att.gate_c.gate_c_fc_0",
    r"channel\.1": "channel_att.gate_c.gate_c_bn_1",
    r"channel\.3": "channel_att.gate_c.gate_c_fc_final",
    r"spatial\.0": "spatial_att.gate_s.gate_s_conv_reduce0",
    r"spatial\.1": "spatial_att.gate_s.gate_s_bn_reduce0",
    r"spatial\.3": "spatial_att.gate_s.gate_s_conv_di_0",
    r"spatial\.4": "spatial_att.gate_s.gate_s_bn_di_0",
    r"spatial\.6": "spatial_att.gate_s.gate_s_conv_di_1",
    r"spatial\.7": "spatial_att.gate_s.gate_s_bn_di_1",
    r"spatial\.9": "spatial_att.gate_s.gate_s_conv_final",
}
LUUUYI = {r"cbam\.channel\.mlp": "ca.fc", r"cbam\.spatial\.conv": "sa.conv1"}
LUUUYI_OLD = {
    r"cbam\.channel\.mlp\.0": "ca.fc1",
    r"cbam\.channel\.mlp\.2": "ca.fc2",
    r"cbam\.spatial\.conv": "sa.conv1",
}
NOTEBOOK = {
    r"^conv1": "features.0",
    r"^bn1": "features.1",
    **{rf"^layer{stage}": f"features.{2 + 2 * stage}" for stage in (1, 2, 3, 4)},
    **{rf"^cbam{stage}": f"features.{3 + 2 * stage}" for stage in (1, 2, 3, 4)},
    r"channel\.mlp\.0": "ca.fc1",
    r"channel\.mlp\.2": "ca.fc2",
    r"spatial\.conv": "sa.conv1",
}


def parallel(make: Callable[[], object]) -> Callable[[], object]:
    """As DataParallel and the authors' training loop save it."""
    return lambda: {"epoch": 90, "state_dict": {f"module.{key}": value for key, value in make().items()}}  # type: ignore[attr-defined]


def of_package(build: Callable[[], nn.Module]) -> Callable[[], object]:
    return lambda: build().state_dict()


@functools.cache
def torchvision_models() -> Any:
    library = torch.library.Library("torchvision", "DEF")  # beside a CPU build of torch, for the import only
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import torchvision.models

    return torchvision.models


def torchvision_resnet() -> nn.Module:
    network: nn.Module = torchvision_models().resnet18(num_classes=CLASSES)
    return network


def torchvision_vit() -> nn.Module:
    network: nn.Module = torchvision_models().VisionTransformer(int(SIZE), 16, 2, 3, 48, 96, num_classes=CLASSES)
    return network


def timm_vit() -> nn.Module:
    from timm.models import VisionTransformer

    sizes: dict[str, Any] = {"img_size": int(SIZE), "embed_dim": 48, "depth": 2, "num_heads": 3}
    network: nn.Module = VisionTransformer(**sizes, num_classes=CLASSES)
    return network


def timm_resnet(attention: str) -> nn.Module:
    import timm

    network: nn.Module = timm.create_model("resnet18", num_classes=CLASSES, block_args={"attn_layer": attention})
    return network


def pytorchcv_resnet(kind: str) -> nn.Module:
    import importlib

    module = importlib.import_module(f"pytorchcv.models.{kind}resnet")
    network: nn.Module = getattr(module, f"{kind}_resnet18")(num_classes=CLASSES)
    return network


CHECKPOINTS: dict[str, tuple[Callable[[], object], list[str]]] = {
    "torchvision": (of_package(torchvision_resnet), []),
    "jongchan-cbam": (parallel(ours(CBAM, JONGCHAN_CBAM)), []),
    "jongchan-bam": (parallel(ours(BAM, JONGCHAN_BAM)), []),
    "luuuyi": (ours(BARE, LUUUYI), []),
    "luuuyi-old": (ours(BARE, LUUUYI_OLD), []),
    "notebook": (ours(Attention("cbam", "stage"), NOTEBOOK, depth=50), []),
    "pytorchcv-cbam": (of_package(lambda: pytorchcv_resnet("cbam")), []),
    "pytorchcv-bam": (of_package(lambda: pytorchcv_resnet("bam")), []),
    "timm-cbam": (of_package(lambda: timm_resnet("cbam")), []),
    "timm-lcbam": (of_package(lambda: timm_resnet("lcbam")), []),
    "cbam-by-shape": (ours(BARE, {r"\.cbam\.": ".refine."}), ["--spatial-order", "avg,max", "--residual", "no"]),
    "torchvision-vit": (of_package(torchvision_vit), ["--heads", "3"]),
    "timm-vit": (of_package(timm_vit), ["--heads", "3"]),
    "deit": (of_package(timm_vit), ["--dialect", "deit", "--heads", "3"]),
    "attnserve": (ours(Attention("bam", "stage", (1, 2, 3)), {}), []),
}
"""Dialect -> its checkpoint, and the flags that export needs besides."""


def tamed(raw: object) -> object:
    """Weights whose head is small: random ones give logits so large that float32 no longer tells them apart."""
    weights = raw.get("state_dict", raw) if isinstance(raw, dict) else {}
    for key, value in weights.items():
        if re.search(r"(?:^|\.)(?:fc|output)\.weight$", key) and value.shape[0] == CLASSES:
            value.mul_(0.01)
    return raw


def main() -> int:
    """Make, inspect and export each; 0 only if all of it worked."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(tempfile.mkdtemp(prefix="attnserve-dialects-"))
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    failed, skipped = [], []
    for dialect, (make, flags) in CHECKPOINTS.items():
        checkpoint = folder / f"{dialect}.pth"
        try:
            torch.save(tamed(make()), checkpoint)
        except ModuleNotFoundError as error:
            print(f"{dialect}: skipped, the package {error.name} is not installed")
            skipped.append(dialect)
            continue
        export = ["--model-repository", str(folder / "models"), "--name", dialect, "--image-size", SIZE, "--force"]
        for command in (["inspect", str(checkpoint)], ["export", str(checkpoint), *export, *flags]):
            print(f"$ attnserve {' '.join(command)}", flush=True)
            if subprocess.run([sys.executable, "-m", "attnserve", *command], check=False).returncode:
                failed.append(dialect)
                break
    print(f"{len(CHECKPOINTS) - len(failed) - len(skipped)} exported to {folder / 'models'}, {len(skipped)} skipped")
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
