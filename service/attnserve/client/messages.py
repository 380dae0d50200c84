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

from attnserve.preprocess import CropBox
from attnserve.v1 import attention_pb2 as pb

Picture: TypeAlias = bytes | Path | NDArray[Any]
"""Encoded bytes (JPEG, PNG, WebP), the path of such a file, or pixels: (H, W, 3), (H, W, 1) or (H, W) uint8."""

AttentionLevel: TypeAlias = Literal["none", "spatial", "full"]
"""No maps; the spatial map of each site; the spatial map and the channel vector of each site."""

_LEVELS: dict[AttentionLevel, pb.AttentionLevel] = {
    "none": pb.ATTENTION_LEVEL_NONE,
    "spatial": pb.ATTENTION_LEVEL_SPATIAL,
    "full": pb.ATTENTION_LEVEL_FULL,
}


@dataclass(frozen=True)
class Prediction:
    """One class and its softmax probability in 0..1."""

    index: int
    label: str
    probability: float


@dataclass(frozen=True)
class AttentionMap:
    """What one attention module computed for one picture, at feature resolution; it covers the picture's `view`.

    Attributes:
        site: The module's name in the network, e.g. `layer3.1.cbam`.
        kind: `cbam` or `bam`.
        spatial: (h, w) float32, or None. CBAM: the gate, 0..1. BAM: the spatial branch before the sigmoid.
        channel: (C,) float32, or None below attention level `full`; gate or branch as above.
        combined: (h, w) float32, or None; BAM only: the gate M, averaged over channels, 0..1.
    """

    site: str
    kind: str
    spatial: NDArray[np.float32] | None
    channel: NDArray[np.float32] | None
    combined: NDArray[np.float32] | None


@dataclass(frozen=True)
class Timings:
    """Milliseconds that the call spent in each stage of the server, before its answer was put together."""

    decode_ms: float
    queue_ms: float
    infer_ms: float


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
    """

    model: str
    version: str
    predictions: tuple[Prediction, ...]
    attention: tuple[AttentionMap, ...]
    view: CropBox
    image_height: int
    image_width: int
    timings: Timings


@dataclass(frozen=True)
class ModelStatus:
    """One model version that the server knows; `reason` says why it is not ready."""

    name: str
    version: str
    ready: bool
    reason: str


@dataclass(frozen=True)
class SiteInfo:
    """One attention module of a model.

    Attributes:
        name: The module's name in the network.
        kind: `cbam` or `bam`.
        channels, height, width: Shape of the feature map that it sees.
        stride: Pixels of the view per pixel of the spatial map.
        combine: BAM only: `add` or `mul`; else empty.
        has_channel, has_spatial: Which of its two branches the server can show.
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


def to_request(
    images: Sequence[Picture], *, model: str, version: str, top_k: int, attention: AttentionLevel, sites: Sequence[str]
) -> pb.ClassifyRequest:
    """One request for all `images`; raises `ValueError` for a bad array and `OSError` for an unreadable file."""
    return pb.ClassifyRequest(
        model=model,
        version=version,
        images=[_to_image(image) for image in images],
        top_k=top_k,
        attention=pb.AttentionOptions(level=_LEVELS[attention], sites=sites),
    )


def _to_image(image: Picture) -> pb.Image:
    if isinstance(image, Path):
        return pb.Image(encoded=image.read_bytes())
    if isinstance(image, np.ndarray):
        return pb.Image(raw=_to_raw(image))
    return pb.Image(encoded=image)


def _to_raw(pixels: NDArray[Any]) -> pb.RawImage:
    channels = 1 if pixels.ndim == 2 else pixels.shape[-1]
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or channels not in (1, 3) or pixels.size == 0:
        wanted = "(H, W, 3), (H, W, 1) or (H, W) uint8"
        raise ValueError(f"pixels must be {wanted}, got shape {pixels.shape} and dtype {pixels.dtype}")
    height, width = pixels.shape[:2]
    return pb.RawImage(pixels=pixels.tobytes(), height=height, width=width, channels=channels)


def from_reply(reply: pb.ClassifyResponse) -> list[Classification]:
    """One `Classification` per picture, in order."""
    timings = Timings(reply.timings.decode_ms, reply.timings.queue_ms, reply.timings.infer_ms)
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
    )


def _from_attention(attention: pb.AttentionMap) -> AttentionMap:
    return AttentionMap(
        site=attention.site,
        kind=attention.kind,
        spatial=_from_map(attention.spatial) if attention.HasField("spatial") else None,
        channel=np.array(attention.channel, np.float32) if attention.channel else None,
        combined=_from_map(attention.combined) if attention.HasField("combined") else None,
    )


def _from_map(message: pb.FloatMap) -> NDArray[np.float32]:
    """(h, w) float32, a view of the message's bytes and so read-only."""
    return np.frombuffer(message.values, "<f4").reshape(message.height, message.width)


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
    )
