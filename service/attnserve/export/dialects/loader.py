"""From a path to a checkpoint of ours, whoever wrote the file; strictly, or not at all.

Owns the choice of the dialect, what the user may say about it, and what stays open; the facts are the table's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attnserve.card import Preprocessing, sha256_of
from attnserve.errors import ConfigError
from attnserve.export.architecture import Architecture, Transformer
from attnserve.export.checkpoint import FORMAT, Checkpoint
from attnserve.export.dialects import files
from attnserve.export.dialects.dialect import UNSEEN, Dialect, flag
from attnserve.export.dialects.shapes import (
    COUNTER,
    Disagreement,
    disagreement,
    is_pointwise,
    network_shapes,
    spell,
    without_unit_sides,
)
from attnserve.export.dialects.table import DIALECTS

TRAIN = "attnserve train"  # the dialect of a whole checkpoint of ours, which leaves nothing open


@dataclass(frozen=True)
class Choices:
    """What a user says about a file.

    Attributes:
        dialect: Name of the only row to try, or None for all.
        facts: Fields from `UNSEEN`, over the dialect's.
        view: Fields of `Preprocessing`, over the dialect's convention.
    """

    dialect: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    view: Mapping[str, Any] = field(default_factory=dict)


class Unrecognised(ConfigError):
    """A file of tensors that fits no dialect.

    Attributes:
        nearest: Name of the dialect that it comes closest to.
        difference: Where it disagrees with that.
    """

    def __init__(self, name: str, nearest: str, difference: Disagreement) -> None:
        self.nearest, self.difference = nearest, difference
        super().__init__(f"{name} fits no known dialect; the nearest is {nearest}: {first_words(difference)}")


@dataclass(frozen=True)
class Recognised:
    """What a file is.

    Attributes:
        dialect: Name of its row, or `TRAIN`.
        source: Whose code that is.
        facts: What the file does not show, by field of `UNSEEN`; None where nothing settles it: the architecture has a
            default there, which may be wrong. Empty for `TRAIN`.
        also: Names of the other dialects that fit as well, and were not asked for.
    """

    dialect: str
    source: str
    checkpoint: Checkpoint
    facts: Mapping[str, Any] = field(default_factory=dict)
    also: tuple[str, ...] = ()

    @property
    def asked(self) -> tuple[str, ...]:
        """Fields that the user must say."""
        return tuple(name for name, value in self.facts.items() if value is None)

    def settled(self) -> Checkpoint:
        """The checkpoint; raises `ConfigError` naming the flags where something is still open."""
        if self.asked:
            flags = " and ".join(map(flag, self.asked))
            raise ConfigError(f"dialect {self.dialect}: the file does not show what its network computes; say {flags}")
        return self.checkpoint


def recognise(path: Path, choices: Choices = Choices(), limit: int = files.MAX_BYTES) -> Recognised:
    """Read a file and say what it is.

    Raises:
        Unrecognised: It holds weights, but of nothing we know.
        ConfigError: It cannot be read, or the choices do not fit it.
    """
    raw = files.read(path, limit)
    if isinstance(raw, dict) and raw.get("format") == FORMAT:
        return _own(raw, path, choices)
    tensors = files.weights(raw, path.name, limit)
    candidates = [fit(dialect, tensors) for dialect in _rows(choices)]
    fits = [candidate for candidate in candidates if candidate.spelt and not candidate.difference]
    if not fits:
        nearest = min(candidates, key=lambda candidate: candidate.distance)
        raise Unrecognised(path.name, nearest.dialect.name, nearest.difference)
    return _recognised(fits, tensors, path, choices)


@dataclass(frozen=True)
class Fit:
    """One dialect held against one file."""

    dialect: Dialect
    names: dict[str, str]  # key in the file -> ours
    spelt: Architecture | Transformer | None
    difference: Disagreement

    @property
    def distance(self) -> tuple[int, bool, int]:
        """For comparison: unknown keys first, then whether there is a network to compare with, then the rest."""
        return len(self.difference.unexpected), self.spelt is None, len(self.difference)


def fit(dialect: Dialect, tensors: Mapping[str, Tensor]) -> Fit:
    """Hold one dialect against the tensors of a file."""
    theirs = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    names = dialect.rename(theirs)
    shapes = without_unit_sides({ours: theirs[key] for key, ours in names.items()})
    unknown = tuple(key for key in theirs if key not in names)
    twice = len(shapes) < len(names)
    spelt, reason = None, "two keys have the same meaning" if twice else None
    found = Disagreement()
    try:
        spelt = spell(shapes)
        found = disagreement(shapes, spelt)
        if spelt.kind not in dialect.kinds:
            reason = f"its attention is {spelt.kind}, not {' or '.join(dialect.kinds)}"
    except ConfigError as error:
        reason = str(error)
    return Fit(dialect, names, spelt, dataclasses.replace(found, reason=reason, unexpected=unknown + found.unexpected))


def first_words(difference: Disagreement) -> str:
    """The reason, and the first three keys of each kind of disagreement (missing ones in our names)."""
    shapes = [f"{key} {theirs} instead of {ours}" for key, theirs, ours in difference.shapes]
    parts = [difference.reason] if difference.reason else []
    for title, keys in (("missing", difference.missing), ("unexpected", difference.unexpected), ("shapes", shapes)):
        if keys:
            parts.append(f"{len(keys)} {title}: {', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''}")
    return "; ".join(parts)


def _rows(choices: Choices) -> tuple[Dialect, ...]:
    rows = tuple(dialect for dialect in DIALECTS if choices.dialect in (None, dialect.name))
    if not rows:
        raise ConfigError(f"no dialect {choices.dialect!r}; known: {', '.join(dialect.name for dialect in DIALECTS)}")
    return rows


def _recognised(fits: list[Fit], tensors: Mapping[str, Tensor], path: Path, choices: Choices) -> Recognised:
    best = fits[0]
    assert best.spelt is not None
    dialect, kind = best.dialect, best.spelt.kind
    facts = {name: _told(dialect.facts.get(name), best.spelt) for name in UNSEEN[kind]}
    facts |= _fitting(choices.facts, UNSEEN[kind], kind)
    architecture = best.spelt.with_facts({name: value for name, value in facts.items() if value is not None})
    checkpoint = Checkpoint(
        architecture=architecture,
        preprocessing=_view(dialect, architecture, choices.view),
        labels=tuple(f"class {i}" for i in range(architecture.num_classes)),
        state_dict=_weights(tensors, best.names, architecture),
        training={"checkpoint": path.name, "checkpoint_sha256": sha256_of(path), "dialect": dialect.name},
    )
    also = tuple(other.dialect.name for other in fits[1:] if other.dialect.guess is None)  # a guess is the last resort
    return Recognised(dialect.name, dialect.source, checkpoint, facts, also)


def _own(raw: Mapping[str, Any], path: Path, choices: Choices) -> Recognised:
    if choices.facts or choices.dialect:
        given = ", ".join(map(flag, [*choices.facts, *(["dialect"] if choices.dialect else [])]))
        raise ConfigError(f"{path.name} is a checkpoint of `{TRAIN}`, which says these itself: {given}")
    checkpoint = Checkpoint.parse(raw, path.name)
    view = viewed(checkpoint.preprocessing, choices.view)
    if view != checkpoint.preprocessing:  # its accuracy was measured on another view
        checkpoint = dataclasses.replace(checkpoint, preprocessing=view, evaluation=[])
    return Recognised(TRAIN, "our own checkpoint", checkpoint)


def _told(fact: Any, spelt: Architecture | Transformer) -> Any:
    """A fact of the table for this network."""
    return fact(spelt) if callable(fact) else fact


def _fitting(facts: Mapping[str, Any], unseen: tuple[str, ...], kind: str) -> Mapping[str, Any]:
    if wrong := [flag(name) for name in facts if name not in unseen]:
        raise ConfigError(f"{', '.join(wrong)}: the file's network is {kind}, where this says nothing")
    return facts


def _view(dialect: Dialect, architecture: Architecture | Transformer, changes: Mapping[str, Any]) -> Preprocessing:
    view = dialect.views[architecture.stem]
    if isinstance(architecture, Transformer):
        side = architecture.image_size
        if changes.get("height", side) != side:
            raise ConfigError(f"--image-size: the position embedding is for {side} pixels, got {changes['height']}")
        view = viewed(view, {"height": side, "width": side})
    return viewed(view, changes)


def viewed(view: Preprocessing, changes: Mapping[str, Any]) -> Preprocessing:
    """The view with these fields changed; another size scales the resize along, unless that is given too."""
    changes = dict(changes)
    if view.resize and "height" in changes and "resize" not in changes:
        changes["resize"] = round(view.resize * changes["height"] / view.height)
    return dataclasses.replace(view, **changes)


def _weights(
    tensors: Mapping[str, Tensor], names: Mapping[str, str], architecture: Architecture | Transformer
) -> dict[str, Tensor]:
    """The tensors under our names, in our shapes and order, as float32; counters that older files lack are zero."""
    renamed = {ours: tensors[key] for key, ours in names.items()}
    complete = {}
    for key, shape in network_shapes(architecture).items():
        if key.endswith(COUNTER):
            complete[key] = renamed.get(key, torch.zeros(())).to(torch.int64)
        else:
            tensor = renamed[key].to(torch.float32).contiguous()
            complete[key] = tensor.reshape(shape) if is_pointwise(key, tuple(tensor.shape)) else tensor
    return complete
