"""What attention costs, and what the exported form saves: ONNX Runtime on a CPU, one thread, per depth and kind.

    python tests/bench/forms.py [--depths 18,34,50,101] [--runs 15] [--json FILE]

For each depth, interleaved in one run: the net without attention, and for CBAM in every block and BAM after stages 1
to 3 the file that `attnserve export` writes and a naive export of the same weights: the modules as published code has
them (windowed pools, the MLP run twice, gates expanded to the map's shape), normalised by division at the input. The
figures are medians of paired ratios of CPU time, so that other work on the machine matters little.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from statistics import median

import numpy as np
import onnxruntime as ort
import torch
from torch import Tensor, nn
from torch.nn import functional

from attnserve.card import Preprocessing
from attnserve.export.architecture import Architecture, Attention
from attnserve.export.bam import Bam
from attnserve.export.cbam import Cbam, Maps
from attnserve.export.onnx_writer import to_onnx
from attnserve.export.resnet import ResNet
from attnserve.export.rewrite import rewritten
from attnserve.export.servable import Servable, find_sites, output_names

VIEW = Preprocessing(224, 224, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
KINDS = {"cbam": Attention("cbam", bias=True, spatial_norm=True), "bam": Attention("bam", "stage", (1, 2, 3))}


class NaiveCbam(nn.Module):
    """CBAM as the authors' repository computes it, over our weights."""

    def __init__(self, ours: Cbam) -> None:
        super().__init__()
        self.mlp, self.conv, self.bn = ours.channel.mlp, ours.spatial.conv, ours.spatial.bn

    def attention(self, x: Tensor) -> Maps:
        """Both gates, at the map's full shape."""
        window = (x.size(2), x.size(3))
        average = functional.avg_pool2d(x, window, stride=window).flatten(1)
        largest = functional.max_pool2d(x, window, stride=window).flatten(1)
        channel = torch.sigmoid(self.mlp(average) + self.mlp(largest))[:, :, None, None].expand_as(x)
        refined = x * channel
        pooled = torch.cat([torch.max(refined, 1)[0].unsqueeze(1), torch.mean(refined, 1).unsqueeze(1)], dim=1)
        out = self.conv(pooled)
        return Maps(channel, torch.sigmoid(self.bn(out) if self.bn else out).expand_as(x))

    def refine(self, x: Tensor, maps: Maps) -> Tensor:
        """x with both gates applied."""
        return x * maps.channel * maps.spatial


class NaiveBam(nn.Module):
    """BAM as the authors' repository computes it, over our weights."""

    def __init__(self, ours: Bam) -> None:
        super().__init__()
        self.channel, self.spatial = ours.channel, ours.spatial

    def attention(self, x: Tensor) -> Maps:
        """Both branches, at the map's full shape."""
        average = functional.avg_pool2d(x, x.size(2), stride=x.size(2)).flatten(1)
        return Maps(self.channel(average)[:, :, None, None].expand_as(x), self.spatial(x).expand_as(x))

    def refine(self, x: Tensor, maps: Maps) -> Tensor:
        """(1 + M) x."""
        return (1 + torch.sigmoid(maps.channel + maps.spatial)) * x


class NaiveServable(nn.Module):
    """uint8 pictures -> probabilities, normalised before the transposition."""

    def __init__(self, network: ResNet) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(VIEW.mean))
        self.register_buffer("std", torch.tensor(VIEW.std))

    def forward(self, images: Tensor) -> Tensor:
        """(N, H, W, 3) -> (N, classes)."""
        normalised = (images.float() / 255 - self.mean) / self.std
        return torch.softmax(self.network.evidence(normalised.permute(0, 3, 1, 2)).logits, 1)


def network(depth: int, attention: Attention | None) -> tuple[Architecture, ResNet]:
    """A random network, ready to compute."""
    torch.manual_seed(0)
    architecture = Architecture(depth, 1000, attention=attention)
    return architecture, ResNet(architecture).eval()


def exported(depth: int, attention: Attention | None) -> bytes:
    """What `attnserve export` writes."""
    architecture, net = network(depth, attention)
    return to_onnx(rewritten(Servable(net, VIEW)), output_names(find_sites(architecture, net, VIEW)), VIEW)


def naive(depth: int, attention: Attention) -> bytes:
    """The same weights without our forms."""
    _, net = network(depth, attention)
    for name, module in list(net.named_modules()):
        if isinstance(module, Cbam | Bam):
            net.set_submodule(name, NaiveCbam(module) if isinstance(module, Cbam) else NaiveBam(module))
    return to_onnx(NaiveServable(net), ["probabilities"], VIEW)  # type: ignore[arg-type]


def session(model: bytes) -> ort.InferenceSession:
    """On one thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def measure(depth: int, runs: int) -> dict[str, float]:
    """Median CPU time of each form over that of the net without attention in the same round, and that time in ms."""
    forms = {"plain": session(exported(depth, None))}
    for kind, attention in KINDS.items():
        forms[kind] = session(exported(depth, attention))
        forms[f"{kind} naive"] = session(naive(depth, attention))
    images = np.random.default_rng(0).integers(0, 256, (1, 224, 224, 3), np.uint8)
    times: dict[str, list[float]] = {name: [] for name in forms}
    for turn in range(runs + 2):
        for name, each in forms.items():
            started = time.process_time()
            each.run(["probabilities"], {"images": images})
            if turn > 1:  # the first two warm it up
                times[name].append(time.process_time() - started)
    plain = times["plain"]
    ratios = {name: median(t / p for t, p in zip(times[name], plain, strict=True)) for name in forms if name != "plain"}
    return {"plain_ms": 1e3 * median(plain), **ratios}


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depths", default="18,34,50,101")
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    print("| ResNet | no attention, ms | CBAM | CBAM, naive | BAM | BAM, naive |\n|---|---|---|---|---|---|")
    results = {}
    for depth in map(int, args.depths.split(",")):
        found = results[depth] = measure(depth, args.runs)
        ratios = " | ".join(f"{found[name]:.2f}" for name in ("cbam", "cbam naive", "bam", "bam naive"))
        print(f"| {depth} | {found['plain_ms']:.1f} | {ratios} |", flush=True)
    if args.json:
        args.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
