"""Random changes to a batch of training pictures: geometry, colour and erasing, each drawn per picture.

Owns how pictures are varied, as batched tensor operations from a given generator; knows nothing of data sets or nets.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.nn import functional

from attnserve.errors import ConfigError


@dataclass(frozen=True)
class Augmentation:
    """How far pictures are varied; all zeros leave them as they are.

    Attributes:
        flip: Mirror half of the pictures left to right.
        shift: Largest shift either way, as a fraction of the side; without `rotate` and `scale` whole pixels.
        rotate: Largest rotation either way in degrees.
        scale: Largest zoom in or out, as a fraction.
        jitter: Largest change of brightness, contrast and saturation, as a fraction.
        erase: Chance that a rectangle of 2 % to 25 % of the picture is replaced by noise (Zhong et al., AAAI 2020).
    """

    flip: bool = False
    shift: float = 0.0
    rotate: float = 0.0
    scale: float = 0.0
    jitter: float = 0.0
    erase: float = 0.0

    def __post_init__(self) -> None:
        for name, most in (("shift", 0.5), ("rotate", 180.0), ("scale", 0.9), ("jitter", 0.9), ("erase", 1.0)):
            if not 0 <= getattr(self, name) <= most:
                raise ConfigError(f"augmentation: {name} must be within 0..{most}, got {getattr(self, name)}")

    def __call__(self, images: Tensor, generator: Generator) -> Tensor:
        """Vary (N, 3, H, W) float32 in 0..1; returns a new tensor of the same shape and range."""
        if self.flip or self.shift or self.rotate or self.scale:
            images = self._moved(images, generator)
        if self.jitter:
            images = self._recoloured(images, generator)
        if self.erase:
            images = self._erased(images, generator)
        return images

    def _moved(self, images: Tensor, generator: Generator) -> Tensor:
        """Flip, zoom, rotate and shift in one resampling; what comes in from outside repeats the edge."""
        n, _, height, width = images.shape
        angle = _spread(n, math.radians(self.rotate), generator)
        zoom = 1 + _spread(n, self.scale, generator)
        mirror = 1 - 2 * torch.randint(2, (n,), generator=generator).float() * self.flip
        x, y = _spread(n, 2 * self.shift, generator), _spread(n, 2 * self.shift, generator)
        if not self.rotate and not self.scale:  # whole pixels keep small pictures sharp
            x, y = (x * width / 2).round() * 2 / width, (y * height / 2).round() * 2 / height
        cos, sin = angle.cos() / zoom, angle.sin() / zoom
        theta = torch.stack([cos * mirror, -sin, x, sin * mirror, cos, y], dim=1).view(n, 2, 3)
        grid = functional.affine_grid(theta, list(images.shape), align_corners=False)
        return functional.grid_sample(images, grid, padding_mode="border", align_corners=False)

    def _recoloured(self, images: Tensor, generator: Generator) -> Tensor:
        """Change brightness, contrast and saturation, in this order."""
        brightness, contrast, saturation = (
            (1 + _spread(len(images), self.jitter, generator)).view(-1, 1, 1, 1) for _ in range(3)
        )
        images = images * brightness
        images = torch.lerp(images.mean((1, 2, 3), keepdim=True), images, contrast)
        return torch.lerp(images.mean(1, keepdim=True), images, saturation).clamp(0, 1)

    def _erased(self, images: Tensor, generator: Generator) -> Tensor:
        """Replace a rectangle of some pictures by noise."""
        n, _, height, width = images.shape
        area = 0.02 + 0.23 * torch.rand(n, generator=generator)
        aspect = torch.exp(_spread(n, math.log(3.0), generator))  # 1:3 to 3:1, as in the paper
        h, w = (area * aspect).sqrt() * height, (area / aspect).sqrt() * width
        top, left = torch.rand(n, generator=generator) * (height - h), torch.rand(n, generator=generator) * (width - w)
        ys, xs = torch.arange(height), torch.arange(width)
        rows = (ys >= top[:, None]) & (ys < (top + h)[:, None])  # (N, H)
        columns = (xs >= left[:, None]) & (xs < (left + w)[:, None])  # (N, W)
        chosen = torch.rand(n, generator=generator) < self.erase
        mask = chosen[:, None, None, None] & rows[:, None, :, None] & columns[:, None, None, :]
        return torch.where(mask, torch.rand(images.shape, generator=generator), images)


def _spread(n: int, most: float, generator: Generator) -> Tensor:
    """n values spread evenly over -most..most."""
    return (2 * torch.rand(n, generator=generator) - 1) * most
