"""The network as it is served: uint8 pictures in, every output out, normalisation inside.

Owns the names, order and meaning of the graph's outputs; knows nothing of ONNX.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from attnserve.card import Preprocessing, Site
from attnserve.export.architecture import Architecture, Transformer
from attnserve.export.network import Network
from attnserve.export.vit import ROLLOUT, ViT
from attnserve.measure import Classifier


class Normalise(nn.Module):
    """(N, 3, H, W) float32 in 0..255 -> the same with the mean taken off and divided by the deviation.

    Attributes:
        mean, std: (1, 3, 1, 1) in 0..255; no `std` where the network's first convolution divides by it (`rewrite`).
    """

    mean: Tensor
    std: Tensor | None

    def __init__(self, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.register_buffer("mean", 255 * torch.tensor(preprocessing.mean).view(1, 3, 1, 1))
        self.register_buffer("std", 255 * torch.tensor(preprocessing.std).view(1, 3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """The network's input."""
        centred = images - self.mean
        return centred if self.std is None else centred / self.std


class Servable(nn.Module):
    """(N, H, W, 3) uint8 -> the outputs named by `output_names`, in that order.

    The temperature divides the logits before the softmax and leaves the output `logits` as it is.
    """

    def __init__(self, network: Network, preprocessing: Preprocessing, temperature: float = 1.0) -> None:
        super().__init__()
        self.temperature = temperature
        self.normalise = Normalise(preprocessing)
        self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Probabilities, logits, the attention outputs by site, a ResNet's features."""
        evidence = self.network.evidence(self.normalise(images.permute(0, 3, 1, 2).float()))
        tempered = evidence.logits if self.temperature == 1 else evidence.logits / self.temperature
        return torch.softmax(tempered, dim=1), evidence.logits, *evidence.outputs()


def logits_of(servable: Servable) -> Classifier:
    """The network's logits as a function of pictures."""

    def classify(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        with torch.inference_mode():
            logits: NDArray[np.float32] = servable.eval()(torch.from_numpy(images))[1].numpy()
        return logits

    return classify


def output_names(sites: tuple[Site, ...]) -> list[str]:
    """Names of `Servable`'s outputs, in its order; a transformer pools no map, so it has no `features`."""
    maps = [name for site in sites for name in (site.channel, site.spatial) if name]
    pooled = [] if any(site.kind == ROLLOUT for site in sites) else ["features"]
    return ["probabilities", "logits", *maps, *pooled]


def find_sites(
    architecture: Architecture | Transformer, network: Network, preprocessing: Preprocessing
) -> tuple[Site, ...]:
    """The network's attention sites for the recorded view, in the order of computation."""
    if isinstance(architecture, Transformer):
        return _rows(architecture)
    assert not isinstance(network, ViT)
    blank = torch.zeros(1, 3, preprocessing.height, preprocessing.width)
    with torch.inference_mode():
        maps = network.eval().evidence(blank).maps
    attention = architecture.attention
    if attention is None:
        return ()
    stem_stride = 4 if architecture.stem == "imagenet" else architecture.stem_stride
    return tuple(
        Site(
            name=name,
            kind=attention.kind,
            channels=channel.shape[1],
            height=spatial.shape[1],
            width=spatial.shape[2],
            stride=stem_stride * 2 ** (_stage_of(name) - 1),
            channel=f"attention/{name}/channel",
            spatial=f"attention/{name}/spatial",
            combine=attention.combine if attention.kind == "bam" else None,
        )
        for name, (channel, spatial) in maps.items()
    )


def _rows(architecture: Transformer) -> tuple[Site, ...]:
    """A row of each block's attention, and the rollout of them all."""
    return tuple(
        Site(
            name=name,
            kind=ROLLOUT if name == ROLLOUT else "self",
            channels=architecture.width,
            height=architecture.grid,
            width=architecture.grid,
            stride=architecture.patch,
            channel=None,
            spatial=f"attention/{name}/spatial",
        )
        for name in (*(f"blocks.{i}" for i in range(architecture.depth)), ROLLOUT)
    )


def _stage_of(site: str) -> int:
    """The stage in a site's name: 3 in `layer3.1.cbam` and in `bam3`."""
    return int(next(character for character in site if character.isdigit()))
