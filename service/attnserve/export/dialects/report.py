"""What was recognised, in words for people and as values for programs.

Owns the wording and the JSON form of `attnserve inspect`; decides nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any, cast

from torch import nn

from attnserve.export.architecture import Architecture, Transformer
from attnserve.export.dialects.dialect import flag
from attnserve.export.dialects.loader import TRAIN, Recognised, Unrecognised
from attnserve.export.network import Network
from attnserve.export.sites import attention_modules
from attnserve.export.vit import Block, ViT


def as_values(found: Recognised) -> dict[str, Any]:
    """Everything that `inspect` says, JSON-ready."""
    checkpoint = found.checkpoint
    architecture, network = checkpoint.architecture, checkpoint.network()
    return {
        "dialect": found.dialect,
        "source": found.source,
        "also_fits": list(found.also),
        "architecture": architecture.to_dict(),
        "classes": architecture.num_classes,
        "labels": list(checkpoint.labels) if found.dialect == TRAIN else None,
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "attention_parameters": _attention_parameters(network),
        "sites": network.sites if isinstance(network, ViT) else list(attention_modules(network)),
        "preprocessing": dataclasses.asdict(checkpoint.preprocessing),
        "unseen": [
            {
                "field": name,
                "value": value,
                "flag": flag(name),
                "settled_by": None if value is None else "dialect or flag",
            }
            for name, value in found.facts.items()
        ],
    }


def as_text(found: Recognised) -> str:
    """The same for a terminal."""
    values, architecture = as_values(found), found.checkpoint.architecture
    sites = values["sites"]
    rows = [
        ("dialect", f"{found.dialect}: {found.source}"),
        ("network", _network(architecture)),
        ("classes", str(architecture.num_classes)),
        ("parameters", f"{values['parameters']:,}, {values['attention_parameters']:,} of them attention"),
        ("attention", _attention(architecture)),
    ]
    if sites:
        rows.append(("sites", f"{len(sites)}: {', '.join(sites[:4])}{', ...' if len(sites) > 4 else ''}"))
    rows.append(("preprocessing", _view(values["preprocessing"])))
    lines = [f"{name + ':':<15}{text}" for name, text in rows]
    return "\n".join(lines + _open_questions(found, values["unseen"]))


def failure(error: Exception) -> dict[str, Any]:
    """What is wrong with a file, JSON-ready."""
    values: dict[str, Any] = {"error": str(error)}
    if isinstance(error, Unrecognised):
        values |= {"nearest": error.nearest, **dataclasses.asdict(error.difference)}
    return values


def _open_questions(found: Recognised, unseen: list[dict[str, Any]]) -> list[str]:
    lines = []
    if found.dialect != TRAIN:
        lines.append("the file does not show:")
    for row in unseen:
        if row["settled_by"]:
            lines.append(f"  {row['field']}: {_word(row['value'])} as in {found.dialect}; {row['flag']} says otherwise")
        else:
            lines.append(f"  {row['field']}: not known; export needs {row['flag']}")
    if found.dialect != TRAIN:
        lines.append("  preprocessing: by the dialect's custom; --resize, --image-size, --interpolation, --mean, --std")
    if found.also:
        lines.append(f"also fits: {', '.join(found.also)} (--dialect)")
    return lines


def _network(architecture: Architecture | Transformer) -> str:
    if isinstance(architecture, Transformer):
        size = f"depth {architecture.depth}, width {architecture.width}, mlp width {architecture.mlp_width}"
        return f"ViT, {size}, {architecture.grid} x {architecture.grid} patches of {architecture.patch} pixels"
    stem = architecture.stem if architecture.stem == "imagenet" else f"small, stride {architecture.stem_stride}"
    return f"ResNet-{architecture.depth}, stem {stem}, widths {','.join(map(str, architecture.widths))}"


def _attention(architecture: Architecture | Transformer) -> str:
    if isinstance(architecture, Transformer):
        return "self-attention in every block"
    if (attention := architecture.attention) is None:
        return "none"
    fields = ("reduction", "kernel", "bias", "spatial_norm", "spatial_bias", "light")
    shown = ("reduction", "final_norm") if attention.kind == "bam" else fields
    choices = ", ".join(f"{name} {_word(getattr(attention, name))}" for name in shown)
    return f"{attention.kind}, {attention.placement}: {choices}"


def _attention_parameters(network: Network) -> int:
    if isinstance(network, ViT):
        modules: Iterable[nn.Module] = (cast(Block, block).attn for block in network.blocks)
    else:
        modules = attention_modules(network).values()
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


def _view(view: dict[str, Any]) -> str:
    size = f"{view['height']} x {view['width']}"
    shape = f"shorter side to {view['resize']}, crop {size}" if view["resize"] else f"resize to {size}"
    return f"{shape}, {view['interpolation']}, mean {_numbers(view['mean'])}, std {_numbers(view['std'])}"


def _numbers(values: tuple[float, ...]) -> str:
    return ",".join(f"{value:g}" for value in values)


def _word(value: object) -> str:
    return {True: "yes", False: "no"}.get(value, str(value)) if isinstance(value, bool) else str(value)
