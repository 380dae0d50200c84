"""One place in a network, opened: what flows there can be read, and another value can be let flow on from it.

Owns the module that stands there; knows neither gradients nor files.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from attnserve.errors import ConfigError
from attnserve.export.cbam import Maps
from attnserve.export.servable import Servable
from attnserve.export.vit import ViT


class Tap(nn.Module):
    """Stands in for a block, a stage or an attention module, and does what that does.

    What flows on is a copy, so that a later layer that works in place does not change what was noted.
    """

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.seen: list[Tensor] = []
        self.given: Tensor | None = None

    @property
    def attention_name(self) -> str | None:
        """A block's."""
        name: str | None = self.inner.attention_name  # type: ignore[assignment]
        return name

    def observe(self, x: Tensor) -> tuple[Tensor, Maps | None]:
        """A block's output and maps."""
        out, maps = self.inner.observe(x)  # type: ignore[operator]
        return self._through(out), maps

    def attention(self, x: Tensor) -> Maps:
        """An attention module's maps."""
        maps: Maps = self.inner.attention(x)  # type: ignore[operator]
        return maps

    def refine(self, x: Tensor, maps: Maps) -> Tensor:
        """An attention module's output."""
        return self._through(self.inner.refine(x, maps))  # type: ignore[operator]

    def forward(self, x: Tensor) -> Tensor:
        """Any module's output."""
        return self._through(self.inner(x))

    def _through(self, out: Tensor) -> Tensor:
        self.seen.append(out)
        return (out if self.given is None else self.given).clone()


class TokenTap(Tap):
    """The same in a transformer: the patches are a map, (N, C, grid, grid), and the class token passes by it."""

    def __init__(self, inner: nn.Module, grid: int) -> None:
        super().__init__(inner)
        self.grid = grid

    def _through(self, out: Tensor) -> Tensor:
        features = out[:, 1:].transpose(1, 2).reshape(out.shape[0], out.shape[2], self.grid, self.grid)
        self.seen.append(features)
        given = features if self.given is None else self.given
        return torch.cat([out[:, :1], given.flatten(2).transpose(1, 2)], dim=1)


class Tapped(nn.Module):
    """A copy of a servable network, open at a place.

    `layer1` to `layer4` is a stage's output, an attention site its module's output, a transformer's block the
    normalised tokens of the patches that its attention is given.
    """

    def __init__(self, servable: Servable, layer: str) -> None:
        super().__init__()
        self.servable, self.layer = copy.deepcopy(servable).eval().requires_grad_(True), layer
        network = self.servable.network
        place = network.place(layer)
        inner = network.get_submodule(place)
        self.tap = TokenTap(inner, network.grid) if isinstance(network, ViT) else Tap(inner)
        network.set_submodule(place, self.tap)

    def observe(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(N, H, W, 3) uint8 -> what flows at the place, (N, C, h, w), and the logits, from one pass.

        Raises:
            ConfigError: The network does not run the place exactly once as a module.
        """
        self.tap.seen.clear()
        logits = self.servable(images)[1]
        if len(self.tap.seen) != 1:
            raise ConfigError(f"{self.layer}: runs {len(self.tap.seen)} times in a pass; one is needed to explain it")
        return self.tap.seen.pop(), logits

    def logits_from(self, features: Tensor, images: Tensor) -> Tensor:
        """The logits where `features` flow on from the place; of the pictures only what goes round it counts."""
        self.tap.given = features
        try:
            return self.observe(images)[1]
        finally:
            self.tap.given = None
