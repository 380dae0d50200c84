"""Attention modules whose parts may have any name, recognised by the shapes of their tensors.

Owns the guess, which is made only where it can be made one way; knows nothing of who wrote a file.
"""

from __future__ import annotations

import re

from attnserve.export.dialects.dialect import Shapes


def cbam_parts(shapes: Shapes) -> dict[str, str]:
    """Names below one CBAM module -> ours (`channel.mlp.0.weight`, ...); empty where the shapes are not one CBAM's.

    A CBAM has two linear maps or 1x1 convolutions (h, C) and (C, h), in this order, and a convolution (1, 2, k, k);
    each may have a bias, and batch normalisation of width 1 may follow the last.
    """
    kernels = [
        key for key, shape in shapes.items() if len(shape) == 4 and shape[:2] in ((1, 1), (1, 2)) and shape[3] > 1
    ]
    linear = [key for key, shape in shapes.items() if len(shape) in (2, 4) and key not in kernels]
    if len(kernels) != 1 or len(linear) != 2 or any(set(shapes[key][2:]) - {1} for key in linear):
        return {}
    first, second = linear
    if shapes[first][:2] != shapes[second][1::-1] or shapes[first][0] > shapes[first][1]:
        return {}
    stems = {_stem(first): "channel.mlp.0", _stem(second): "channel.mlp.2", _stem(kernels[0]): "spatial.conv"}
    norms = {
        _stem(key): "spatial.bn" for key, shape in shapes.items() if _leaf(key) == "running_mean" and shape == (1,)
    }
    names = {**stems, **norms}
    if len(norms) > 1 or any(_stem(key) not in names for key in shapes):
        return {}
    return {key: f"{names[_stem(key)]}.{_leaf(key)}" for key in shapes}


def notebook(shapes: Shapes) -> dict[str, str]:
    """Keys of a `features` Sequential of a stem, four stages and CBAM after some of them -> our keys.

    The stages are the members that hold blocks; attention is what stands directly after one.
    """
    members: dict[int, dict[str, tuple[int, ...]]] = {}
    for key, shape in shapes.items():
        if match := re.fullmatch(r"features\.(\d+)\.(.+)", key):
            members.setdefault(int(match[1]), {})[match[2]] = shape
    names, stage = {"fc.weight": "fc.weight", "fc.bias": "fc.bias"}, 0
    for index, member in sorted(members.items()):
        if "0.conv1.weight" in member:
            stage += 1
            ours = {key: f"layer{stage}.{key}" for key in member}
        elif stage:
            ours = {key: f"cbam{stage}.{part}" for key, part in cbam_parts(member).items()}
        else:
            stem = "conv1" if any(len(shape) == 4 for shape in member.values()) else "bn1"
            ours = {key: f"{stem}.{key}" for key in member}
        names |= {f"features.{index}.{key}": name for key, name in ours.items()}
    return {key: name for key, name in names.items() if key in shapes}


def anywhere(shapes: Shapes) -> dict[str, str]:
    """Keys of CBAM modules that are an attribute of a block, or stand after the stage in their name -> our keys."""
    modules: dict[tuple[str, str], dict[str, tuple[int, ...]]] = {}
    for key, shape in shapes.items():
        if match := re.fullmatch(r"(layer\d\.\d+)\.(\w+)\.(.+)", key):
            place = f"{match[1]}.{match[2]}", f"{match[1]}.cbam"
        elif match := re.fullmatch(r"((?!layer|conv|bn|fc)[A-Za-z_]+)([1-4])\.(.+)", key):
            place = f"{match[1]}{match[2]}", f"cbam{match[2]}"
        else:
            continue
        modules.setdefault(place, {})[match[3]] = shape
    return {
        f"{theirs}.{key}": f"{ours}.{part}"
        for (theirs, ours), module in modules.items()
        for key, part in cbam_parts(module).items()
    }


def _stem(key: str) -> str:
    return key.rpartition(".")[0]


def _leaf(key: str) -> str:
    return key.rpartition(".")[2]
