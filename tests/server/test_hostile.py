"""Bad input gets INVALID_ARGUMENT with a reason, and the server keeps answering."""

from __future__ import annotations

import io
import struct
import zlib

import grpc
import numpy as np
import pytest
from PIL import Image

from attnserve.client import ClientError
from attnserve.inference import grpc_service_pb2 as oip
from attnserve.v1 import attention_pb2 as pb
from attnserve.v1 import attention_pb2_grpc

pytestmark = [pytest.mark.both_transports, pytest.mark.fronts]

MODEL = "fashion-mnist-cbam"


def encoded(format: str, mode: str = "RGB", size: tuple[int, int] = (60, 40), **options) -> bytes:
    buffer = io.BytesIO()
    Image.effect_mandelbrot((60, 40), (-2, -1, 1, 1), 20).resize(size).convert(mode).save(buffer, format, **options)
    return buffer.getvalue()


def png_claiming(width: int, height: int) -> bytes:
    """A PNG file of a few bytes whose header promises width x height pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


BAD = {
    "empty": b"",
    "not a picture": b"GET / HTTP/1.1\r\n\r\n" * 10,
    "zeros": bytes(4096),
    "a gif": encoded("GIF"),
    "a bmp": encoded("BMP"),
    "a jpeg cut short": encoded("JPEG")[:300],
    "a png cut short": encoded("PNG")[:200],
    "a webp cut short": encoded("WEBP")[:60],
    "a png of 100,000 x 100,000": png_claiming(100_000, 100_000),
    "a png of 12,000 x 12,000": png_claiming(12_000, 12_000),
    "a png of 9,000 x 9,000": png_claiming(9_000, 9_000),
    "more bytes than allowed": encoded("JPEG") + bytes(33 << 20),
}


@pytest.mark.parametrize("name", BAD)
def test_bytes_that_are_no_picture_are_refused_and_the_server_keeps_answering(client, test_set, name):
    with pytest.raises(ClientError) as caught:
        client.classify([BAD[name]], model=MODEL)
    assert caught.value.code == "INVALID_ARGUMENT"
    assert "images[0]" in caught.value.message
    assert client.classify([test_set[0][0]], model=MODEL)[0].predictions[0].label == "Ankle boot"


@pytest.mark.parametrize("name", ["empty", "a jpeg cut short", "a png of 100,000 x 100,000"])
def test_a_stream_reports_the_bad_picture_in_its_place_and_goes_on(client, test_set, name):
    outcomes = list(client.classify_stream([test_set[0][0], BAD[name], test_set[0][1]], model=MODEL))
    assert [type(outcome).__name__ for outcome in outcomes] == ["Classification", "ClientError", "Classification"]
    assert outcomes[1].code == "INVALID_ARGUMENT"


@pytest.mark.parametrize(
    "request_fields",
    [
        {},
        {"images": [pb.Image()]},
        {"images": [pb.Image(raw=pb.RawImage(pixels=b"123", height=28, width=28))]},
        {"images": [pb.Image(raw=pb.RawImage(pixels=b"", height=0, width=0))]},
        {"images": [pb.Image(raw=pb.RawImage(pixels=bytes(8), height=2, width=2, channels=2))]},
        {"images": [pb.Image(raw=pb.RawImage(pixels=b"", height=1 << 31, width=1 << 31))]},
        {"images": [pb.Image(encoded=encoded("PNG"))] * 1025},
        {"images": [pb.Image(encoded=encoded("PNG"))], "attention": pb.AttentionOptions(level=1, sites=["nowhere"])},
        {"images": [pb.Image(encoded=encoded("PNG"))], "attention": pb.AttentionOptions(level=77)},  # type: ignore[arg-type]
    ],
)
def test_requests_that_make_no_sense_are_refused_with_the_field_s_name(channel, request_fields):
    stub = attention_pb2_grpc.AttentionServiceStub(channel)
    with pytest.raises(grpc.RpcError) as caught:
        stub.Classify(pb.ClassifyRequest(model=MODEL, **request_fields), timeout=20)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "images" in caught.value.details() or "attention" in caught.value.details()


NO_MESSAGE = b"\xff" * 64


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/attnserve.v1.AttentionService/Classify", "attnserve.v1.ClassifyRequest"),
        ("/attnserve.v1.AttentionService/ListModels", "attnserve.v1.ListModelsRequest"),
        ("/inference.GRPCInferenceService/ModelInfer", "inference.ModelInferRequest"),
    ],
)
def test_bytes_that_are_no_message_are_a_bad_request_and_nothing_for_the_log(channel, client, server, path, message):
    call = channel.unary_unary(path, request_serializer=bytes, response_deserializer=bytes)
    with pytest.raises(grpc.RpcError) as caught:
        call(NO_MESSAGE, timeout=20)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.details() == f"the request is not a valid {message} message"
    assert client.models()
    assert "Traceback" not in server.log


def test_bytes_that_are_no_message_are_answered_in_their_place_in_a_stream(channel, server):
    path = "/attnserve.v1.AttentionService/ClassifyStream"
    good = pb.ClassifyRequest(model=MODEL, images=[pb.Image(encoded=encoded("PNG"))]).SerializeToString()
    call = channel.stream_stream(path, bytes, pb.ClassifyStreamResponse.FromString)
    first, second, third = call(iter([good, NO_MESSAGE, good]), timeout=20)
    assert (first.code, second.code, third.code) == (0, grpc.StatusCode.INVALID_ARGUMENT.value[0], 0)
    assert second.message == "the request is not a valid attnserve.v1.ClassifyRequest message"
    assert "Traceback" not in server.log


def test_bytes_that_are_no_message_are_answered_in_their_place_in_triton_s_stream(channel, server):
    path = "/inference.GRPCInferenceService/ModelStreamInfer"
    call = channel.stream_stream(path, bytes, oip.ModelStreamInferResponse.FromString)
    (answer,) = call(iter([NO_MESSAGE]), timeout=20)
    assert answer.error_message == "the request is not a valid inference.ModelInferRequest message"
    assert "Traceback" not in server.log


@pytest.mark.parametrize(
    ("format", "mode", "options"),
    [
        ("JPEG", "RGB", {}),
        ("JPEG", "L", {}),
        ("JPEG", "CMYK", {}),
        ("JPEG", "RGB", {"progressive": True, "quality": 5}),
        ("PNG", "RGBA", {}),
        ("PNG", "LA", {}),
        ("PNG", "P", {}),
        ("PNG", "1", {}),
        ("PNG", "I;16", {}),
        ("WEBP", "RGB", {}),
        ("WEBP", "RGBA", {"lossless": True}),
    ],
)
def test_every_kind_of_jpeg_png_and_webp_is_answered(client, format, mode, options):
    answer = client.classify([encoded(format, mode, **options)], model=MODEL)[0]
    assert (answer.image_height, answer.image_width) == (40, 60)


def test_exif_orientation_is_applied(client, test_set):
    upright = np.repeat(np.repeat(test_set[0][0], 4, axis=0), 4, axis=1)
    exif = Image.Exif()
    exif[0x0112] = 6  # stored turned; to be shown turned 90 degrees clockwise
    buffer = io.BytesIO()
    Image.fromarray(np.rot90(upright)).save(buffer, "PNG", exif=exif)
    turned, plain = client.classify([buffer.getvalue(), upright], model=MODEL, top_k=0)
    assert turned.predictions == plain.predictions
