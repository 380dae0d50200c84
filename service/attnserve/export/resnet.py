"""ResNets (He, Zhang, Ren, Sun; CVPR 2016, arXiv:1512.03385) with attention in the blocks or after the stages.

Owns the network and the names of its parts, which are torchvision's, so that its weights load unchanged: stride sits in
a bottleneck's 3x3 convolution, attention is the attribute `cbam` or `bam` of a block, or `cbam<stage>`, `bam<stage>` of
the network. Knows nothing of pictures, training or files.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple, cast

from torch import Tensor, nn

from attnserve.export.architecture import Architecture, Attention
from attnserve.export.bam import Bam
from attnserve.export.cbam import Cbam, Maps

STAGES = ("layer1", "layer2", "layer3", "layer4")
BLOCKS_PER_STAGE = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}


class Evidence(NamedTuple):
    """Everything one forward pass computed that explains it."""

    logits: Tensor  # (N, num_classes)
    features: Tensor  # (N, C, H, W), the last map before the pool
    maps: dict[str, Maps]  # by site name, in the order of computation

    def outputs(self) -> list[Tensor]:
        """What the served graph gives besides the logits, in order."""
        return [*(part for maps in self.maps.values() for part in maps), self.features]


def build_attention(attention: Attention, channels: int) -> Cbam | Bam:
    """One attention module for a map of that many channels."""
    if attention.kind == "bam":
        return Bam(channels, attention.reduction, attention.dilation, attention.combine, attention.final_norm)
    return Cbam(
        channels,
        attention.reduction,
        attention.kernel,
        attention.pooling,
        bias=attention.bias,
        spatial_order=attention.spatial_order,
        spatial_bias=attention.spatial_bias,
        spatial_norm=attention.spatial_norm,
        light=attention.light,
        residual=attention.residual,
    )


class Block(nn.Module, ABC):
    """What both kinds of residual block share: relu(shortcut(x) + attention(residual(x)))."""

    expansion = 1
    downsample: nn.Module | None
    relu: nn.ReLU
    attention_name: str | None

    def finish(self, channels_in: int, width: int, stride: int, attention: Attention | None) -> None:
        """Add the shortcut and the attention module; called last by a block's constructor."""
        channels = width * self.expansion
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or channels_in != channels:
            projection = nn.Conv2d(channels_in, channels, 1, stride, bias=False)
            self.downsample = nn.Sequential(projection, nn.BatchNorm2d(channels))
        self.attention_name = attention.kind if attention else None
        if attention:
            self.add_module(attention.kind, build_attention(attention, channels))

    @abstractmethod
    def residual(self, x: Tensor) -> Tensor:
        """The block's convolutions, without shortcut, attention and last ReLU."""

    def observe(self, x: Tensor) -> tuple[Tensor, Maps | None]:
        """The block's output and what its attention computed."""
        out, maps = self.residual(x), None
        if self.attention_name:
            module = cast("Cbam | Bam", self.get_submodule(self.attention_name))
            maps = module.attention(out)
            out = module.refine(out, maps)
        out = out + (self.downsample(x) if self.downsample else x)
        return self.relu(out), maps

    def forward(self, x: Tensor) -> Tensor:
        """The block's output alone."""
        return self.observe(x)[0]


class BasicBlock(Block):
    """Two 3x3 convolutions."""

    def __init__(self, channels_in: int, width: int, stride: int, attention: Attention | None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.finish(channels_in, width, stride, attention)

    def residual(self, x: Tensor) -> Tensor:
        """(N, channels_in, H, W) -> (N, width, H / stride, W / stride)."""
        out = self.relu(self.bn1(self.conv1(x)))
        return cast(Tensor, self.bn2(self.conv2(out)))


class Bottleneck(Block):
    """1x1, 3x3 (which carries the stride), 1x1 with four times the width."""

    expansion = 4

    def __init__(self, channels_in: int, width: int, stride: int, attention: Attention | None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, width * self.expansion, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width * self.expansion)
        self.finish(channels_in, width, stride, attention)

    def residual(self, x: Tensor) -> Tensor:
        """(N, channels_in, H, W) -> (N, 4 * width, H / stride, W / stride)."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        return cast(Tensor, self.bn3(self.conv3(out)))


class ResNet(nn.Module):
    """The network of an `Architecture`: (N, 3, H, W) float32, normalised -> (N, num_classes) logits."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        width = architecture.widths[0]
        if architecture.stem == "imagenet":
            self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
            self.maxpool: nn.Module = nn.MaxPool2d(3, stride=2, padding=1)
        else:
            self.conv1 = nn.Conv2d(3, width, 3, architecture.stem_stride, padding=1, bias=False)
            self.maxpool = nn.Identity()
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        channels = self._add_stages(architecture)
        self.fc = nn.Linear(channels, architecture.num_classes)
        self._initialise()

    def _add_stages(self, architecture: Architecture) -> int:
        """Build layer1..layer4 with their attention; returns the last map's channels."""
        block = BasicBlock if architecture.depth < 50 else Bottleneck
        attention, channels = architecture.attention, architecture.widths[0]
        self.stage_attention: dict[int, str] = {}  # stage -> name of the module after it
        counts = BLOCKS_PER_STAGE[architecture.depth]
        for stage, (width, count) in enumerate(zip(architecture.widths, counts, strict=True), start=1):
            here = attention if attention and stage in attention.stages else None
            inside = here if here and here.placement == "block" else None
            layer = nn.Sequential()
            for i in range(count):
                stride = 2 if i == 0 and stage > 1 else 1
                layer.append(block(channels, width, stride, inside))
                channels = width * block.expansion
            self.add_module(f"layer{stage}", layer)
            if here and here.placement == "stage":
                self.stage_attention[stage] = f"{here.kind}{stage}"
                self.add_module(f"{here.kind}{stage}", build_attention(here, channels))
        return channels

    def _initialise(self) -> None:
        """He initialisation of every convolution (fan out), as torchvision does."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def evidence(self, x: Tensor) -> Evidence:
        """Logits, last features and every attention map, all from one pass."""
        sites: dict[str, Maps] = {}
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for stage in (1, 2, 3, 4):
            layer = cast(nn.Sequential, self.get_submodule(f"layer{stage}"))
            for i, block in enumerate(layer):
                block = cast(Block, block)
                x, maps = block.observe(x)
                if maps:
                    sites[f"layer{stage}.{i}.{block.attention_name}"] = maps
            if name := self.stage_attention.get(stage):
                module = cast("Cbam | Bam", self.get_submodule(name))
                sites[name] = module.attention(x)
                x = module.refine(x, sites[name])
        return Evidence(self.fc(x.mean((2, 3))), x, sites)

    def place(self, layer: str) -> str:
        """The module whose output is meant by `layer1` to `layer4` (a stage's last block) or by a site's name."""
        if layer in STAGES:
            return f"{layer}.{len(cast(nn.Sequential, self.get_submodule(layer))) - 1}"
        return layer

    def forward(self, x: Tensor) -> Tensor:
        """The logits alone."""
        return self.evidence(x).logits
