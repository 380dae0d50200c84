"""What the client takes and gives, and its translation to and from the messages of `attnserve.v1`.

Pure functions and frozen nouns; knows no channel and no call. Import the names from `attnserve.client`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from attnserve.client.checks import check_explain
from attnserve.preprocess import CropBox
from attnserve.v1 import attention_pb2 as pb

Picture: TypeAlias = bytes | str | Path | NDArray[Any]
"""Encoded bytes (JPEG, PNG, WebP), the path of such a file, or pixels: (H, W, 3), (H, W, 1) or (H, W) uint8."""

AttentionLevel: TypeAlias = Literal["none", "summary", "full"]
"""No maps; of each site the spatial map and the strongest channels; the whole channel vector too."""

MapForm: TypeAlias = Literal["raw", "normalised", "heatmap", "overlay"]
"""As the network computed it, at feature resolution; 0..1 at the size of the model's view; that in colours, as a PNG;
the colours over the view, as a PNG."""

_LEVELS: dict[AttentionLevel, pb.AttentionLevel] = {
    "none": pb.ATTENTION_LEVEL_NONE,
    "summary": pb.ATTENTION_LEVEL_SUMMARY,
    "full": pb.ATTENTION_LEVEL_FULL,
}

_FORMS: dict[MapForm, pb.MapForm] = {
    "raw": pb.MAP_FORM_RAW,
    "normalised": pb.MAP_FORM_NORMALISED,
    "heatmap": pb.MAP_FORM_HEATMAP,
    "overlay": pb.MAP_FORM_OVERLAY,
}


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


def to_request(
    images: Sequence[Picture],
    *,
    model: str,
    version: str,
    top_k: int,
    attention: AttentionLevel,
    sites: Sequence[str],
    explain: Explain | None,
    maps: MapStyle,
    priority: int = 0,
) -> pb.ClassifyRequest:
    """One request for all `images`.

    Raises `ValueError` for a bad array, level, form, class index or priority, `OSError` for an unreadable file,
    `TypeError` for what is no picture and for a field of `explain` of another type.
    """
    if isinstance(images, bytes | str):  # whose items are something else
        raise TypeError(f"images must be a sequence of pictures, got one {type(images).__name__}")
    check_choices(attention, maps, explain)
    return pb.ClassifyRequest(
        model=model,
        version=version,
        images=[_to_image(image) for image in images],
        top_k=top_k,
        attention=pb.AttentionOptions(level=_LEVELS[attention], sites=sites),
        explain=_to_explain(explain) if explain else None,
        maps=None if maps == RAW else _to_options(maps),
        priority=priority,
    )


def check_choices(attention: str, maps: MapStyle, explain: Explain | None) -> None:
    """Raise `ValueError` for what is no level, form or class index, `TypeError` for other wrong fields of `explain`."""
    if attention not in _LEVELS:
        raise ValueError(f"attention must be one of {', '.join(_LEVELS)}, got {attention!r}")
    if maps.form not in _FORMS:
        raise ValueError(f"maps: form must be one of {', '.join(_FORMS)}, got {maps.form!r}")
    if explain is not None:
        check_explain(explain)


def _to_explain(explain: Explain) -> pb.ExplainOptions:
    return pb.ExplainOptions(layers=explain.layers, method=explain.method, classes=explain.classes, top_k=explain.top_k)


def _to_options(maps: MapStyle) -> pb.MapOptions:
    return pb.MapOptions(form=_FORMS[maps.form], colormap=maps.colormap, alpha=maps.alpha)


def _to_image(image: Picture) -> pb.Image:
    if isinstance(image, str | Path):
        return pb.Image(encoded=Path(image).read_bytes())
    if isinstance(image, np.ndarray):
        return pb.Image(raw=_to_raw(image))
    if isinstance(image, bytes):
        return pb.Image(encoded=image)
    raise TypeError(f"a picture must be bytes, a path or a numpy array, got {type(image).__name__}")


def _to_raw(pixels: NDArray[Any]) -> pb.RawImage:
    channels = 1 if pixels.ndim == 2 else pixels.shape[-1]
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or channels not in (1, 3) or pixels.size == 0:
        wanted = "(H, W, 3), (H, W, 1) or (H, W) uint8"
        raise ValueError(f"pixels must be {wanted}, got shape {pixels.shape} and dtype {pixels.dtype}")
    height, width = pixels.shape[:2]
    return pb.RawImage(pixels=pixels.tobytes(), height=height, width=width, channels=channels)


def from_reply(reply: pb.ClassifyResponse) -> list[Classification]:
    """One `Classification` per picture, in order."""
    spent = reply.timings
    timings = Timings(spent.decode_ms, spent.queue_ms, spent.infer_ms, spent.explain_ms)
    return [_from_result(reply.model, reply.version, result, timings) for result in reply.results]


def _from_result(model: str, version: str, result: pb.ImageResult, timings: Timings) -> Classification:
    box = result.view
    return Classification(
        model=model,
        version=version,
        predictions=tuple(Prediction(each.index, each.label, each.probability) for each in result.predictions),
        attention=tuple(_from_attention(each) for each in result.attention),
        view=CropBox(box.left, box.top, box.right, box.bottom),
        image_height=result.image_height,
        image_width=result.image_width,
        timings=timings,
        explanations=tuple(
            Explanation(each.layer, each.method, each.class_index, each.label, _from_map(each.map))
            for each in result.explanations
        ),
    )


def _from_attention(attention: pb.AttentionMap) -> AttentionMap:
    return AttentionMap(
        site=attention.site,
        kind=attention.kind,
        spatial=_from_map(attention.spatial) if attention.HasField("spatial") else None,
        channel=np.array(attention.channel, np.float32) if attention.channel else None,
        combined=_from_map(attention.combined) if attention.HasField("combined") else None,
        entropy=attention.entropy if attention.HasField("entropy") else None,
        top_channels=tuple((each.index, each.value) for each in attention.top_channels),
    )


def _from_map(message: pb.SpatialMap) -> SpatialMap:
    """Its values are a view of the message's bytes and so read-only."""
    values = None if message.png else np.frombuffer(message.values, "<f4").reshape(message.height, message.width)
    return SpatialMap(values, message.png or None, message.min, message.max, message.mean, message.empty)


def from_model(message: pb.Model) -> ModelInfo:
    """The message as plain Python."""
    return ModelInfo(
        name=message.name,
        version=message.version,
        labels=tuple(message.labels),
        view_height=message.image_height,
        view_width=message.image_width,
        sites=tuple(_from_site(site) for site in message.sites),
        max_batch_size=message.max_batch_size,
        execution_provider=message.execution_provider,
        card=json.loads(message.card_json) if message.card_json else {},
        card_digest=message.card_digest,
        explain_layers=tuple(
            ExplainLayer(each.layer, each.height, each.width, each.stride, tuple(each.methods))
            for each in message.explain_layers
        ),
    )


def _from_site(site: pb.Site) -> SiteInfo:
    return SiteInfo(
        name=site.name,
        kind=site.kind,
        channels=site.channels,
        height=site.height,
        width=site.width,
        stride=site.stride,
        combine=site.combine,
        has_channel=site.has_channel,
        has_spatial=site.has_spatial,
        range=(site.min_value, site.max_value) if site.HasField("max_value") else None,
    )
