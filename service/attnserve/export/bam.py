"""BAM: Bottleneck Attention Module (Park, Woo, Lee, Kweon; BMVC 2018, arXiv:1807.06514).

    F' = F + F * M(F)       M(F) = sigmoid(Mc(F) + Ms(F)), both broadcast to C x H x W
    Mc(F) = BN(MLP(AvgPool(F)))
    Ms(F) = BN(f3(f2(f1(f0(F)))))    f0, f3: 1x1; f1, f2: 3x3 with dilation d

Owns the paper's equations: batch normalisation ends both branches. The hidden layers follow the authors' code: the
MLP's one hidden layer and f0, f1, f2 are each followed by batch normalisation and ReLU, and all layers have biases.
`combine="mul"` multiplies the branches before the sigmoid and `final_norm=False` leaves out the last normalisation of
both, as the authors' released code does against the paper.
Knows nothing of where it sits in a network.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from attnserve.export.cbam import Maps


class ChannelBranch(nn.Sequential):
    """Mc before the sigmoid: (N, C) pooled features -> (N, C)."""

    def __init__(self, channels: int, reduction: int, final_norm: bool) -> None:
        hidden = max(1, channels // reduction)
        layers = [nn.Linear(channels, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, channels)]
        super().__init__(*layers, *([nn.BatchNorm1d(channels)] if final_norm else []))


class SpatialBranch(nn.Sequential):
    """Ms before the sigmoid: (N, C, H, W) -> (N, 1, H, W)."""

    def __init__(self, channels: int, reduction: int, dilation: int, final_norm: bool) -> None:
        hidden = max(1, channels // reduction)
        layers: list[nn.Module] = [nn.Conv2d(channels, hidden, 1), nn.BatchNorm2d(hidden), nn.ReLU()]
        for _ in range(2):
            dilated = nn.Conv2d(hidden, hidden, 3, padding=dilation, dilation=dilation)
            layers += [dilated, nn.BatchNorm2d(hidden), nn.ReLU()]
        super().__init__(*layers, nn.Conv2d(hidden, 1, 1), *([nn.BatchNorm2d(1)] if final_norm else []))


class Bam(nn.Module):
    """Both branches side by side; (N, C, H, W) -> the same shape."""

    def __init__(
        self, channels: int, reduction: int = 16, dilation: int = 4, combine: str = "add", final_norm: bool = True
    ) -> None:
        super().__init__()
        self.channel = ChannelBranch(channels, reduction, final_norm)
        self.spatial = SpatialBranch(channels, reduction, dilation, final_norm)
        self.combine = combine

    def attention(self, x: Tensor) -> Maps:
        """The two branches for x, before they are combined and squashed."""
        return Maps(self.channel(x.mean((2, 3))), self.spatial(x).squeeze(1))

    def refine(self, x: Tensor, maps: Maps) -> Tensor:
        """x + x * M."""
        channel, spatial = maps.channel[:, :, None, None], maps.spatial[:, None]
        joined = channel + spatial if self.combine == "add" else channel * spatial
        return x + x * torch.sigmoid(joined)

    def forward(self, x: Tensor) -> Tensor:
        """The refined map F'."""
        return self.refine(x, self.attention(x))
