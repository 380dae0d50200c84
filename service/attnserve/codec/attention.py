"""attnserve.v1 messages <-> pictures, outputs and maps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from attnserve import drift
from attnserve.card import GRADCAM, LAST, Card, Site
from attnserve.codec.maps import MapStyle, Stack, style_of
from attnserve.contract import Outputs, Timings
from attnserve.decode import Picture
from attnserve.decode_pool import Source
from attnserve.errors import InvalidArgument
from attnserve.explain import Explained, Wish
from attnserve.postprocess import combined_bam, largest, top_k
from attnserve.v1 import attention_pb2 as pb

MOST_NAMES = 1024
"""Of sites or layers in one request, repeated ones included."""

_TOP_CHANNELS = 8


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
    """Raw pixels as (H, W, channels) uint8, copied out of the message once."""
    channels, height, width, pixels = raw.channels or 3, raw.height, raw.width, raw.pixels  # each read is a copy
    if channels not in (1, 3):
        raise InvalidArgument(f"images[{index}].raw: channels must be 1 or 3, got {channels}")
    if not height or not width:
        raise InvalidArgument(f"images[{index}].raw: height and width must be positive")
    size = height * width * channels
    if len(pixels) != size:
        raise InvalidArgument(
            f"images[{index}].raw: {height} x {width} x {channels} needs {size} bytes, got {len(pixels)}"
        )
    return np.frombuffer(pixels, np.uint8).reshape(height, width, channels)


def sites_of(options: pb.AttentionOptions, available: Sequence[Site]) -> list[Site]:
    """The attention sites whose maps are wanted; none at level NONE, all where none is named."""
    if options.level == pb.ATTENTION_LEVEL_NONE:
        return []
    if options.level not in pb.AttentionLevel.values():
        raise InvalidArgument(f"attention.level: unknown {options.level}; choose {', '.join(pb.AttentionLevel.keys())}")
    if not options.sites:
        return list(available)
    if len(options.sites) > MOST_NAMES:
        raise InvalidArgument(f"attention.sites: at most {MOST_NAMES}, got {len(options.sites)}")
    by_name = {site.name: site for site in available}
    unknown = [name for name in options.sites if name not in by_name]
    if unknown:
        raise InvalidArgument(f"attention.sites: unknown {unknown[0]!r}; the model has {', '.join(by_name) or 'none'}")
    return [by_name[name] for name in dict.fromkeys(options.sites)]


def outputs_for(sites: Sequence[Site], wish: Wish | None = None) -> list[str]:
    """Graph outputs that answer a request: the probabilities, each site's branches, and what the wish needs."""
    if not sites and wish is None:
        return ["probabilities"]
    branches = [name for site in sites for name in (site.spatial, site.channel) if name]
    return list(dict.fromkeys(["probabilities", *branches, *(wish.outputs if wish else ())]))


def wish_of(request: pb.ClassifyRequest, card: Card, max_rows: int) -> Wish | None:
    """What is to be explained; None where the request does not ask. Raises `InvalidArgument` naming the choices.

    Args:
        max_rows: Most images times classes.
    """
    if not request.HasField("explain"):
        return None
    options, available = request.explain, {layer.layer: layer for layer in card.explain}
    for field, named, most in (("layers", options.layers, MOST_NAMES), ("classes", options.classes, max_rows)):
        if len(named) > most:  # looked at before they are: there may be tens of millions
            raise InvalidArgument(f"explain.{field}: at most {most}, got {len(named)}")
    names = list(dict.fromkeys(options.layers)) or list(available)[:1] or [LAST]
    if unknown := [name for name in names if name not in available]:
        raise InvalidArgument(f"explain.layers: unknown {unknown[0]!r}; the model has {', '.join(available) or 'none'}")
    method = options.method or GRADCAM
    for name in names:
        if method not in available[name].methods:
            choices = ", ".join(available[name].methods)
            raise InvalidArgument(f"explain.method: {name!r} has no {method!r}; choose {choices}")
    classes = tuple(dict.fromkeys(options.classes))
    if wrong := [number for number in classes if number >= len(card.labels)]:
        raise InvalidArgument(f"explain.classes: no {wrong[0]}; the model has 0 to {len(card.labels) - 1}")
    if classes and options.top_k:
        raise InvalidArgument("explain: give classes or top_k, not both")
    view = card.preprocessing
    layers = tuple(available[name] for name in names)
    wish = Wish(layers, method, classes, min(options.top_k or 1, len(card.labels)), view.height, view.width)
    rows = wish.rows_per_image * len(request.images)
    if rows > max_rows:
        raise InvalidArgument(f"explain: at most {max_rows} images times classes in one request, got {rows}")
    return wish


def reply_bytes(request: pb.ClassifyRequest, card: Card, sites: Sequence[Site], wish: Wish | None) -> int:
    """Bytes of the maps in the reply, about; drawn ones as if PNG saved nothing."""
    if not sites and wish is None:
        return 0
    style, view = style_of(request.maps), card.preprocessing
    per_pixel: dict[int, int] = {pb.MAP_FORM_RAW: 0, pb.MAP_FORM_NORMALISED: 4}
    drawn = per_pixel.get(style.form, 3) * view.height * view.width
    total = 0
    for site in sites:
        maps = (1 if site.spatial else 0) + (1 if site.kind == "bam" else 0)
        total += maps * (drawn or 4 * site.height * site.width)
        total += 4 * site.channels if site.channel and request.attention.level == pb.ATTENTION_LEVEL_FULL else 0
    for layer in wish.layers if wish else ():
        total += (wish.rows_per_image if wish else 0) * (drawn or 4 * layer.height * layer.width)
    return total * len(request.images)


class ImageResults:
    """The answers for the pictures of one request, its maps measured all at once."""

    def __init__(
        self,
        pictures: Sequence[Picture],
        result: Outputs,
        explained: Sequence[Explained],
        labels: Sequence[str],
        request: pb.ClassifyRequest,
        sites: Sequence[Site],
    ) -> None:
        entropies = drift.row_entropies(sites, result) if sites else {}
        full = request.attention.level == pb.ATTENTION_LEVEL_FULL
        self._pictures = pictures
        self._probabilities = result["probabilities"]  # (N, K) float32
        self._labels = labels
        self._top_k = request.top_k
        self._style = style_of(request.maps)
        self._shown = [_SiteMaps(site, result, entropies.get(site.name), full=full) for site in sites]
        self._grounds = [(each, Stack(each.maps)) for each in explained]

    def answer(self, row: int) -> pb.ImageResult:
        """That for one picture; may be called from several threads at a time."""
        picture, probabilities, labels, style = self._pictures[row], self._probabilities[row], self._labels, self._style
        box = picture.box
        best = top_k(probabilities, self._top_k)
        answer = pb.ImageResult(
            view={"left": box.left, "top": box.top, "right": box.right, "bottom": box.bottom},
            image_height=picture.height,
            image_width=picture.width,
        )
        for index, probability in zip(best.tolist(), probabilities[best].tolist(), strict=True):
            answer.predictions.add(index=index, label=labels[index], probability=probability)
        if self._shown:
            answer.attention.extend([maps.message(row, style, picture) for maps in self._shown])
        if self._grounds:
            answer.explanations.extend(
                [
                    pb.Explanation(
                        layer=each.layer.layer,
                        method=each.method,
                        class_index=index,
                        label=labels[index],
                        map=stack.message((row, column), style, picture.pixels),
                    )
                    for each, stack in self._grounds
                    for column, index in enumerate(each.classes[row].tolist())
                ]
            )
        return answer


class _SiteMaps:
    """One site's maps of a whole request."""

    def __init__(self, site: Site, result: Outputs, entropies: NDArray[np.float32] | None, *, full: bool) -> None:
        self._site = site
        self._full = full
        self._entropies = entropies
        self._spatial = Stack(result[site.spatial]) if site.spatial else None
        self._channel = result[site.channel] if site.channel else None  # (N, C) float32
        self._top = None if self._channel is None else largest(self._channel, _TOP_CHANNELS)  # (N, 8)

    def message(self, row: int, style: MapStyle, picture: Picture) -> pb.AttentionMap:
        """Those of one picture."""
        site, spatial = self._site, self._spatial
        answer = pb.AttentionMap(site=site.name, kind=site.kind)
        if spatial is not None:
            answer.spatial.CopyFrom(spatial.message(row, style, picture.pixels))
        if self._entropies is not None:
            answer.entropy = self._entropies[row]
        if self._channel is None or self._top is None:
            return answer
        channel, top = self._channel[row], self._top[row]  # (C,), (8,)
        for index, value in zip(top.tolist(), channel[top].tolist(), strict=True):
            answer.top_channels.add(index=index, value=value)
        if self._full:
            answer.channel.extend(channel.tolist())
        if site.kind == "bam" and spatial is not None:
            combined = combined_bam(channel, spatial.values[row], site.combine or "add")
            answer.combined.CopyFrom(Stack(combined[np.newaxis]).message(0, style, picture.pixels))
        return answer


def timings_message(timings: Timings) -> pb.Timings:
    """Seconds to milliseconds."""
    return pb.Timings(
        decode_ms=timings.decode_s * 1e3,
        queue_ms=timings.queue_s * 1e3,
        infer_ms=timings.infer_s * 1e3,
        explain_ms=timings.explain_s * 1e3,
    )
