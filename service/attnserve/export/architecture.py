"""What a network is, as plain data: a ResNet and where which attention sits in it, or a Vision Transformer.

Owns the choices and their validation; knows neither torch nor weights, so a card can be read without either.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from attnserve.errors import ConfigError

DEPTHS = (18, 34, 50, 101)
KINDS = ("cbam", "bam")
PLACEMENTS = ("block", "stage")
POOLINGS = ("avg", "max", "avg+max")
COMBINES = ("add", "mul")
SPATIAL_ORDERS = ("avg,max", "max,avg")


@dataclass(frozen=True)
class Attention:
    """Which attention module a network carries, where, and with which choices.

    Attributes:
        kind: `cbam` or `bam`.
        placement: `block`, in every residual block before the addition, or `stage`, once after a stage.
        stages: The stages (1..4) that carry it.
        reduction: The hidden width is channels // reduction, at least 1.
        kernel: CBAM: side of the spatial gate's convolution, 3 or 7.
        pooling: CBAM: what the channel gate pools over H x W: `avg`, `max` or `avg+max`.
        dilation: BAM: dilation of the spatial branch's two 3x3 convolutions.
        combine: BAM: how the branches meet before the sigmoid: `add` as in the paper, or `mul`.
        bias: CBAM: whether the channel gate's two layers have biases.
        spatial_order: CBAM: how the two maps that the spatial gate convolves are stacked.
        spatial_bias: CBAM: whether that convolution has a bias.
        spatial_norm: CBAM: whether batch normalisation follows that convolution.
        light: CBAM: both gates see one map, half the average plus half the maximum, instead of two (timm's `lcbam`).
        residual: CBAM: the module's input is added to its output.
        final_norm: BAM: whether batch normalisation ends both branches, as in the paper.
    """

    kind: str
    placement: str = "block"
    stages: tuple[int, ...] = (1, 2, 3, 4)
    reduction: int = 16
    kernel: int = 7
    pooling: str = "avg+max"
    dilation: int = 4
    combine: str = "add"
    bias: bool = False
    spatial_order: str = "avg,max"
    spatial_bias: bool = False
    spatial_norm: bool = False
    light: bool = False
    residual: bool = False
    final_norm: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "stages", tuple(self.stages))
        _one_of("attention kind", self.kind, KINDS)
        _one_of("placement", self.placement, PLACEMENTS)
        _one_of("kernel", self.kernel, (3, 7))
        _one_of("pooling", self.pooling, POOLINGS)
        _one_of("combine", self.combine, COMBINES)
        _one_of("spatial_order", self.spatial_order, SPATIAL_ORDERS)
        for name in ("bias", "spatial_bias", "spatial_norm", "light", "residual", "final_norm"):
            _one_of(name, getattr(self, name), (True, False))
        if self.light and self.pooling != "avg+max":
            raise ConfigError(f"architecture: a light CBAM pools avg+max, got {self.pooling!r}")
        _positive("reduction", self.reduction)
        _positive("dilation", self.dilation)
        if not self.stages or list(self.stages) != sorted(set(self.stages)) or not set(self.stages) <= {1, 2, 3, 4}:
            raise ConfigError(f"architecture: stages must be distinct, rising numbers of 1..4, got {self.stages}")


@dataclass(frozen=True)
class Architecture:
    """A ResNet and its attention.

    Attributes:
        depth: 18, 34 (basic blocks), 50 or 101 (bottlenecks).
        num_classes: Width of the logits.
        stem: `imagenet`: 7x7 convolution of stride 2 and max-pool; `small`: 3x3 convolution, no max-pool.
        stem_stride: Stride of the small stem, 1 or 2; the imagenet stem's is always 2.
        widths: Channels of the four stages (before a bottleneck's expansion by 4).
        attention: None for a plain ResNet.
    """

    depth: int
    num_classes: int
    stem: str = "imagenet"
    stem_stride: int = 2
    widths: tuple[int, int, int, int] = (64, 128, 256, 512)
    attention: Attention | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "widths", tuple(self.widths))
        _one_of("depth", self.depth, DEPTHS)
        _one_of("stem", self.stem, ("imagenet", "small"))
        _one_of("stem_stride", self.stem_stride, (1, 2) if self.stem == "small" else (2,))
        _positive("num_classes", self.num_classes)
        if len(self.widths) != 4:
            raise ConfigError(f"architecture: widths must be four numbers, got {self.widths}")
        for width in self.widths:
            _positive("width", width)

    def to_dict(self) -> dict[str, Any]:
        """The choices as JSON-ready values; `from_dict` reads them back."""
        return dataclasses.asdict(self)

    @property
    def kind(self) -> str:
        """`plain`, `cbam`, `lcbam` (a light CBAM) or `bam`."""
        if self.attention is None:
            return "plain"
        return "lcbam" if self.attention.light else self.attention.kind

    def with_facts(self, facts: Mapping[str, Any]) -> Architecture:
        """The same with these fields of its attention changed; raises `ConfigError` where a value is none."""
        attention = self.attention and dataclasses.replace(self.attention, **facts)
        return dataclasses.replace(self, attention=attention)

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Architecture:
        """Parse `to_dict`'s form; raises `ConfigError` naming what is wrong."""
        try:
            attention = raw.get("attention")
            return cls(**{**raw, "attention": None if attention is None else Attention(**attention)})
        except (TypeError, AttributeError) as error:
            raise ConfigError(f"architecture: {error}") from error


@dataclass(frozen=True)
class Transformer:
    """A Vision Transformer that classifies by its class token.

    Attributes:
        depth: Encoder blocks.
        width: Channels of a token.
        heads: Attention heads in every block; they share the width evenly.
        mlp_width: Hidden channels of a block's perceptron.
        patch: Side of a patch in pixels.
        grid: Patches along a side of the square picture; the position embedding fixes it.
        num_classes: Width of the logits.
    """

    depth: int
    width: int
    heads: int
    mlp_width: int
    patch: int
    grid: int
    num_classes: int

    kind = "vit"
    stem = "patches"

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            _positive(field.name, getattr(self, field.name))
        if self.width % self.heads:
            raise ConfigError(f"architecture: {self.heads} heads cannot share a width of {self.width}")

    @property
    def image_size(self) -> int:
        """Side of the picture in pixels."""
        return self.patch * self.grid

    def with_facts(self, facts: Mapping[str, Any]) -> Transformer:
        """The same with these fields changed; raises `ConfigError` where a value is none."""
        return dataclasses.replace(self, **facts)

    def to_dict(self) -> dict[str, Any]:
        """The choices as JSON-ready values, and `kind`, by which a reader tells them from a ResNet's."""
        return {"kind": self.kind, **dataclasses.asdict(self)}


def _one_of(name: str, value: object, allowed: tuple[object, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"architecture: {name} must be one of {', '.join(map(str, allowed))}, got {value!r}")


def _positive(name: str, value: object) -> None:
    if not isinstance(value, int) or value < 1:
        raise ConfigError(f"architecture: {name} must be a positive integer, got {value!r}")
