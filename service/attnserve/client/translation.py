"""The client's nouns to and from the messages of `attnserve.v1`. Pure functions; knows no channel and no call."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attnserve.client.checks import check_explain
from attnserve.client.messages import (
    RAW,
    AttentionLevel,
    AttentionMap,
    Classification,
    Explain,
    ExplainLayer,
    Explanation,
    MapForm,
    MapStyle,
    ModelInfo,
    Picture,
    Prediction,
    SiteInfo,
    SpatialMap,
    Timings,
)
from attnserve.preprocess import CropBox
from attnserve.v1 import attention_pb2 as pb

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
