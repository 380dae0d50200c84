"""Our training checkpoint: one torch file that says everything export needs, and can be resumed.

Owns the file's form; knows nothing of data, training loops or ONNX. It is read as any stranger's file is
(`dialects.files`), so it can carry tensors and plain values but never code.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attnserve.card import Preprocessing
from attnserve.errors import ConfigError
from attnserve.export.architecture import Architecture, Transformer
from attnserve.export.dialects import files
from attnserve.export.network import Network, build

FORMAT = "attnserve-checkpoint-1"


@dataclass
class Checkpoint:
    """Weights and their story.

    Attributes:
        state_dict: The weights to serve (the moving average, where training kept one).
        training: Dataset, licence, command, seed, epochs, split rule, wall minutes, versions: JSON-ready values.
        evaluation: One entry per measurement: dataset, split, images, accuracy.
        resume: What an unfinished training needs to go on; None once it is finished.
    """

    architecture: Architecture | Transformer
    preprocessing: Preprocessing
    labels: tuple[str, ...]
    state_dict: dict[str, Tensor]
    training: dict[str, Any] = field(default_factory=dict)
    evaluation: list[dict[str, Any]] = field(default_factory=list)
    resume: dict[str, Any] | None = None

    def network(self) -> Network:
        """The network with these weights, in evaluation mode; raises `ConfigError` where they do not fit."""
        network = build(self.architecture)
        try:
            network.load_state_dict(self.state_dict)
        except (RuntimeError, TypeError) as error:
            raise ConfigError(f"checkpoint: the weights do not fit the architecture: {error}") from error
        return network.eval()

    def save(self, path: Path) -> None:
        """Write the file whole or not at all."""
        raw = {
            "format": FORMAT,
            "architecture": self.architecture.to_dict(),
            "preprocessing": dataclasses.asdict(self.preprocessing),
            "labels": list(self.labels),
            "state_dict": self.state_dict,
            "training": self.training,
            "evaluation": self.evaluation,
            "resume": self.resume,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".partial")
        torch.save(raw, partial)
        partial.replace(path)

    @classmethod
    def load(cls, path: Path) -> Checkpoint:
        """Read a file onto the CPU; raises `ConfigError` for anything but a checkpoint of ours."""
        raw = files.read(path)
        if not isinstance(raw, dict) or raw.get("format") != FORMAT:
            raise ConfigError(f"{path.name} is not a checkpoint of `attnserve train` (no format {FORMAT!r})")
        return cls.parse(raw, path.name)

    @classmethod
    def parse(cls, raw: Mapping[str, Any], name: str) -> Checkpoint:
        """What `save` wrote, read back; raises `ConfigError` where the file of this name is damaged."""
        try:
            return cls(
                architecture=Architecture.from_dict(raw["architecture"]),
                preprocessing=Preprocessing(**raw["preprocessing"]),
                labels=tuple(raw["labels"]),
                state_dict=raw["state_dict"],
                training=raw["training"],
                evaluation=raw["evaluation"],
                resume=raw["resume"],
            )
        except (KeyError, TypeError) as error:
            raise ConfigError(f"{name}: damaged checkpoint: {error!r}") from error
