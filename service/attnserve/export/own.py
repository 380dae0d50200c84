"""A user's own network, exported: a torchvision-style ResNet with our attention modules anywhere in it.

Owns finding the modules and watching what they compute while the network runs its own code; the files are `entry`'s.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from attnserve.card import Card, Preprocessing
from attnserve.errors import ConfigError
from attnserve.export.architecture import Architecture, Attention
from attnserve.export.bam import Bam
from attnserve.export.cbam import Cbam, Maps
from attnserve.export.checkpoint import Checkpoint
from attnserve.export.dialects.shapes import Misfit, common_reduction
from attnserve.export.entry import Job, Target, write_entry
from attnserve.export.explain import check_head
from attnserve.export.resnet import BLOCKS_PER_STAGE, Evidence, ResNet
from attnserve.export.sites import attention_modules

PARTS = ("conv1", "layer1", "layer2", "layer3", "layer4", "avgpool", "fc")  # what makes it torchvision-style


class Watched(nn.Module):
    """Stands in for an attention module and notes what it computes."""

    def __init__(self, inner: Cbam | Bam, name: str, seen: dict[str, Maps]) -> None:
        super().__init__()
        self.inner, self.name, self.seen = inner, name, seen

    def attention(self, x: Tensor) -> Maps:
        """What the module computes for x."""
        if self.name in self.seen:
            raise ConfigError(f"{self.name} runs more than once in a pass; give each place a module of its own")
        self.seen[self.name] = self.inner.attention(x)
        return self.seen[self.name]

    def refine(self, x: Tensor, maps: Maps) -> Tensor:
        """x refined by the maps."""
        return self.inner.refine(x, maps)

    def forward(self, x: Tensor) -> Tensor:
        """The module's output."""
        return self.refine(x, self.attention(x))


class Pool(nn.Module):
    """Stands in for the last pool and notes what it is given."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.held: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        """The pool's output."""
        self.held[:] = [x]
        return cast(Tensor, self.inner(x))


class Observed(nn.Module):
    """A copy of a user's network that shows its evidence, as `ResNet` does; `names` are its sites by module name."""

    def __init__(self, model: nn.Module, names: dict[str, str]) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).float().cpu().eval()
        self.seen: dict[str, Maps] = {}
        for module, name in names.items():
            inner = cast("Cbam | Bam", self.model.get_submodule(module))
            self.model.set_submodule(module, Watched(inner, name, self.seen))
        self.pool = Pool(self.model.get_submodule("avgpool"))
        self.model.set_submodule("avgpool", self.pool)

    @property
    def conv1(self) -> nn.Module:
        """The first convolution, into which export folds the normalisation's scale."""
        return self.model.get_submodule("conv1")

    @property
    def fc(self) -> nn.Module:
        """The last layer."""
        return self.model.get_submodule("fc")

    def place(self, layer: str) -> str:
        """The module whose output is meant by `layer1` to `layer4` (the last in the stage) or by a site's name."""
        for path, module in self.named_modules():
            if isinstance(module, Watched) and module.name == layer:
                return str(path)
        path = f"model.{layer}"
        while isinstance(stage := self.get_submodule(path), nn.Sequential):
            path += f".{list(dict(stage.named_children()))[-1]}"
        return path

    def evidence(self, x: Tensor) -> Evidence:
        """Logits, last features and every attention map, all from one pass of the network's own code."""
        self.seen.clear()
        logits = self.model(x)
        (features,), maps = self.pool.held, dict(self.seen)
        self.pool.held.clear()
        self.seen.clear()
        return Evidence(logits, features, maps)

    def forward(self, x: Tensor) -> Tensor:
        """The logits alone."""
        return self.evidence(x).logits


@dataclass
class OwnCheckpoint(Checkpoint):
    """A checkpoint that brings its network along."""

    observed: nn.Module | None = None

    def network(self) -> ResNet:
        """The user's network: no `ResNet`, but what export asks of one (`evidence`, `conv1`, `fc`, `place`) it has."""
        return cast(ResNet, self.observed)


def export_model(
    model: nn.Module, target: Target, preprocessing: Preprocessing, labels: tuple[str, ...] | None, job: Job
) -> Card:
    """Write a model repository entry of the network; see `attnserve.export.export`."""
    backbone = describe(model)
    names = site_names(model, backbone, preprocessing)
    described = dataclasses.replace(backbone, attention=_attention(model, names))
    observed = Observed(model, names)
    check_head(cast(ResNet, observed), preprocessing)
    checkpoint = OwnCheckpoint(
        architecture=described,
        preprocessing=preprocessing,
        labels=labels or tuple(f"class {i}" for i in range(described.num_classes)),
        state_dict={},
        training={"network": f"{type(model).__module__}.{type(model).__qualname__}"},
        observed=observed,
    )
    if len(checkpoint.labels) != described.num_classes:
        raise ConfigError(f"{len(checkpoint.labels)} labels for {described.num_classes} classes")
    return write_entry(checkpoint, target, job)


def describe(model: nn.Module) -> Architecture:
    """Depth, stem and widths of the network, without its attention.

    Raises:
        ConfigError: It is no torchvision-style ResNet.
    """
    if absent := [part for part in PARTS if not hasattr(model, part)]:
        raise ConfigError(f"not a torchvision-style ResNet: no {', '.join(absent)}")
    stages = [_blocks(model.get_submodule(f"layer{stage}")) for stage in (1, 2, 3, 4)]
    counts = tuple(map(len, stages))
    deep = any(hasattr(block, "conv3") for stage in stages for block in stage)
    depths = [depth for depth, known in BLOCKS_PER_STAGE.items() if known == counts and deep == (depth >= 50)]
    stem, head = model.get_submodule("conv1"), model.get_submodule("fc")
    if not depths or not isinstance(stem, nn.Conv2d) or not isinstance(head, nn.Linear):
        raise ConfigError(
            f"not a ResNet of depth {', '.join(map(str, BLOCKS_PER_STAGE))} with one convolution first and one linear"
            f" layer last: its stages have {'+'.join(map(str, counts))} blocks"
        )
    pools = not isinstance(getattr(model, "maxpool", None), nn.Identity | None)
    return Architecture(
        depth=depths[0],
        num_classes=head.out_features,
        stem="imagenet" if pools else "small",
        stem_stride=2 if pools else stem.stride[0],
        widths=cast(tuple[int, int, int, int], tuple(cast(nn.Conv2d, stage[0].conv1).out_channels for stage in stages)),
    )


def site_names(model: nn.Module, backbone: Architecture, view: Preprocessing) -> dict[str, str]:
    """Module name -> site name, in the order of computation; a site's name begins with the stage of its map.

    Raises:
        ConfigError: An attention module does not run, or runs twice.
    """
    modules = attention_modules(model)
    places = [name for name, module in model.named_modules(remove_duplicate=False) if isinstance(module, Cbam | Bam)]
    if shared := sorted(set(places) - modules.keys()):
        raise ConfigError(f"{', '.join(shared)}: the same module as elsewhere; give each place a module of its own")
    observed = Observed(model, {name: name for name in modules})
    with torch.inference_mode():
        maps = observed.evidence(torch.zeros(1, 3, view.height, view.width)).maps
    if silent := sorted(modules.keys() - maps.keys()):
        raise ConfigError(f"attention modules that the network does not run: {', '.join(silent)}")
    names = {}
    for name, found in maps.items():
        halvings = round(math.log2(view.height / found.spatial.shape[1]))
        stage = halvings + 1 - (2 if backbone.stem == "imagenet" else backbone.stem_stride - 1)
        if not 1 <= stage <= 4:
            raise ConfigError(f"{name}: attention at 1/{2**halvings} of the picture lies outside the four stages")
        names[name] = name if name.startswith(f"layer{stage}") else f"stage{stage}.{name}"
    return names


def _blocks(stage: nn.Module) -> list[nn.Module]:
    return [module for module in stage.modules() if hasattr(module, "conv1") and hasattr(module, "conv2")]


def _attention(model: nn.Module, names: dict[str, str]) -> Attention | None:
    """The one description that fits all attention modules; raises `ConfigError` where they differ."""
    modules = attention_modules(model)
    if not modules:
        return None
    stages = tuple(sorted({int(name[len("layer")]) for name in names.values()}))  # "stage" is as long
    found = {}
    for name, module in modules.items():
        parent = model.get_submodule(name.rpartition(".")[0])
        placement = "block" if hasattr(parent, "conv1") and parent is not model else "stage"
        found[name] = dataclasses.replace(_choices(module), placement=placement, stages=stages)
    first, *others = found
    for other in others:
        if found[other] != found[first]:
            raise ConfigError(
                "attention of several kinds, places or choices, where a network can be described with one:"
                f" {_difference(first, found[first], other, found[other])}"
            )
    shapes = {name: tuple(_hidden(module).weight.shape) for name, module in modules.items()}
    try:
        reduction = common_reduction(set(shapes.values()))
    except Misfit:
        listed = ", ".join(f"{name} has {hidden} for {channels}" for name, (hidden, channels) in shapes.items())
        raise ConfigError(
            "attention of several reductions, where a network can be described with one: of hidden units for channels,"
            f" {listed}; build all with the same reduction"
        ) from None
    return dataclasses.replace(found[first], reduction=reduction)


def _difference(name: str, ours: Attention, other: str, theirs: Attention) -> str:
    """Where two modules differ, as `layer1.0.cbam has kernel 7, neck has kernel 3`."""
    values, others = dataclasses.asdict(ours), dataclasses.asdict(theirs)
    differing = ["kind"] if ours.kind != theirs.kind else [key for key in values if values[key] != others[key]]
    said, answered = (" and ".join(f"{key} {both[key]}" for key in differing) for both in (values, others))
    return f"{name} has {said}, {other} has {answered}"


def _hidden(module: Cbam | Bam) -> nn.Linear:
    return cast(nn.Linear, module.channel.mlp[0] if isinstance(module, Cbam) else module.channel[0])


def _choices(module: Cbam | Bam) -> Attention:
    """What can be told from one module."""
    if isinstance(module, Bam):
        dilation = cast(nn.Conv2d, module.spatial[3]).dilation[0]
        final_norm = isinstance(module.channel[-1], nn.BatchNorm1d)
        return Attention("bam", dilation=dilation, combine=module.combine, final_norm=final_norm)
    channel, spatial = module.channel, module.spatial
    return Attention(
        "cbam",
        kernel=spatial.conv.kernel_size[0],
        pooling=channel.pooling,
        bias=_hidden(module).bias is not None,
        spatial_order=spatial.order,
        spatial_bias=spatial.conv.bias is not None,
        spatial_norm=spatial.bn is not None,
        light=channel.light,
        residual=module.residual,
    )
