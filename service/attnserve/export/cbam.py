"""CBAM: Convolutional Block Attention Module (Woo, Park, Lee, Kweon; ECCV 2018, arXiv:1807.06521).

    F' = Mc(F) * F          Mc(F) = sigmoid(MLP(AvgPool(F)) + MLP(MaxPool(F)))      one value per channel
    F'' = Ms(F') * F'       Ms(F) = sigmoid(f([avg over channels; max over channels]))  one value per position

Owns the paper's equations as printed: the shared MLP is W1(ReLU(W0 x)) without biases, f is one k x k convolution
without bias or normalisation, and its input is stacked average first. Knows nothing of where it sits in a network.
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

    def __init__(self, channels: int, reduction: int, pooling: str) -> None:
        super().__init__()
        hidden = max(1, channels // reduction)
        self.pooling = pooling
        self.mlp = nn.Sequential(
            nn.Linear(channels, hidden, bias=False), nn.ReLU(), nn.Linear(hidden, channels, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        """The gate of each channel."""
        terms = [self.mlp(POOLS[name](x)) for name in self.pooling.split("+")]  # each (N, C)
        return torch.sigmoid(sum(terms[1:], start=terms[0]))


class SpatialGate(nn.Module):
    """Ms: which positions to keep, (N, C, H, W) -> (N, H, W) in 0..1."""

    def __init__(self, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, kernel, padding=kernel // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """The gate of each position."""
        pooled = torch.stack([x.mean(1), x.amax(1)], dim=1)  # (N, 2, H, W)
        return torch.sigmoid(self.conv(pooled)).squeeze(1)


class Cbam(nn.Module):
    """Both gates, channel first; (N, C, H, W) -> the same shape."""

    def __init__(self, channels: int, reduction: int = 16, kernel: int = 7, pooling: str = "avg+max") -> None:
        super().__init__()
        self.channel = ChannelGate(channels, reduction, pooling)
        self.spatial = SpatialGate(kernel)

    def attention(self, x: Tensor) -> Maps:
        """The two gates for x; the spatial gate sees the channel-refined map."""
        channel = self.channel(x)
        return Maps(channel, self.spatial(x * channel[:, :, None, None]))

    def refine(self, x: Tensor, maps: Maps) -> Tensor:
        """x with both gates applied."""
        return x * maps.channel[:, :, None, None] * maps.spatial[:, None]

    def forward(self, x: Tensor) -> Tensor:
        """The refined map F''."""
        return self.refine(x, self.attention(x))
