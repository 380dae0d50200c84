"""The only door to torch: networks, training, and the way from a checkpoint to a model repository entry.

Reading order: `architecture` (what a network is, as data), `cbam` and `bam` (one paper each), `resnet`, `vit`,
`network` (either), `sites`, `checkpoint`, `dialects` (other people's checkpoints), `augment`, `training`, `servable`
(uint8 pictures in, every output out), `rewrite` (the same, cheaper), `onnx_writer`, `parity`, `precision`,
`calibration`, `cams` (class activation maps), `tap` (a network opened in one place), `backward` (its gradient as a
graph), `explain` (the files of the maps), `entry` (the files of one model version), `own` (a network that is no
checkpoint of anybody's).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import nn

    from attnserve.card import Card, Preprocessing


def export(
    model: nn.Module,
    repository: Path,
    name: str,
    preprocessing: Preprocessing,
    *,
    labels: Sequence[str] | None = None,
    version: int = 1,
    max_batch_size: int = 64,
    force: bool = False,
    pictures: NDArray[np.uint8] | None = None,
    explain_layers: Sequence[str] = (),
) -> Card:
    """Write a model repository entry of a torchvision-style ResNet with our `Cbam` or `Bam` modules anywhere in it.

    The attention sites are found by the modules' type; the network's own `forward` is what is exported. The model is
    copied, not changed. Blocks for as long as torch's exporter takes, 5 to 50 s.

    Args:
        model: Has `conv1`, `layer1` to `layer4`, `avgpool` and a linear `fc`, as torchvision's ResNets do.
        preprocessing: How a picture becomes the model's view; normalisation goes into the graph.
        labels: One per class; "class 0" and so on where not given.
        pictures: (N, H, W, 3) uint8 real pictures on which parity is checked besides noise.
        explain_layers: `layer1` to `layer4` or attention sites, each of which gets a file with its Grad-CAM, as large
            as the model; that of the last features is always written.

    Raises:
        ConfigError: It is no such network, the entry exists, or the written file computes something else.
    """
    from attnserve.export.entry import Job, Target
    from attnserve.export.own import export_model

    target = Target(Path(repository), name, version, max_batch_size, force)
    job = Job("attnserve.export.export(...)", pictures, explain_layers=tuple(explain_layers))
    return export_model(model, target, preprocessing, tuple(labels) if labels else None, job)
