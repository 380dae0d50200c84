"""The models that are measured: the committed small one, and a ResNet-50 with CBAM exported once into a folder of ours.

Its weights are random: what is measured does not depend on them.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from attnserve.card import Card, Preprocessing

from .cells import LARGE, SMALL

ROOT = Path(__file__).parents[3]
KEPT = ROOT / ".bench"
"""What takes long to make: models and the environments of other servers. Not committed; may be deleted at any time."""


@dataclass(frozen=True)
class Entry:
    """A model in a model repository."""

    repository: Path
    name: str

    @property
    def file(self) -> Path:
        """Of the graph."""
        return self.repository / self.name / "1" / "model.onnx"

    @property
    def card(self) -> Card:
        """Its card."""
        return Card.from_json(self.file.with_name("model.json").read_text())

    @property
    def max_batch_size(self) -> int:
        """As config.pbtxt says."""
        found = re.search(r"max_batch_size: (\d+)", (self.repository / self.name / "config.pbtxt").read_text())
        assert found
        return int(found[1])


def entry(model: str) -> Entry:
    """The entry of `SMALL` or `LARGE`; the large one is exported where it is not yet, which takes a minute."""
    if model == SMALL:
        return Entry(ROOT / "model_repo", SMALL)
    made = Entry(KEPT / "models" / _version_of_export(), LARGE)
    if not made.file.with_name("model.json").exists():
        export(made.repository, made.name, 50, 224)
    return made


def export(repository: Path, name: str, depth: int, size: int, explain_layers: tuple[str, ...] = ()) -> None:
    """Write the entry of a ResNet with CBAM in every block and random weights."""
    import torch

    from attnserve.export.architecture import Architecture, Attention
    from attnserve.export.checkpoint import Checkpoint
    from attnserve.export.entry import Job, Target, write_entry
    from attnserve.export.resnet import ResNet

    torch.manual_seed(0)
    attention = Attention("cbam", bias=True, spatial_norm=True)
    architecture = Architecture(depth, 1000 if size > 96 else 10, attention=attention)
    network = ResNet(architecture)
    with torch.no_grad():
        network.fc.weight.mul_(10)  # else all pictures have the same answer, by which nothing can be checked
    resize = 256 if size == 224 else None
    view = Preprocessing(size, size, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), resize=resize)
    labels = tuple(map(str, range(architecture.num_classes)))
    checkpoint = Checkpoint(architecture, view, labels, network.state_dict(), {"dataset": "none"})
    repository.mkdir(parents=True, exist_ok=True)
    write_entry(checkpoint, Target(repository, name, max_batch_size=8), Job("bench", explain_layers=explain_layers))


def _version_of_export() -> str:
    """Of the code that writes graphs, so that a graph made by other code is not taken for its own."""
    digest = hashlib.sha256(Path(__file__).read_bytes())
    for source in sorted((ROOT / "service/attnserve/export").rglob("*.py")):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:12]
