"""Networks as other people's code computes them, written a second time from its description and without our modules.

Plain and slow on purpose: pools are pooling layers, gates are expanded to whole maps, blocks are spelt out. Sources
without a package are described in their repositories; where a package exists it is the oracle instead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
Attach = Callable[[nn.Module, int], None]  # adds attention to a block of so many output channels


class Block(nn.Module):
    def __init__(self, entering: int, width: int, stride: int, deep: bool, attach: Attach | None) -> None:
        super().__init__()
        leaving = 4 * width if deep else width
        layers = [(entering, width, 1, 1), (width, width, 3, stride), (width, leaving, 1, 1)]
        for i, (a, b, k, s) in enumerate(layers if deep else [(entering, width, 3, stride), (width, width, 3, 1)], 1):
            self.add_module(f"conv{i}", nn.Conv2d(a, b, k, s, k // 2, bias=False))
            self.add_module(f"bn{i}", nn.BatchNorm2d(b))
        self.deep, self.downsample = deep, None
        if stride != 1 or entering != leaving:
            self.downsample = nn.Sequential(
                nn.Conv2d(entering, leaving, 1, stride, bias=False), nn.BatchNorm2d(leaving)
            )
        self.refine: Callable[[Tensor], Tensor] = lambda out: out
        if attach:
            attach(self, leaving)

    def forward(self, x: Tensor) -> Tensor:
        out = functional.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.deep:
            out = self.bn3(self.conv3(functional.relu(out)))
        out = self.refine(out)
        return functional.relu(out + (x if self.downsample is None else self.downsample(x)))


def stages(depth: int, attach: Attach | None) -> list[nn.Sequential]:
    made, entering, deep = [], 64, depth >= 50
    for stage, (width, count) in enumerate(zip((64, 128, 256, 512), BLOCKS[depth], strict=True)):
        blocks = []
        for i in range(count):
            blocks.append(Block(entering, width, 2 if stage and not i else 1, deep, attach))
            entering = 4 * width if deep else width
        made.append(nn.Sequential(*blocks))
    return made


class Net(nn.Module):
    """The names of torchvision; `small` is the stem for CIFAR; `after` adds modules `bam1`.. after stages."""

    def __init__(
        self,
        depth: int,
        attach: Attach | None = None,
        small: bool = False,
        after: Callable[[int], nn.Module] | None = None,
        classes: int = 10,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False) if small else nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1, self.small = nn.BatchNorm2d(64), small
        for i, layer in enumerate(stages(depth, attach), 1):
            self.add_module(f"layer{i}", layer)
        out = 2048 if depth >= 50 else 512
        for i, part in enumerate((8, 4, 2), 1):
            if after:
                self.add_module(f"bam{i}", after(out // part))
        self.fc = nn.Linear(out, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.bn1(self.conv1(x)))
        x = x if self.small else functional.max_pool2d(x, 3, 2, 1)
        for i in (1, 2, 3, 4):
            x = self.get_submodule(f"layer{i}")(x)
            if i < 4 and hasattr(self, f"bam{i}"):
                x = self.get_submodule(f"bam{i}")(x)
        return self.fc(functional.adaptive_avg_pool2d(x, 1).flatten(1))


class Gate(nn.Module):
    """Marks a value for comparison: a hook sees what passes."""

    def forward(self, x: Tensor) -> Tensor:
        return x


# --- Jongchan/attention-module ---------------------------------------------------------------------------------------


class JongchanChannel(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = channels // 16
        self.mlp = nn.Sequential(nn.Flatten(), nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, channels))
        self.channel_gate = Gate()

    def forward(self, x: Tensor) -> Tensor:
        side = (x.size(2), x.size(3))
        raw = self.mlp(functional.avg_pool2d(x, side, side)) + self.mlp(functional.max_pool2d(x, side, side))
        return x * self.channel_gate(torch.sigmoid(raw))[:, :, None, None].expand_as(x)


class JongchanSpatial(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.spatial = nn.Module()
        self.spatial.conv = nn.Conv2d(2, 1, 7, padding=3, bias=False)
        self.spatial.bn = nn.BatchNorm2d(1, momentum=0.01)
        self.spatial_gate = Gate()

    def forward(self, x: Tensor) -> Tensor:
        both = torch.cat((torch.max(x, 1)[0].unsqueeze(1), torch.mean(x, 1).unsqueeze(1)), dim=1)
        return x * self.spatial_gate(torch.sigmoid(self.spatial.bn(self.spatial.conv(both)))[:, 0])[:, None]


def jongchan_cbam(block: nn.Module, channels: int) -> None:
    block.cbam = nn.Module()
    block.cbam.ChannelGate, block.cbam.SpatialGate = JongchanChannel(channels), JongchanSpatial()
    block.refine = lambda out: block.cbam.SpatialGate(block.cbam.ChannelGate(out))


class JongchanBam(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        h = channels // 16
        self.channel_att, self.spatial_att = nn.Module(), nn.Module()
        self.channel_att.gate_c, self.spatial_att.gate_s = nn.Sequential(), nn.Sequential()
        for name, layer in (
            ("flatten", nn.Flatten()),
            ("gate_c_fc_0", nn.Linear(channels, h)),
            ("gate_c_bn_1", nn.BatchNorm1d(h)),
            ("gate_c_relu_1", nn.ReLU()),
            ("gate_c_fc_final", nn.Linear(h, channels)),
        ):
            self.channel_att.gate_c.add_module(name, layer)
        spatial = [("conv_reduce0", nn.Conv2d(channels, h, 1)), ("bn_reduce0", nn.BatchNorm2d(h)), ("r", nn.ReLU())]
        for i in (0, 1):
            spatial.append((f"conv_di_{i}", nn.Conv2d(h, h, 3, padding=4, dilation=4)))
            spatial += [(f"bn_di_{i}", nn.BatchNorm2d(h)), (f"relu_di_{i}", nn.ReLU())]
        for name, layer in (*spatial, ("conv_final", nn.Conv2d(h, 1, 1))):
            self.spatial_att.gate_s.add_module(f"gate_s_{name}", layer)
        self.channel_gate, self.spatial_gate = Gate(), Gate()

    def forward(self, x: Tensor) -> Tensor:
        pooled = functional.avg_pool2d(x, x.size(2), stride=x.size(2))  # as published: square maps only
        c = self.channel_gate(self.channel_att.gate_c(pooled))[:, :, None, None].expand_as(x)
        s = self.spatial_gate(self.spatial_att.gate_s(x)[:, 0])[:, None].expand_as(x)
        return (1 + torch.sigmoid(c * s)) * x


# --- luuuyi/CBAM.PyTorch, and the notebook that copies its gates ----------------------------------------------------


class Bare(nn.Module):
    """CBAM without normalisation; how its layers are called and which of them are there is up to the caller.

    `style`: `fc1` (two attributes), `fc` (a Sequential of 1x1 convolutions) or `mlp` (of linear layers).
    """

    def __init__(
        self,
        channels: int,
        style: str,
        names: Sequence[str] = ("ca", "sa"),
        *,
        kernel: int = 7,
        ratio: int = 16,
        pools: Sequence[str] = ("avg", "max"),
        largest_first: bool = False,
        bias: bool = False,
        add: bool = False,
    ) -> None:
        super().__init__()
        self.style, self.names, self.pools, self.largest_first, self.add = style, names, pools, largest_first, add
        h = channels // ratio
        ca, sa = nn.Module(), nn.Module()
        if style == "mlp":
            ca.mlp = nn.Sequential(nn.Linear(channels, h, bias=bias), nn.ReLU(), nn.Linear(h, channels, bias=bias))
        else:
            first, second = nn.Conv2d(channels, h, 1, bias=bias), nn.Conv2d(h, channels, 1, bias=bias)
            if style == "fc":
                ca.fc = nn.Sequential(first, nn.ReLU(), second)
            else:
                ca.fc1, ca.fc2 = first, second
        sa.conv1 = nn.Conv2d(2, 1, kernel, padding=kernel // 2, bias=bias)
        self.add_module(names[0], ca)
        self.add_module(names[1], sa)
        self.channel_gate, self.spatial_gate = Gate(), Gate()

    def squeeze(self, pooled: Tensor) -> Tensor:  # (N, C, 1, 1) -> (N, C)
        ca = self.get_submodule(self.names[0])
        if self.style == "mlp":
            return ca.mlp(pooled.flatten(1))
        if self.style == "fc":
            return ca.fc(pooled).flatten(1)
        return ca.fc2(functional.relu(ca.fc1(pooled))).flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        pools = {"avg": functional.adaptive_avg_pool2d, "max": functional.adaptive_max_pool2d}
        raw = sum(self.squeeze(pools[name](x, 1)) for name in self.pools)
        out = self.channel_gate(torch.sigmoid(raw))[:, :, None, None] * x
        both = [out.mean(1, keepdim=True), out.max(1, keepdim=True)[0]]
        raw = self.get_submodule(self.names[1]).conv1(torch.cat(both[::-1] if self.largest_first else both, dim=1))
        out = self.spatial_gate(torch.sigmoid(raw)[:, 0])[:, None] * out
        return out + x if self.add else out


def luuuyi(style: str) -> Attach:
    def attach(block: nn.Module, channels: int) -> None:
        bare = Bare(channels, style)
        block.ca, block.sa = bare.ca, bare.sa  # it has no module of its own around the two
        block.channel_gate, block.spatial_gate = bare.channel_gate, bare.spatial_gate
        block.refine = bare.forward

    return attach


class Notebook(nn.Module):
    """`features`: torchvision's stem and stages with CBAM after some of them."""

    def __init__(self, depth: int = 50, at: Sequence[int] = (1, 2, 3, 4), style: str = "fc1", **choices: Any) -> None:
        super().__init__()
        out = 2048 if depth >= 50 else 512
        parts: list[nn.Module] = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
        parts.append(nn.MaxPool2d(3, 2, 1))
        for stage, layer in enumerate(stages(depth, None), 1):
            parts.append(layer)
            if stage in at:
                parts.append(Bare(out // 2 ** (4 - stage), style, **choices))
        self.features = nn.Sequential(*parts)
        self.fc = nn.Linear(out, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(functional.adaptive_avg_pool2d(self.features(x), 1).flatten(1))


def renamed(block: nn.Module, channels: int) -> None:
    """Nobody's names: residual added, largest first, biases everywhere."""
    block.attention = Bare(channels, "fc", ("fold", "look"), kernel=3, largest_first=True, bias=True, add=True)
    block.refine = block.attention.forward
