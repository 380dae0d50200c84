"""Maps as messages, in the form that a request asks for."""

from __future__ import annotations

import io
import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from attnserve import heat
from attnserve.errors import Internal, InvalidArgument
from attnserve.v1 import attention_pb2 as pb

_ALPHA = 0.5
_PNG_EFFORT = 1  # of zlib's 9: a sixth larger than the best and several times as fast


class MapStyle(NamedTuple):
    """How maps come; the fields of `MapOptions`, checked and filled in."""

    form: int
    colormap: str
    alpha: float

    @property
    def draws(self) -> bool:
        """Whether making a map takes long."""
        return self.form != pb.MAP_FORM_RAW


_FORMS = frozenset(pb.MapForm.values())
_PLAIN = MapStyle(pb.MAP_FORM_RAW, "jet", _ALPHA)  # what an empty MapOptions asks for


def style_of(options: pb.MapOptions) -> MapStyle:
    """The form asked for. Raises `InvalidArgument` naming the field and the choices."""
    if not options.ByteSize():
        return _PLAIN
    if options.form not in _FORMS:
        raise InvalidArgument(f"maps.form: unknown {options.form}; choose {', '.join(pb.MapForm.keys())}")
    colormap = options.colormap or "jet"
    if colormap not in heat.COLORMAPS:
        raise InvalidArgument(f"maps.colormap: unknown {colormap!r}; choose {', '.join(heat.COLORMAPS)}")
    if not 0 <= options.alpha <= 1:  # so that NaN is refused too
        raise InvalidArgument(f"maps.alpha: must be within 0..1, got {options.alpha}")
    return MapStyle(options.form, colormap, options.alpha or _ALPHA)


class Stack:
    """Maps of several pictures, measured all at once.

    Args:
        values: (..., h, w) float32.
    """

    def __init__(self, values: NDArray[np.float32]) -> None:
        self.values = values
        flat = values.reshape(*values.shape[:-2], -1)  # over one axis numpy is faster than over two
        self._min, self._max, self._mean = flat.min(-1), flat.max(-1), flat.mean(-1)

    def message(self, at: int | tuple[int, ...], style: MapStyle, view: NDArray[np.uint8]) -> pb.SpatialMap:
        """One of the maps as a message.

        Args:
            view: The picture as the model saw it, (H, W, 3).
        """
        values, least, greatest = self.values[at], float(self._min[at]), float(self._max[at])
        message = pb.SpatialMap(min=least, max=greatest, mean=self._mean[at], empty=least == 0 == greatest)
        if style.form == pb.MAP_FORM_RAW:
            message.height, message.width = values.shape
            message.values = values.astype("<f4").tobytes()
            return message
        if not (math.isfinite(least) and math.isfinite(greatest)):
            raise Internal("a map of this picture is not finite")
        message.height, message.width = view.shape[:2]
        shown = heat.shown(values, *view.shape[:2])  # (H, W) in 0..1
        if style.form == pb.MAP_FORM_NORMALISED:
            message.values = shown.astype("<f4").tobytes()
            return message
        colours = heat.coloured(shown, style.colormap)
        overlaid = style.form == pb.MAP_FORM_OVERLAY
        message.png = png(heat.blended(view, colours, style.alpha) if overlaid else colours)
        return message


def png(pixels: NDArray[np.uint8]) -> bytes:
    """A PNG file of RGB pixels (H, W, 3)."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=_PNG_EFFORT)
    return file.getvalue()
