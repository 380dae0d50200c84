"""What was recognised, in words for people and as values for programs.

Owns the wording and the JSON form of `attnserve inspect`; decides nothing.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from attnserve.export.dialects.dialect import UNSEEN, flag
from attnserve.export.dialects.loader import TRAIN, Recognised, Unrecognised
from attnserve.export.resnet import ResNet
from attnserve.export.sites import attention_modules


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
        "sites": list(attention_modules(network)),
        "preprocessing": dataclasses.asdict(checkpoint.preprocessing),
        "unseen": [
            {
                "field": name,
                "value": None if name in found.asked else getattr(architecture.attention, name),
                "flag": flag(name),
                "settled_by": None if name in found.asked else "dialect or flag",
            }
            for name in (UNSEEN[found.kind] if found.dialect != TRAIN else ())
        ],
    }


def as_text(found: Recognised) -> str:
    """The same for a terminal."""
    values, architecture = as_values(found), found.checkpoint.architecture
    attention, sites = architecture.attention, values["sites"]
    stem = architecture.stem if architecture.stem == "imagenet" else f"small, stride {architecture.stem_stride}"
    rows = [
        ("dialect", f"{found.dialect}: {found.source}"),
        ("network", f"ResNet-{architecture.depth}, stem {stem}, widths {','.join(map(str, architecture.widths))}"),
        ("classes", str(architecture.num_classes)),
        ("parameters", f"{values['parameters']:,}, {values['attention_parameters']:,} of them attention"),
    ]
    if attention:
        fields = ("reduction", "kernel", "bias", "spatial_norm", "spatial_bias", "light")
        shown = ("reduction", "final_norm") if attention.kind == "bam" else fields
        choices = ", ".join(f"{name} {_word(getattr(attention, name))}" for name in shown)
        rows.append(("attention", f"{attention.kind}, {attention.placement}: {choices}"))
        rows.append(("sites", f"{len(sites)}: {', '.join(sites[:4])}{', ...' if len(sites) > 4 else ''}"))
    else:
        rows.append(("attention", "none"))
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


def _attention_parameters(network: ResNet) -> int:
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
