"""The networks that the GPU benchmark serves: ResNets with CBAM or BAM and random weights, in float32 and float16."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Net:
    """One entry of the model repository to be made.

    Attributes:
        kind: `cbam`, in every block, or `bam`, after the first three stages: as in the papers.
    """

    kind: str
    precision: str
    depth: int = 50
    size: int = 224
    max_batch_size: int = 64

    @property
    def name(self) -> str:
        """Of the model."""
        return f"resnet{self.depth}-{self.kind}-{self.precision}"


def nets(*, quick: bool) -> list[Net]:
    """Those of the benchmark, or small ones that are made in seconds."""
    form = {"depth": 18, "size": 32, "max_batch_size": 8} if quick else {}
    return [Net(kind, precision, **form) for precision in ("fp16", "fp32") for kind in ("cbam", "bam")]


def export(folder: Path, wanted: list[Net], processes: int) -> None:
    """Write the entries that `folder` lacks, several at a time; needs torch, onnx and onnxscript."""
    missing = [net for net in wanted if not (folder / net.name).exists()]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max(1, min(processes, len(missing))), mp_context=context) as pool:
        list(pool.map(_export, [folder] * len(missing), missing))


def _export(folder: Path, net: Net) -> None:
    import numpy as np
    import torch

    from attnserve.card import Preprocessing
    from attnserve.datasets import Pictures
    from attnserve.export.architecture import Architecture, Attention
    from attnserve.export.checkpoint import Checkpoint
    from attnserve.export.entry import Job, Target, write_entry
    from attnserve.export.precision import Precision
    from attnserve.export.resnet import ResNet

    torch.manual_seed(0)
    attention = (
        Attention("cbam", bias=True, spatial_norm=True)
        if net.kind == "cbam"
        else Attention("bam", placement="stage", stages=(1, 2, 3))
    )
    architecture = Architecture(net.depth, 1000 if net.size > 96 else 10, attention=attention)
    network = ResNet(architecture)
    with torch.no_grad():
        network.fc.weight.mul_(0.05)  # else random logits are too large for the parity of the probabilities
        for module in network.modules():  # and activations, which grow from block to block, for that of the features
            if isinstance(module, torch.nn.BatchNorm2d) and module.weight is not None:
                module.weight.mul_(0.5)
    view = Preprocessing(net.size, net.size, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    labels = tuple(map(str, range(architecture.num_classes)))
    checkpoint = Checkpoint(architecture, view, labels, network.state_dict(), {"dataset": "none"})
    noise = np.random.default_rng(0).integers(0, 256, (4, net.size, net.size, 3), np.uint8)
    held_out = Pictures(noise, np.zeros(len(noise), np.int64))
    job = Job(
        "bench-gpu",
        held_out=held_out,
        precision=Precision(net.precision, noise, max_accuracy_drop=100),  # there is no accuracy to lose
    )
    write_entry(checkpoint, Target(folder, net.name, max_batch_size=net.max_batch_size), job)
