"""What reads bytes that a stranger or a model's author wrote, as functions of bytes, and seeds for each.

A target raises what it documents, `REFUSALS`, or nothing; anything else is a defect.
"""

from __future__ import annotations

import io
import re
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from google.protobuf.message import DecodeError
from PIL import Image

from attnserve import decode, model_config
from attnserve.card import Card
from attnserve.codec import attention, open_inference
from attnserve.errors import AttnserveError, ConfigError, Internal
from attnserve.inference import grpc_service_pb2 as oip
from attnserve.v1 import attention_pb2 as pb

REPOSITORY = Path(__file__).parents[2] / "model_repo"
LIMITS = decode.DecodeLimits(max_bytes=1 << 20, max_pixels=1 << 18)
SIDE = 28

REFUSALS = (AttnserveError, ConfigError)
DEFECTS = (Internal,)  # refusals by class, but they blame the server


class Target(NamedTuple):
    """A reader of bytes, and valid inputs to mutate."""

    read: Callable[[bytes], object]
    seeds: list[bytes]


def read_picture(data: bytes) -> None:
    decode.upright_rgb(data, LIMITS)


def read_tensors(data: bytes) -> None:
    """An OIP request; bytes that are no message are refused before the codec sees them."""
    try:
        request = oip.ModelInferRequest.FromString(data)
    except DecodeError:
        return
    open_inference.timeout_s_of(request)
    open_inference.priority_of(request)
    open_inference.outputs_of(request, ["probabilities"])
    open_inference.images_of(request, SIDE, SIDE, max_images=64)


def read_images(data: bytes) -> None:
    """A request of attnserve.v1."""
    try:
        request = pb.ClassifyRequest.FromString(data)
    except DecodeError:
        return
    attention.sites_of(request.attention, [])
    attention.sources_of(request, max_images=64)


def read_card(data: bytes) -> None:
    Card.from_json(data.decode("utf-8", "replace"))


def _config_reader() -> Callable[[bytes], object]:
    # The folder lives as long as the reader does.
    holder = tempfile.TemporaryDirectory()

    def read(data: bytes) -> object:
        Path(holder.name, model_config.FILE_NAME).write_bytes(data)
        return model_config.read(Path(holder.name))

    return read


def _committed(name: str) -> list[bytes]:
    return [path.read_bytes() for path in sorted(REPOSITORY.rglob(name))]


def _pictures() -> list[bytes]:
    base = Image.effect_mandelbrot((60, 40), (-2, -1, 1, 1), 20)
    exif = Image.Exif()
    exif[0x0112] = 6
    wanted = [("JPEG", "RGB", {"exif": exif}), ("JPEG", "RGB", {"progressive": True}), ("JPEG", "L", {})]
    wanted += [("JPEG", "CMYK", {}), ("MPO", "RGB", {"save_all": True, "append_images": [base.convert("RGB")]})]
    wanted += [("PNG", mode, {}) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")]
    wanted += [("PNG", "RGB", {"exif": exif}), ("WEBP", "RGB", {"exif": exif}), ("WEBP", "RGBA", {"lossless": True})]
    wanted += [("WEBP", "RGB", {"save_all": True, "append_images": [base.convert("RGB")]})]
    wanted += [(format, "L", {}) for format in ("GIF", "BMP", "TIFF", "ICO", "PPM", "TGA", "SGI", "PCX")]
    files = []
    for format, mode, options in wanted:
        buffer = io.BytesIO()
        base.convert("L").convert(mode).save(buffer, format, **options)
        files.append(buffer.getvalue())
    return files


def _tensors() -> list[bytes]:
    encoded = b"".join(struct.pack("<I", 9) + b"a picture" for _ in range(2))
    seeds = []
    for datatype, shape, raw in [("UINT8", [1, SIDE, SIDE, 3], bytes(SIDE * SIDE * 3)), ("BYTES", [2], encoded)]:
        request = oip.ModelInferRequest(model_name="m", id="1", raw_input_contents=[raw])
        request.inputs.add(name="images", datatype=datatype, shape=shape)
        request.outputs.add(name="probabilities").parameters["classification"].int64_param = 3
        request.parameters["timeout"].int64_param = 1000
        request.parameters["priority"].uint64_param = 1
        seeds.append(request.SerializeToString())
    return seeds


def _requests() -> list[bytes]:
    raw = pb.Image(raw=pb.RawImage(pixels=bytes(12), height=2, width=2, channels=3))
    wish = pb.AttentionOptions(level=1, sites=["layer1"])
    return [pb.ClassifyRequest(model="m", images=[raw, pb.Image(encoded=b"x")], attention=wish).SerializeToString()]


def targets() -> dict[str, Target]:
    """All of them by name."""
    decode.prepare()
    return {
        "picture": Target(read_picture, _pictures()),
        "tensors": Target(read_tensors, _tensors()),
        "images": Target(read_images, _requests()),
        "card": Target(read_card, [*_committed("model.json"), b"[" * 50000]),
        "config": Target(
            _config_reader(),
            [re.sub(rb"name: .*", b"", text, count=1) for text in _committed(model_config.FILE_NAME)]
            + [b"ensemble_scheduling { step " * 2_000, b"x: [" * 2_000, b"x { " * 20_000],
        ),
    }
