"""A served model as functions of pictures: its probabilities, and the maps that it gives.

Owns how much is sent at a time and which maps are asked for; knows the client, and nothing of what is measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from attnserve.client import Classification, Client, Explain, ModelInfo
from attnserve.errors import ConfigError

MOST_PICTURES = 64  # in a request: fills the batches of a server
MOST_BYTES = 2**24  # in a request: a quarter of what a server takes by default
GRADCAM = "gradcam"


@dataclass(frozen=True)
class Evidence:
    """The predicted class of a picture, and by source (`gradcam/<layer>`, `attention/<site>`) a map (h, w) float32."""

    predicted: int
    maps: dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class ServedModel:
    """One version of a model on a server; safe to share between threads.

    Attributes:
        layers: Which of its layers give Grad-CAM.
        sites: Which of its attention modules are asked for their spatial map; of BAM the map of both branches.
        timeout_s: Deadline of one request.
    """

    client: Client
    info: ModelInfo
    layers: tuple[str, ...]
    sites: tuple[str, ...]
    timeout_s: float

    def probabilities(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(N, K) for pictures (N, H, W, 3) of the size of the view; raises `ClientError`."""
        size = max(1, min(MOST_PICTURES, MOST_BYTES // images[0].nbytes))
        answers = [
            answer for start in range(0, len(images), size) for answer in self._classified(images[start : start + size])
        ]
        return np.stack([self._row(answer) for answer in answers])

    def evidence(self, image: NDArray[np.uint8]) -> Evidence:
        """The maps of one picture (H, W, 3), Grad-CAM for the predicted class; raises `ClientError`."""
        explain = Explain(layers=self.layers, method=GRADCAM, top_k=1) if self.layers else None
        (answer,) = self._classified(image[None], self.sites, explain)
        maps = {f"{GRADCAM}/{each.layer}": each.map.values for each in answer.explanations}
        for each in answer.attention:
            found = each.combined or each.spatial
            maps[f"attention/{each.site}"] = found.values if found else None
        return Evidence(answer.predictions[0].index, {name: each for name, each in maps.items() if each is not None})

    def _classified(
        self, images: NDArray[np.uint8], sites: Sequence[str] = (), explain: Explain | None = None
    ) -> list[Classification]:
        return self.client.classify(
            list(images),
            model=self.info.name,
            version=self.info.version,
            top_k=0,
            attention="summary" if sites else "none",
            sites=sites,
            explain=explain,
            timeout_s=self.timeout_s,
        )

    def _row(self, answer: Classification) -> NDArray[np.float32]:
        row = np.zeros(len(self.info.labels), np.float32)
        for each in answer.predictions:
            row[each.index] = each.probability
        return row


def gradcam_layers(info: ModelInfo, wanted: Sequence[str] | None) -> tuple[str, ...]:
    """The layers wanted; with None all that give Grad-CAM. Raises `ConfigError` where one does not."""
    there = [each.layer for each in info.explain_layers if GRADCAM in each.methods]
    if wanted is None:
        return tuple(there)
    if strange := [name for name in wanted if name not in there]:
        raise ConfigError(f"--layer: unknown {', '.join(strange)}; the model has {', '.join(there) or 'none'}")
    return tuple(wanted)


def spatial_sites(info: ModelInfo, wanted: Sequence[str] | None) -> tuple[str, ...]:
    """The sites wanted; with None the last one of each stage, which is to say of each size of map.

    Raises:
        ConfigError: A site is not there, or has no spatial branch.
    """
    there = [each for each in info.sites if each.has_spatial]
    if wanted is None:
        return tuple({each.stride: each.name for each in there}.values())
    names = [each.name for each in there]
    if strange := [name for name in wanted if name not in names]:
        raise ConfigError(f"--sites: unknown {', '.join(strange)}; the model has {', '.join(names) or 'none'}")
    return tuple(wanted)
