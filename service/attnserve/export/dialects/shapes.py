"""The architecture that a set of tensors in our names spells, and where the two disagree.

Owns the reading of depth, widths, classes, stem, attention and patches from shapes; knows nothing of other names than
ours.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace

import torch

from attnserve.errors import ConfigError
from attnserve.export.architecture import Architecture, Attention, Transformer
from attnserve.export.dialects.dialect import Shapes
from attnserve.export.network import build
from attnserve.export.resnet import BLOCKS_PER_STAGE

SITE = re.compile(r"(?:layer(\d)\.\d+\.(cbam|bam)|(cbam|bam)(\d))\.")
MOST_CHANNELS = 1 << 16  # 32 times a ResNet-101's; what lies above is nobody's network
COUNTER = "num_batches_tracked"  # older files lack it, and evaluation has no use for it


class Misfit(ConfigError):
    """These shapes are no network that we know; says the first thing that is wrong."""


@dataclass(frozen=True)
class Disagreement:
    """Between a file and the network that it comes closest to, each in the order of the network or the file.

    Attributes:
        reason: Why there is no network to compare with, or None.
        shapes: (key, shape in the file, shape in the network).
    """

    reason: str | None = None
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    shapes: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...] = ()

    def __len__(self) -> int:
        return len(self.missing) + len(self.unexpected) + len(self.shapes) + (self.reason is not None)


def spell(shapes: Shapes) -> Architecture | Transformer:
    """The architecture, with every field that shapes do not show at its default, a transformer's heads at 1.

    Raises:
        ConfigError: There is none; often a `Misfit`.
    """
    if "patch_embed.proj.weight" in shapes:
        return _transformer(shapes)
    depth = _depth(shapes)
    stem = _shape(shapes, "conv1.weight")
    if len(stem) != 4 or stem[1] != 3 or stem[2:] not in ((7, 7), (3, 3)):
        raise Misfit(f"conv1.weight is {stem}; only 7x7 and 3x3 convolutions of three colours are known")
    named = {"stem": "imagenet"} if stem[2] == 7 else {"stem": "small", "stem_stride": 1}
    widths = tuple(_shape(shapes, f"layer{stage}.0.conv1.weight")[0] for stage in (1, 2, 3, 4))
    plain = Architecture(depth, _shape(shapes, "fc.weight")[0], widths=widths, **named)  # type: ignore[arg-type]
    return replace(plain, attention=_attention(shapes))


def disagreement(shapes: Shapes, architecture: Architecture | Transformer) -> Disagreement:
    """What is missing from the shapes, too much, or of another shape than the network's."""
    expected = network_shapes(architecture)
    return Disagreement(
        missing=tuple(key for key in expected if key not in shapes and not key.endswith(COUNTER)),
        unexpected=tuple(key for key in shapes if key not in expected),
        shapes=tuple((key, shapes[key], shape) for key, shape in expected.items() if shapes.get(key, shape) != shape),
    )


def network_shapes(architecture: Architecture | Transformer) -> dict[str, tuple[int, ...]]:
    """Key -> shape of the network's state, without making its weights."""
    with torch.device("meta"):
        network = build(architecture)
    return {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}


def without_unit_sides(shapes: Shapes) -> dict[str, tuple[int, ...]]:
    """A channel gate written as 1x1 convolutions has the shapes of linear layers, as ours."""
    return {key: shape[:2] if is_pointwise(key, shape) else shape for key, shape in shapes.items()}


def is_pointwise(key: str, shape: tuple[int, ...]) -> bool:
    """Whether the key is a linear layer of ours and the shape that of a 1x1 convolution."""
    return ".channel." in key and len(shape) == 4 and shape[2:] == (1, 1)


def _transformer(shapes: Shapes) -> Transformer:
    patches, positions = _shape(shapes, "patch_embed.proj.weight"), _shape(shapes, "pos_embed")
    if len(patches) != 4 or patches[1] != 3 or patches[2] != patches[3]:
        raise Misfit(f"patch_embed.proj.weight is {patches}; only square patches of three colours are known")
    if len(positions) != 3 or positions[1] < 2 or math.isqrt(positions[1] - 1) ** 2 != positions[1] - 1:
        raise Misfit(f"pos_embed is {positions}, which is no class token and a square grid of patches")
    return Transformer(
        depth=len({match[1] for key in shapes if (match := re.match(r"blocks\.(\d+)\.", key))}),
        width=patches[0],
        heads=1,
        mlp_width=_shape(shapes, "blocks.0.mlp.fc1.weight")[0],
        patch=patches[2],
        grid=math.isqrt(positions[1] - 1),
        num_classes=_shape(shapes, "head.weight")[0],
    )


def _depth(shapes: Shapes) -> int:
    blocks: dict[str, set[str]] = {str(stage): set() for stage in (1, 2, 3, 4)}
    for key in shapes:
        if match := re.match(r"layer([1-4])\.(\d+)\.", key):
            blocks[match[1]].add(match[2])
    counts = tuple(map(len, blocks.values()))
    bottleneck = any(re.fullmatch(r"layer\d\.\d+\.conv3\.weight", key) for key in shapes)
    for depth, known in BLOCKS_PER_STAGE.items():
        if counts == known and bottleneck == (depth >= 50):
            return depth
    kind = "bottlenecks" if bottleneck else "basic blocks"
    raise Misfit(f"{'+'.join(map(str, counts))} {kind} are no ResNet of depth {', '.join(map(str, BLOCKS_PER_STAGE))}")


def _attention(shapes: Shapes) -> Attention | None:
    found = [match for key in shapes if (match := SITE.match(key))]
    if not found:
        return None
    kinds = {match[2] or match[3] for match in found}
    placements = {"block" if match[1] else "stage" for match in found}
    if len(kinds) > 1 or len(placements) > 1:
        raise Misfit(f"attention of several kinds or places: {', '.join(sorted(kinds | placements))}")
    (kind,), (placement,) = kinds, placements
    stages = tuple(sorted({int(match[1] or match[4]) for match in found}))
    sites = {match[0] for match in found}
    if kind == "bam":
        reduction = _reduction(shapes, {f"{site}channel.0.weight" for site in sites})
        final_norm = all(f"{site}channel.4.weight" in shapes for site in sites)
        return Attention("bam", placement, stages, reduction, final_norm=final_norm)
    first = found[0][0]
    kernel = _shape(shapes, f"{first}spatial.conv.weight")
    if len(kernel) != 4:
        raise Misfit(f"{first}spatial.conv.weight is {kernel}, not a convolution")
    return Attention(
        "cbam",
        placement,
        stages,
        _reduction(shapes, {f"{site}channel.mlp.0.weight" for site in sites}),
        kernel[3],
        bias=f"{first}channel.mlp.0.bias" in shapes,
        spatial_bias=f"{first}spatial.conv.bias" in shapes,
        spatial_norm=f"{first}spatial.bn.weight" in shapes,
        light=kernel[1] == 1,
    )


def _reduction(shapes: Shapes, hidden_layers: Iterable[str]) -> int:
    pairs = {_shape(shapes, key)[:2] for key in hidden_layers}
    if any(len(pair) < 2 for pair in pairs):
        raise Misfit("the hidden layers of the channel attention are no matrices")
    return common_reduction(pairs)


def common_reduction(pairs: Collection[tuple[int, ...]]) -> int:
    """The r with hidden = max(1, channels // r) for all (hidden, channels), 16 before others.

    Raises:
        Misfit: There is none.
    """
    most = max(channels for _, channels in pairs)
    if most > MOST_CHANNELS:
        raise Misfit(f"channel attention over {most} channels")
    fitting = [r for r in range(1, most + 1) if all(hidden == max(1, channels // r) for hidden, channels in pairs)]
    if not fitting:
        listed = ", ".join(f"{hidden} of {channels}" for hidden, channels in sorted(pairs))
        raise Misfit(f"no one reduction gives the hidden widths {listed}")
    return 16 if 16 in fitting else fitting[-1]


def _shape(shapes: Shapes, key: str) -> tuple[int, ...]:
    shape = shapes.get(key)
    if not shape:
        raise Misfit(f"{key} is missing")
    return shape
