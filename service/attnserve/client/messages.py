"""What the client takes and gives: frozen nouns. Import the names from `attnserve.client`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from attnserve.preprocess import CropBox

Picture: TypeAlias = bytes | str | Path | NDArray[Any]
"""Encoded bytes (JPEG, PNG, WebP), the path of such a file, or pixels: (H, W, 3), (H, W, 1) or (H, W) uint8."""

AttentionLevel: TypeAlias = Literal["none", "summary", "full"]
"""No maps; of each site the spatial map and the strongest channels; the whole channel vector too."""

MapForm: TypeAlias = Literal["raw", "normalised", "heatmap", "overlay"]
"""As the network computed it, at feature resolution; 0..1 at the size of the model's view; that in colours, as a PNG;
the colours over the view, as a PNG."""


@dataclass(frozen=True)
class Explain:
    """Which classes are to be explained, by which layers and how.

    Attributes:
        layers: Of `ModelInfo.explain_layers`; empty for the first of them, which is `last`, the map before the pool,
            wherever there is one.
        method: `gradcam`, `counterfactual`, `hirescam`, `layercam` or `gradcam++`.
        classes: Class indices, the same for every picture; empty for the most probable ones of each.
        top_k: Without `classes`, how many of the most probable ones; 0 is 1, the predicted class.
    """

    layers: Sequence[str] = ()
    method: str = "gradcam"
    classes: Sequence[int] = ()
    top_k: int = 0


@dataclass(frozen=True)
class MapStyle:
    """How every map of an answer comes.

    Attributes:
        colormap: `jet`, `viridis` or `grey`, for the forms that are pictures.
        alpha: Weight of the colours in an overlay, above 0 and at most 1.
    """

    form: MapForm = "raw"
    colormap: str = "jet"
    alpha: float = 0.5


RAW = MapStyle()


@dataclass(frozen=True)
class Prediction:
    """One class and its softmax probability in 0..1."""

    index: int
    label: str
    probability: float


@dataclass(frozen=True)
class SpatialMap:
    """One map; it covers the picture's `view`.

    Attributes:
        values: (h, w) float32 in the forms `raw` and `normalised`, else None.
        png: An RGB picture in the forms `heatmap` and `overlay`, else None.
        min, max, mean: Of the map as the network computed it, in every form.
        empty: Whether every value is 0, so that there is nothing to see.
    """

    values: NDArray[np.float32] | None
    png: bytes | None
    min: float
    max: float
    mean: float
    empty: bool


@dataclass(frozen=True)
class AttentionMap:
    """What one attention module computed for one picture.

    Attributes:
        site: The module's name in the network, e.g. `layer3.1.cbam` or a transformer's `blocks.3`, or `rollout`.
        kind: `cbam`, `bam`, `self` (self-attention) or `rollout` (Attention Rollout).
        spatial: Or None where it has no such branch. CBAM: the gate, 0..1. BAM: the branch before the sigmoid. `self`
            and `rollout`: the share of each patch in what the class token attends to, 0..1, adding up to at most 1.
        channel: (C,) float32, or None below attention level `full`; gate or branch as above.
        combined: BAM only, else None: the gate M, averaged over channels, 0..1.
        entropy: Of the spatial map, 0 (one position has it all) to 1 (even); None for a map of one position.
        top_channels: Index and value of the greatest values of the channel vector, the greatest first.
    """

    site: str
    kind: str
    spatial: SpatialMap | None
    channel: NDArray[np.float32] | None
    combined: SpatialMap | None
    entropy: float | None
    top_channels: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Explanation:
    """Where the evidence for one class lies: a map that is at least 0, of the class's logit."""

    layer: str
    method: str
    class_index: int
    label: str
    map: SpatialMap


@dataclass(frozen=True)
class Timings:
    """Milliseconds that the call spent in each stage of the server, before its answer was put together."""

    decode_ms: float
    queue_ms: float
    infer_ms: float
    explain_ms: float = 0.0


@dataclass(frozen=True)
class Classification:
    """The answer for one picture.

    Attributes:
        model, version: What answered, also where the request left the version open.
        predictions: Best first.
        attention: One entry per site that was asked for, in the order of the network.
        view: The part of the upright original, in its pixels, that the model saw and that every map covers.
        image_height, image_width: Size of the upright original in pixels.
        timings: Of the call that brought this answer; the pictures of one `classify` call share it.
        explanations: By layer as asked for, then by class: the most probable first, or as asked for.
    """

    model: str
    version: str
    predictions: tuple[Prediction, ...]
    attention: tuple[AttentionMap, ...]
    view: CropBox
    image_height: int
    image_width: int
    timings: Timings
    explanations: tuple[Explanation, ...] = ()


@dataclass(frozen=True)
class ModelStatus:
    """One model version that the server knows.

    Attributes:
        reason: Why it is not ready, or that it is but newer files of the same version cannot be loaded; else empty.
    """

    name: str
    version: str
    ready: bool
    reason: str


@dataclass(frozen=True)
class SiteInfo:
    """One attention module of a model.

    Attributes:
        name: The module's name in the network, or `rollout`.
        kind: `cbam`, `bam`, `self` or `rollout`.
        channels, height, width: Shape of the feature map that it sees.
        stride: Pixels of the view per pixel of the spatial map.
        combine: BAM only: `add` or `mul`; else empty.
        has_channel, has_spatial: Which of its two branches the server can show.
        range: Bounds of their values, or None where there are none.
    """

    name: str
    kind: str
    channels: int
    height: int
    width: int
    stride: int
    combine: str
    has_channel: bool
    has_spatial: bool
    range: tuple[float, float] | None = None


@dataclass(frozen=True)
class ExplainLayer:
    """A layer by which classes can be explained: the shape of its maps, pixels of the view per position, methods."""

    layer: str
    height: int
    width: int
    stride: int
    methods: tuple[str, ...]


@dataclass(frozen=True)
class ModelInfo:
    """One model version.

    Attributes:
        labels: Class names, by class index.
        view_height, view_width: What the model sees, in pixels.
        sites: Attention modules in the order of the network.
        max_batch_size: Pictures that the server runs at once.
        execution_provider: ONNX Runtime's, e.g. `CPUExecutionProvider`.
        card: The model card, parsed.
        card_digest: SHA-256 (hex) of the card; names the exact model.
        explain_layers: By which classes can be explained, the last one first.
    """

    name: str
    version: str
    labels: tuple[str, ...]
    view_height: int
    view_width: int
    sites: tuple[SiteInfo, ...]
    max_batch_size: int
    execution_provider: str
    card: dict[str, Any]
    card_digest: str
    explain_layers: tuple[ExplainLayer, ...] = ()
