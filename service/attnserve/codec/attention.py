"""attnserve.v1 messages <-> pictures, outputs and maps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from attnserve.card import Site
from attnserve.contract import Outputs, Timings
from attnserve.decode import Picture
from attnserve.decode_pool import Source
from attnserve.errors import InvalidArgument
from attnserve.postprocess import combined_bam, top_k
from attnserve.v1 import attention_pb2 as pb


def sources_of(request: pb.ClassifyRequest, max_images: int) -> list[Source]:
    """The request's pictures, encoded or raw. Raises `InvalidArgument` naming the picture."""
    if not 1 <= len(request.images) <= max_images:
        raise InvalidArgument(f"images: needs 1 to {max_images}, got {len(request.images)}")
    return [_source(index, image) for index, image in enumerate(request.images)]


def _source(index: int, image: pb.Image) -> Source:
    kind = image.WhichOneof("source")
    if kind == "encoded":
        return image.encoded
    if kind == "raw":
        return _pixels(index, image.raw)
    raise InvalidArgument(f"images[{index}]: has neither encoded nor raw")


def _pixels(index: int, raw: pb.RawImage) -> NDArray[np.uint8]:
    """Raw pixels as (H, W, channels) uint8, on the message's own memory."""
    channels = raw.channels or 3
    if channels not in (1, 3):
        raise InvalidArgument(f"images[{index}].raw: channels must be 1 or 3, got {channels}")
    if not raw.height or not raw.width:
        raise InvalidArgument(f"images[{index}].raw: height and width must be positive")
    size = raw.height * raw.width * channels
    if len(raw.pixels) != size:
        raise InvalidArgument(
            f"images[{index}].raw: {raw.height} x {raw.width} x {channels} needs {size} bytes, got {len(raw.pixels)}"
        )
    return np.frombuffer(raw.pixels, np.uint8).reshape(raw.height, raw.width, channels)


def sites_of(options: pb.AttentionOptions, available: Sequence[Site]) -> list[Site]:
    """The attention sites whose maps are wanted; none at level NONE, all where none is named."""
    if options.level == pb.ATTENTION_LEVEL_NONE:
        return []
    if options.level not in pb.AttentionLevel.values():
        raise InvalidArgument(f"attention.level: unknown {options.level}; choose {', '.join(pb.AttentionLevel.keys())}")
    if not options.sites:
        return list(available)
    by_name = {site.name: site for site in available}
    unknown = [name for name in options.sites if name not in by_name]
    if unknown:
        raise InvalidArgument(f"attention.sites: unknown {unknown[0]!r}; the model has {', '.join(by_name) or 'none'}")
    return [by_name[name] for name in dict.fromkeys(options.sites)]


def outputs_for(sites: Sequence[Site], level: int) -> list[str]:
    """Graph outputs that answer a request: the probabilities, and each site's branches as far as its maps need them."""
    names = ["probabilities"]
    for site in sites:
        if site.spatial:
            names.append(site.spatial)
        if site.channel and (level == pb.ATTENTION_LEVEL_FULL or site.kind == "bam"):
            names.append(site.channel)
    return names


def image_result(
    row: int,
    picture: Picture,
    result: Outputs,
    labels: Sequence[str],
    request: pb.ClassifyRequest,
    sites: Sequence[Site],
) -> pb.ImageResult:
    """The answer for picture number `row` of the request."""
    probabilities = result["probabilities"][row]  # (K,) float32
    box = picture.box
    return pb.ImageResult(
        predictions=[
            pb.Prediction(index=index, label=labels[index], probability=probabilities[index])
            for index in map(int, top_k(probabilities, request.top_k))
        ],
        attention=[_attention_map(row, site, result, request.attention.level) for site in sites],
        view=pb.CropBox(left=box.left, top=box.top, right=box.right, bottom=box.bottom),
        image_height=picture.height,
        image_width=picture.width,
    )


def _attention_map(row: int, site: Site, result: Outputs, level: int) -> pb.AttentionMap:
    answer = pb.AttentionMap(site=site.name, kind=site.kind)
    spatial = result[site.spatial][row] if site.spatial else None  # (H, W) float32
    channel = result[site.channel][row] if site.channel and site.channel in result else None  # (C,) float32
    if spatial is not None:
        answer.spatial.CopyFrom(_float_map(spatial))
    if channel is not None and level == pb.ATTENTION_LEVEL_FULL:
        answer.channel.extend(channel.tolist())
    if site.kind == "bam" and spatial is not None and channel is not None:
        answer.combined.CopyFrom(_float_map(combined_bam(channel, spatial, site.combine or "add")))
    return answer


def _float_map(values: NDArray[np.float32]) -> pb.FloatMap:
    return pb.FloatMap(height=values.shape[0], width=values.shape[1], values=values.astype("<f4").tobytes())


def timings_message(timings: Timings) -> pb.Timings:
    """Seconds to milliseconds."""
    return pb.Timings(
        decode_ms=timings.decode_s * 1e3,
        queue_ms=timings.queue_s * 1e3,
        infer_ms=timings.infer_s * 1e3,
    )
