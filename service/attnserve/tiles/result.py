"""What comes out for a large picture. Nouns only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from attnserve.client import ClientError, Prediction
from attnserve.tiles.grid import Grid
from attnserve.tiles.stitch import StitchedMap


@dataclass(frozen=True)
class TileFailure:
    """A tile that the server did not answer, by its upper left corner in pixels of the picture."""

    top: int
    left: int
    error: ClientError


@dataclass(frozen=True)
class TiledExplanation:
    """Where in the whole picture the evidence for one class lies: a map that is at least 0, of the class's logit."""

    layer: str
    method: str
    class_index: int
    label: str
    map: StitchedMap


@dataclass(frozen=True)
class TiledResult:
    """What all tiles of a picture say.

    Attributes:
        model, version: What answered every tile.
        labels: Class names, by class index.
        grid: Where the tiles lie.
        mean, max: (K,) float32, of each class's probability over all tiles that were answered.
        probabilities: (K, rows, columns), a map for each class, in cells of the stride.
        kinds: Site -> `cbam`, `bam`, `self` or `rollout`, of the sites in `attention`.
        attention: Site -> map, in cells of the site's own pixels: CBAM's spatial gate, BAM's gate averaged over
            channels, a transformer's shares, which add up to 1 in each tile and not in the picture.
        explanations: By layer as asked for, then by class, in cells of the layer's own pixels.
        failures: Tiles that no map and no mean includes; none but where the server failed at them.
    """

    model: str
    version: str
    labels: tuple[str, ...]
    grid: Grid
    mean: NDArray[np.float32]
    max: NDArray[np.float32]
    probabilities: StitchedMap
    kinds: dict[str, str]
    attention: dict[str, StitchedMap]
    explanations: tuple[TiledExplanation, ...]
    failures: tuple[TileFailure, ...]

    def predictions(self, pool: Literal["mean", "max"] = "mean", top_k: int = 5) -> tuple[Prediction, ...]:
        """The best classes of the picture, best first: by mean or by greatest probability; `top_k` 0 for all."""
        pooled = self.mean if pool == "mean" else self.max
        best = np.argsort(-pooled, kind="stable")[: top_k or None]
        return tuple(Prediction(int(index), self.labels[index], float(pooled[index])) for index in best)
