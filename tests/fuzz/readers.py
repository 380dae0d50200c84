"""What reads bytes that a stranger or a model's author wrote, as functions of bytes; what it accepts must hold.

Each raises what it documents, `REFUSALS`, or nothing; anything else is a defect.
"""

from __future__ import annotations

import contextlib
import re
import tomllib
import zlib
from collections.abc import Iterator
from json import JSONDecodeError
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError, Message
from google.protobuf.text_format import ParseError
from PIL import UnidentifiedImageError

import pictures
from attnserve import decode, onnx_check
from attnserve.access import METHODS
from attnserve.access_file import AccessFile
from attnserve.card import Card, Preprocessing
from attnserve.codec import attention, open_inference, rest
from attnserve.codec.maps import style_of
from attnserve.decode import DecodeLimits, Picture
from attnserve.errors import AttnserveError, ConfigError, Internal, InvalidArgument
from attnserve.explain import Explained
from attnserve.inference import grpc_service_pb2 as oip
from attnserve.v1 import attention_pb2 as pb
from seeds import SIDE

REFUSALS = (AttnserveError, ConfigError, DecodeError)
DEFECTS = (Internal,)  # refusals by class, but they blame the server
_PARSERS = (DecodeError, ParseError, JSONDecodeError, tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError,
            UnidentifiedImageError, zlib.error, onnx_check._Malformed)  # fmt: skip

LIMITS = DecodeLimits(max_bytes=1 << 20, max_pixels=1 << 18)
_MOST_IMAGES, _MOST_REPLY_BYTES = 64, 1 << 20
_VIEWS = (
    Preprocessing(SIDE, SIDE),
    Preprocessing(32, 48, resize=64),
    Preprocessing(32, 32, resize=40, interpolation="bicubic"),
)


def by_the_parser(error: BaseException | None) -> bool:
    """Whether the bytes were no picture, message, JSON and so on at all, so that no check of ours was reached."""
    while error is not None:
        if isinstance(error, _PARSERS):
            return True
        error = error.__cause__ or error.__context__
    return False


def read_picture(data: bytes, limits: DecodeLimits = LIMITS) -> None:
    """An encoded picture, cut out by one of several views."""
    wanted = _VIEWS[len(data) % len(_VIEWS)]
    found = decode.picture_from_bytes(data, wanted, limits)
    assert pictures.format_of(data) is not None  # nothing but what is allowed was decoded
    assert found.pixels.shape == (wanted.height, wanted.width, 3)
    assert found.pixels.dtype == np.uint8
    assert 0 < found.height * found.width <= limits.max_pixels
    assert 0 <= found.box.left < found.box.right <= found.width
    assert 0 <= found.box.top < found.box.bottom <= found.height


def read_tensors(data: bytes) -> None:
    """A request of the Open Inference Protocol."""
    _infer(oip.ModelInferRequest.FromString(data))


def _infer(request: oip.ModelInferRequest) -> oip.ModelInferResponse:
    """The answer of a model that finds nothing."""
    timeout_s = open_inference.timeout_s_of(request)
    assert timeout_s is None or timeout_s > 0
    assert open_inference.priority_of(request) >= 0
    wanted = open_inference.outputs_of(request, ["probabilities", "logits"])
    images = open_inference.images_of(request, SIDE, SIDE, _MOST_IMAGES)
    assert isinstance(images, list) or images.shape[1:] == (SIDE, SIDE, 3)
    assert 1 <= len(images) <= _MOST_IMAGES
    scores = np.zeros((len(images), 10), np.float32)
    response = open_inference.reply(request, "1", wanted, {"probabilities": scores, "logits": scores}, ["label"] * 10)
    return oip.ModelInferResponse.FromString(response.SerializeToString())


_HEAD = re.compile(rb"(index|load|) ?(\d{0,9}) ?(\w*)")


def read_rest(data: bytes) -> None:
    """A body of REST, after a line of our own: what it asks for, the length of its JSON and its Content-Encoding."""
    head, _, sent = data.partition(b"\n")
    found = _HEAD.fullmatch(head) or _HEAD.match(b"")
    assert found is not None
    asks, length, encoding = (group.decode() for group in found.groups())
    if length and int(length) > rest.MOST_JSON_BYTES:  # as the transport has it
        raise rest.too_large(rest.MOST_JSON_BYTES)
    body = rest.Body(rest.unpacked(sent, encoding, rest.MOST_JSON_BYTES), int(length) if length else None)
    if asks == "index":
        rest.index_request(body)
    elif asks == "load":
        rest.load_parameters(body)
    else:
        request = rest.infer_request(body, "m", "1")
        rest.infer_reply(_infer(request), rest.binary_outputs(request))


class Attention:
    """Requests of attnserve.v1 to a model of that card."""

    def __init__(self, card: Card) -> None:
        self._card = card

    def read(self, data: bytes) -> None:
        """A request, its pictures and the answer of a model that sees the same everywhere."""
        request = pb.ClassifyRequest.FromString(data)
        sources = attention.sources_of(request, _MOST_IMAGES)
        sites = attention.sites_of(request.attention, self._card.sites)
        wish = attention.wish_of(request, self._card, _MOST_IMAGES)
        style_of(request.maps)
        if attention.reply_bytes(request, self._card, sites, wish) > _MOST_REPLY_BYTES:
            raise InvalidArgument("too large an answer")
        pictures = [self._picture(source) for source in sources]
        outputs = {"probabilities": np.full((len(pictures), 10), 0.1, np.float32)}
        for site in sites:
            shapes = {site.channel: (site.channels,), site.spatial: (site.height, site.width)}
            outputs |= {name: np.ones((len(pictures), *shape), np.float32) for name, shape in shapes.items() if name}
        explained = []
        for layer in wish.layers if wish else ():
            classes = wish.classes_of(outputs["probabilities"])
            maps = np.ones((*classes.shape, layer.height, layer.width), np.float32)
            explained.append(Explained(layer, wish.method, classes, maps))
        results = attention.ImageResults(pictures, outputs, explained, self._card.labels, request, sites)
        for row in range(len(pictures)):
            results.answer(row).SerializeToString()

    def _picture(self, source: object) -> Picture:
        if isinstance(source, bytes):
            return decode.picture_from_bytes(source, self._card.preprocessing, LIMITS)
        return decode.picture_from_pixels(source, self._card.preprocessing, LIMITS)


def read_graph(data: bytes) -> None:
    """An ONNX file; what is let through stands alone by ONNX's own reading too."""
    onnx_check.check(data, Path("model.onnx"))
    _assert_alone(onnx.ModelProto.FromString(data))


def _assert_alone(message: Message) -> None:
    match message:
        case onnx.TensorProto():
            assert message.data_location == onnx.TensorProto.DEFAULT
            assert not message.external_data
        case onnx.NodeProto():
            assert message.op_type != "EPContext"
            assert message.domain.encode() in onnx_check.DOMAINS
        case onnx.OperatorSetIdProto():
            assert message.domain.encode() in onnx_check.DOMAINS
        case onnx.ModelProto():
            assert not message.functions
            assert not message.training_info
    for part in _messages_in(message):
        _assert_alone(part)


def _messages_in(message: Message) -> Iterator[Message]:
    for field, value in message.ListFields():
        if field.message_type is not None:
            yield from value if field.is_repeated else [value]


class Access:
    """Access files, one after the other in the same place."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self, data: bytes) -> None:
        """The file, and a few calls of callers that it may know; none of them may raise anything but a refusal."""
        self._path.write_bytes(data)
        access = AccessFile(self._path, clock=lambda: 5.0)
        for metadata, identities in (([("x-api-key", "a token")], ()), ([], ()), ([], ("spiffe://lab/robot", "x"))):
            grant = access.grant(metadata, identities)
            calls = [(grant.check_method, name) for names in METHODS.values() for name in names]
            calls += [(grant.check_model, "fashion-mnist-bam"), (grant.spend_images, 1 << 20), (grant.check_images,)]
            for call, *arguments in [*calls, (grant.spend_request,), (grant.spend_request,)]:
                with contextlib.suppress(AttnserveError):
                    call(*arguments)
