"""CBAM: Convolutional Block Attention Module (Woo, Park, Lee, Kweon; ECCV 2018, arXiv:1807.06521).

    F' = Mc(F) * F          Mc(F) = sigmoid(MLP(AvgPool(F)) + MLP(MaxPool(F)))      one value per channel
    F'' = Ms(F') * F'       Ms(F) = sigmoid(f([avg over channels; max over channels]))  one value per position

Owns the paper's equations as printed (the shared MLP is W1(ReLU(W0 x)) without biases, f is one k x k convolution
without bias or normalisation, and its input is stacked average first) and the ways in which published code departs from
them, each an argument whose default is the paper. Knows nothing of where it sits in a network.
Pools are written as mean and amax, which export for any H and W.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

POOLS: dict[str, Callable[[Tensor], Tensor]] = {"avg": lambda x: x.mean((2, 3)), "max": lambda x: x.amax((2, 3))}


class Maps(NamedTuple):
    """What one attention module computed for a batch; gates for CBAM, branches before the sigmoid for BAM."""

    channel: Tensor  # (N, C)
    spatial: Tensor  # (N, H, W)


class ChannelGate(nn.Module):
    """Mc: which channels to keep, (N, C, H, W) -> (N, C) in 0..1."""

    def __init__(self, channels: int, reduction: int, pooling: str, bias: bool, light: bool) -> None:
        super().__init__()
        hidden = max(1, channels // reduction)
        self.pooling, self.light = pooling, light
        self.mlp = nn.Sequential(
            nn.Linear(channels, hidden, bias=bias), nn.ReLU(), nn.Linear(hidden, channels, bias=bias)
        )

    def forward(self, x: Tensor) -> Tensor:
        """The gate of each channel."""
        pooled = [POOLS[name](x) for name in self.pooling.split("+")]  # each (N, C)
        if self.light:
            return torch.sigmoid(self.mlp(0.5 * pooled[0] + 0.5 * pooled[1]))
        terms = [self.mlp(vector) for vector in pooled]
        return torch.sigmoid(sum(terms[1:], start=terms[0]))


class SpatialGate(nn.Module):
    """Ms: which positions to keep, (N, C, H, W) -> (N, H, W) in 0..1."""

    def __init__(self, kernel: int, order: str, bias: bool, norm: bool, light: bool) -> None:
        super().__init__()
        self.order, self.light = order, light
        self.conv = nn.Conv2d(1 if light else 2, 1, kernel, padding=kernel // 2, bias=bias)
        self.bn = nn.BatchNorm2d(1) if norm else None

    def forward(self, x: Tensor) -> Tensor:
        """The gate of each position."""
        average, largest = x.mean(1, keepdim=True), x.amax(1, keepdim=True)  # (N, 1, H, W)
        if self.light:
            pooled = 0.5 * average + 0.5 * largest
        else:
            pooled = torch.cat([average, largest] if self.order == "avg,max" else [largest, average], dim=1)
        out = self.conv(pooled)
        return torch.sigmoid(self.bn(out) if self.bn else out).squeeze(1)


class Cbam(nn.Module):
    """Both gates, channel first; (N, C, H, W) -> the same shape. The choices are those of `architecture.Attention`."""

    def __init__(
        self,
        channels: int,
        reduction: int = 16,
        kernel: int = 7,
        pooling: str = "avg+max",
        *,
        bias: bool = False,
        spatial_order: str = "avg,max",
        spatial_bias: bool = False,
        spatial_norm: bool = False,
        light: bool = False,
        residual: bool = False,
    ) -> None:
        super().__init__()
        self.channel = ChannelGate(channels, reduction, pooling, bias, light)
        self.spatial = SpatialGate(kernel, spatial_order, spatial_bias, spatial_norm, light)
        self.residual = residual

    def attention(self, x: Tensor) -> Maps:
        """The two gates for x; the spatial gate sees the channel-refined map."""
        channel = self.channel(x)
        return Maps(channel, self.spatial(x * channel[:, :, None, None]))

    def refine(self, x: Tensor, maps: Maps) -> Tensor:
        """x with both gates applied."""
        refined = x * maps.channel[:, :, None, None] * maps.spatial[:, None]
        return refined + x if self.residual else refined

    def forward(self, x: Tensor) -> Tensor:
        """The refined map F''."""
        return self.refine(x, self.attention(x))
