"""The description of a network: what is refused, and how it travels through JSON."""

from __future__ import annotations

import json
from typing import Any

import pytest

from attnserve.errors import ConfigError
from attnserve.export.architecture import Architecture, Attention


def test_an_architecture_survives_json() -> None:
    attention = Attention("bam", "stage", (1, 3), reduction=8, dilation=2, combine="mul")
    for described in (Architecture(50, 7, attention=attention), Architecture(18, 2, "small", 1, (8, 8, 16, 16))):
        assert Architecture.from_dict(json.loads(json.dumps(described.to_dict()))) == described


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"depth": 20}, "depth"),
        ({"num_classes": 0}, "num_classes"),
        ({"stem": "large"}, "stem"),
        ({"stem": "imagenet", "stem_stride": 1}, "stem_stride"),
        ({"widths": [8, 8, 16]}, "widths"),
        ({"widths": [8, 8, 16, 0]}, "width"),
        ({"height": 3}, "height"),
        ({"attention": {"kind": "senet"}}, "kind"),
        ({"attention": {"kind": "cbam", "placement": "head"}}, "placement"),
        ({"attention": {"kind": "cbam", "stages": [3, 1]}}, "stages"),
        ({"attention": {"kind": "cbam", "stages": [0, 5]}}, "stages"),
        ({"attention": {"kind": "cbam", "kernel": 5}}, "kernel"),
        ({"attention": {"kind": "cbam", "pooling": "median"}}, "pooling"),
        ({"attention": {"kind": "bam", "combine": "max"}}, "combine"),
        ({"attention": {"kind": "bam", "dilation": 0}}, "dilation"),
        ({"attention": {"kind": "bam", "reduction": 1.5}}, "reduction"),
    ],
)
def test_an_impossible_choice_is_refused_by_name(wrong: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        Architecture.from_dict({"depth": 18, "num_classes": 2, **wrong})
