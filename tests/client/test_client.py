"""The client against a server whose answers are chosen here."""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.rpc import code_pb2

from attnserve.client import (
    Classification,
    Client,
    ClientError,
    Explain,
    ModelStatus,
    Picture,
    Prediction,
    SiteInfo,
    Timings,
)
from attnserve.client.calls import with_port
from attnserve.preprocess import CropBox
from attnserve.v1 import attention_pb2 as pb


def label_of(outcome: Classification | ClientError) -> str:
    return outcome.code if isinstance(outcome, ClientError) else outcome.predictions[0].label


def test_every_call_has_the_deadline_of_its_client(client: Client, service: Any) -> None:
    client.classify([b"cat"], model="fake")
    list(client.classify_stream([b"cat"], model="fake"))
    client.models()
    client.model("fake")
    assert len(service.deadlines_s) == 4
    assert service.deadlines_s == pytest.approx([7] * 4, abs=1)


def test_a_call_may_bring_its_own_deadline(client: Client, service: Any) -> None:
    client.classify([b"cat"], model="fake", timeout_s=3)
    list(client.classify_stream([b"cat"], model="fake", timeout_s=3))
    client.models(timeout_s=3)
    client.model("fake", timeout_s=3)
    assert service.deadlines_s == pytest.approx([3] * 4, abs=1)


@pytest.mark.parametrize("timeout_s", [0.0, -1.0, math.nan, math.inf])
def test_a_client_without_a_usable_deadline_is_refused(make_client: Any, timeout_s: float) -> None:
    with pytest.raises(ValueError, match="timeout_s"):
        make_client("localhost", timeout_s=timeout_s)


def test_a_call_whose_time_is_up_fails_and_one_without_end_is_refused(client: Client) -> None:
    with pytest.raises(ClientError, match="DEADLINE_EXCEEDED"):
        client.models(timeout_s=-1)
    with pytest.raises(ValueError, match="timeout_s"):
        client.models(timeout_s=math.inf)


def test_every_call_says_who_calls(make_client: Any, target: str, service: Any) -> None:
    with make_client(target, client_id="batch-7@host") as client:
        client.classify([b"cat"], model="fake")
        list(client.classify_stream([b"cat"], model="fake"))
        client.models()
        client.model("fake")
    assert service.client_ids == ["batch-7@host"] * 4


def test_a_client_without_a_name_sends_none(client: Client, service: Any) -> None:
    client.models()
    assert service.client_ids == [None]


@pytest.mark.parametrize("client_id", ["", "two words", "caf\u00e9", "x" * 129, "line\n"])
def test_a_name_that_metadata_cannot_carry_is_refused(make_client: Any, client_id: str) -> None:
    with pytest.raises(ValueError, match="client_id"):
        make_client("localhost", client_id=client_id)


def test_a_closed_client_says_so(client: Client) -> None:
    client.close()
    with pytest.raises(ClientError, match="CANCELLED: the client was closed"):
        client.models()
    with pytest.raises(ClientError, match="CANCELLED: the client was closed"):
        list(client.classify_stream([b"cat"], model="fake"))


def test_closing_a_client_fails_the_calls_under_way(target: str, service: Any) -> None:
    released = threading.Event()
    service.answer = lambda request: service.echo(request) if released.wait(10) else None
    client = Client(target)
    closer = threading.Thread(target=lambda: service.classify_begun.wait(5) and client.close())
    closer.start()
    with pytest.raises(ClientError) as caught:
        client.classify([b"cat"], model="fake")
    released.set()
    closer.join()
    assert caught.value.code == "CANCELLED"


def test_a_server_that_does_not_answer_in_time_is_given_up(client: Client, service: Any) -> None:
    released = threading.Event()
    service.answer = lambda request: service.echo(request) if released.wait(5) else None
    with pytest.raises(ClientError) as caught:
        client.classify([b"cat"], model="fake", timeout_s=0.1)
    released.set()
    assert caught.value.code == "DEADLINE_EXCEEDED"


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("localhost", "localhost:8001"),
        ("localhost:80", "localhost:80"),
        ("[::1]:80", "[::1]:80"),
        ("unix:/tmp/socket", "unix:/tmp/socket"),
        ("dns:///attnserve", "dns:///attnserve"),
    ],
)
def test_a_bare_host_gets_the_default_port(target: str, expected: str) -> None:
    assert with_port(target) == expected


def test_nobody_listening_is_unavailable(make_client: Any) -> None:
    with make_client("127.0.0.1:1", retry=None) as client, pytest.raises(ClientError, match="UNAVAILABLE"):
        client.models()


def test_an_error_carries_code_message_and_when_to_come_back(client: Client, service: Any, refusal: Any) -> None:
    def overloaded(request: pb.ClassifyRequest) -> pb.ClassifyResponse:  # noqa: ARG001
        raise refusal(code_pb2.RESOURCE_EXHAUSTED, "the queue is full", retry_after_s=1.25)

    service.answer = overloaded
    with pytest.raises(ClientError) as caught:
        client.classify([b"cat"], model="fake")
    assert (caught.value.code, caught.value.message) == ("RESOURCE_EXHAUSTED", "the queue is full")
    assert caught.value.retry_after_s == 1.25
    assert str(caught.value) == "RESOURCE_EXHAUSTED: the queue is full"


def test_an_error_without_a_delay_says_none(client: Client) -> None:
    with pytest.raises(ClientError) as caught:
        client.model("unknown")
    assert (caught.value.code, caught.value.retry_after_s) == ("NOT_FOUND", None)


def test_a_request_says_what_was_asked_for(client: Client, service: Any) -> None:
    client.classify([b"cat"], model="fake", version="2", top_k=3, attention="full", sites=["bam1"])
    (request,) = service.requests
    assert request == pb.ClassifyRequest(
        model="fake",
        version="2",
        images=[pb.Image(encoded=b"cat")],
        top_k=3,
        attention=pb.AttentionOptions(level=pb.ATTENTION_LEVEL_FULL, sites=["bam1"]),
    )


@pytest.mark.parametrize(("shape", "channels"), [((4, 5, 3), 3), ((4, 5, 1), 1), ((4, 5), 1)])
def test_an_array_is_sent_as_its_pixels_row_by_row(
    client: Client, service: Any, shape: tuple[int, ...], channels: int
) -> None:
    pixels = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    client.classify([pixels[:, ::-1]], model="fake")
    raw = service.requests[0].images[0].raw
    assert (raw.height, raw.width, raw.channels) == (4, 5, channels)
    assert raw.pixels == pixels[:, ::-1].tobytes()


@pytest.mark.parametrize(
    ("pixels", "named"),
    [
        (np.zeros((4, 5, 3), np.float32), "float32"),
        (np.zeros((4, 5, 4), np.uint8), r"\(4, 5, 4\)"),
        (np.zeros((1, 4, 5, 3), np.uint8), r"\(1, 4, 5, 3\)"),
        (np.zeros((0, 5, 3), np.uint8), r"\(0, 5, 3\)"),
    ],
)
def test_an_array_that_is_no_picture_is_refused_by_name(
    client: Client, service: Any, pixels: np.ndarray[Any, Any], named: str
) -> None:
    with pytest.raises(ValueError, match=named):
        client.classify([pixels], model="fake")
    assert not service.requests


@pytest.mark.parametrize("kind", [Path, str])
def test_a_path_is_sent_as_its_file(client: Client, service: Any, tmp_path: Path, kind: type) -> None:
    (tmp_path / "cat.png").write_bytes(b"a cat")
    client.classify([kind(tmp_path / "cat.png")], model="fake")
    assert service.requests[0].images[0].encoded == b"a cat"


@pytest.mark.parametrize(("picture", "name"), [(7, "int"), (None, "NoneType"), ([b"cat"], "list")])
def test_what_is_no_picture_is_refused_by_its_type(client: Client, picture: Any, name: str) -> None:
    with pytest.raises(TypeError, match=f"must be bytes, a path or a numpy array, got {name}"):
        client.classify([picture], model="fake")


@pytest.mark.parametrize("picture", [b"cat", "cat.png"])
def test_one_picture_is_no_sequence_of_them(client: Client, picture: Any) -> None:
    with pytest.raises(TypeError, match="images must be a sequence of pictures"):
        client.classify(picture, model="fake")


@pytest.mark.parametrize("way", ["classify", "classify_stream"])
def test_an_unknown_attention_level_is_refused_with_the_choices(client: Client, way: str) -> None:
    wrong: Any = "foo"
    with pytest.raises(ValueError, match="attention must be one of none, summary, full, got 'foo'"):
        list(getattr(client, way)([b"cat"], model="fake", attention=wrong))


@pytest.mark.parametrize("way", ["classify", "classify_stream"])
@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"classes": ["Shirt"]}, TypeError, "explain: classes must be whole numbers, got 'Shirt'; `ModelInfo.labels"),
        ({"classes": "Shirt"}, TypeError, "explain: classes must be a sequence of class indices, got 'Shirt'"),
        ({"classes": 6}, TypeError, "explain: classes must be a sequence of class indices, got 6"),
        ({"classes": [1.5]}, TypeError, "explain: classes must be whole numbers, got 1.5"),
        ({"classes": [-1]}, ValueError, "explain: classes must be from 0 to 4294967295, got -1"),
        ({"top_k": "2"}, TypeError, "explain: top_k must be whole numbers, got '2'"),
        ({"layers": "last"}, TypeError, "explain: layers must be a sequence of names, got 'last'"),
        ({"layers": [3]}, TypeError, "explain: layers must be a sequence of names"),
        ({"method": None}, TypeError, "explain: method must be a name, got None"),
    ],
)
def test_a_wrong_wish_for_evidence_names_its_field(
    client: Client, way: str, wrong: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=re.escape(message)):
        list(getattr(client, way)([b"cat"], model="fake", explain=Explain(**wrong)))


def test_class_indices_may_be_numpy_s(client: Client, service: Any) -> None:
    (answer,) = client.classify([b"cat"], model="fake", explain=Explain(["last"], classes=np.array([1, 0])))
    assert [each.class_index for each in answer.explanations] == [1, 0]
    assert list(service.requests[0].explain.classes) == [1, 0]


def test_an_answer_holds_predictions_maps_and_the_view(client: Client) -> None:
    answer, second = client.classify([b"cat", b"dog"], model="fake", attention="full")
    assert (answer.model, answer.version) == ("fake", "3")
    assert answer.predictions == (Prediction(7, "cat", 0.75),)
    assert (answer.view, answer.image_height, answer.image_width) == (CropBox(0, 0, 28, 28), 28, 28)
    assert answer.timings == Timings(1, 2, 3)
    gate, bam = answer.attention
    assert (gate.site, gate.kind, gate.combined, bam.channel) == ("layer1.cbam", "cbam", None, None)
    np.testing.assert_array_equal(gate.spatial.values, np.array([[0.1, 0.2, 0.3], [0.4, 0.5, 0.75]], np.float32))
    np.testing.assert_array_equal(gate.channel, np.array([0.5, 0.25], np.float32))
    np.testing.assert_array_equal(bam.combined.values, np.array([[0.25, 0.5], [0.75, 1.0]], np.float32))
    assert second.predictions[0].label == "dog"


def test_no_maps_come_where_none_were_asked_for(client: Client) -> None:
    assert client.classify([b"cat"], model="fake")[0].attention == ()


def test_a_reply_may_be_larger_than_grpcs_own_limit(client: Client, service: Any) -> None:
    def large(request: pb.ClassifyRequest) -> pb.ClassifyResponse:
        reply: pb.ClassifyResponse = service.echo(request)
        size = 1200  # 5.8 MB of map; gRPC's own limit is 4 MiB
        reply.results[0].attention[0].spatial.CopyFrom(
            pb.SpatialMap(height=size, width=size, values=bytes(4 * size**2))
        )
        return reply

    service.answer = large
    (answer,) = client.classify([b"cat"], model="fake", attention="summary")
    assert answer.attention[0].spatial is not None
    assert answer.attention[0].spatial.values.shape == (1200, 1200)


def test_a_reply_that_misses_a_picture_is_an_error(client: Client, service: Any) -> None:
    service.answer = lambda request: pb.ClassifyResponse(model=request.model)
    with pytest.raises(ClientError, match="1 pictures were sent, 0 were answered"):
        client.classify([b"cat"], model="fake")
    with pytest.raises(ClientError, match="1 pictures were sent, 0 were answered"):
        list(client.classify_stream([b"cat"], model="fake"))


def test_models_are_listed_with_their_readiness(client: Client, service: Any) -> None:
    service.statuses.append(pb.ModelStatus(name="broken", reason="no model.onnx"))
    assert client.models() == [ModelStatus("fake", "3", True, ""), ModelStatus("broken", "", False, "no model.onnx")]


def test_a_model_tells_its_labels_sites_view_and_card(client: Client) -> None:
    info = client.model("fake", "2")
    assert (info.name, info.version, info.labels) == ("fake", "2", ("cat", "dog"))
    assert (info.view_height, info.view_width, info.max_batch_size) == (28, 30, 16)
    assert info.sites == (SiteInfo("layer1.cbam", "cbam", 2, 2, 3, 14, "", True, True),)
    assert (info.execution_provider, info.card, info.card_digest) == (
        "CPUExecutionProvider",
        {"precision": "fp32"},
        "ab12",
    )


def test_a_stream_keeps_order_and_gives_each_picture_its_own_status(
    client: Client, service: Any, tmp_path: Path
) -> None:
    pictures: list[Picture] = [b"one", b"bad", tmp_path / "missing.png", np.zeros((2, 2), np.int8), b"two"]
    outcomes = list(client.classify_stream(pictures, model="fake", max_in_flight=2))
    assert [label_of(outcome) for outcome in outcomes] == ["one", *["INVALID_ARGUMENT"] * 3, "two"]
    messages = [outcome.message for outcome in outcomes if isinstance(outcome, ClientError)]
    assert messages[0] == "images[0]: not a picture"
    assert "missing.png" in messages[1]
    assert "int8" in messages[2]
    assert len(service.requests) == 3  # what cannot be a picture is not sent


def test_a_stream_reads_pictures_only_so_far_ahead(target: str) -> None:
    drawn: list[int] = []

    def pictures() -> Iterator[bytes]:
        for index in range(10):
            drawn.append(index)
            yield b"%d" % index

    with Client(target) as client:
        outcomes = client.classify_stream(pictures(), model="fake", max_in_flight=3)
        assert label_of(next(outcomes)) == "0"
        assert drawn == [0, 1, 2, 3]
        assert [label_of(outcome) for outcome in outcomes] == [str(index) for index in range(1, 10)]


def test_a_stream_that_is_walked_away_from_is_cancelled_on_the_server(client: Client, service: Any) -> None:
    def stuck(requests: Iterator[pb.ClassifyRequest]) -> Iterator[pb.ClassifyStreamResponse]:
        yield pb.ClassifyStreamResponse(response=service.echo(next(requests)))
        service.stream_over.wait(5)

    service.stream = stuck
    outcomes = client.classify_stream([b"one", b"two"], model="fake")
    next(outcomes)
    assert not service.stream_over.is_set()
    outcomes.close()  # type: ignore[attr-defined]
    assert service.stream_over.wait(2)


def test_a_stream_that_is_given_up_is_cancelled_on_the_server(client: Client, service: Any) -> None:
    def out_of_turn(requests: Iterator[pb.ClassifyRequest]) -> Iterator[pb.ClassifyStreamResponse]:
        yield pb.ClassifyStreamResponse(sequence=5, response=service.echo(next(requests)))
        service.stream_over.wait(5)

    service.stream = out_of_turn
    with pytest.raises(ClientError) as caught:
        next(client.classify_stream([b"one"], model="fake"))
    assert service.stream_over.wait(2)
    assert caught.value.code == "INTERNAL"  # the error, and with it the call, is still held


def test_an_empty_stream_has_no_outcomes(client: Client) -> None:
    assert list(client.classify_stream([], model="fake")) == []


def test_a_stream_that_breaks_gives_what_it_had_and_then_raises(client: Client, service: Any, refusal: Any) -> None:
    def broken(requests: Iterator[pb.ClassifyRequest]) -> Iterator[pb.ClassifyStreamResponse]:
        yield pb.ClassifyStreamResponse(sequence=0, response=service.echo(next(requests)))
        raise refusal(code_pb2.UNAVAILABLE, "draining")

    service.stream = broken
    outcomes = client.classify_stream([b"one", b"two"], model="fake")
    assert label_of(next(outcomes)) == "one"
    with pytest.raises(ClientError, match="UNAVAILABLE: draining"):
        next(outcomes)


@pytest.mark.parametrize(
    ("sequences", "complaint"),
    [([0], "ended the stream before"), ([1, 0], "picture 1 in place of 0"), ([0, 1, 2], "more pictures than")],
)
def test_a_stream_that_does_not_answer_each_picture_once_in_turn_raises(
    client: Client, service: Any, sequences: list[int], complaint: str
) -> None:
    def wrong(requests: Iterator[pb.ClassifyRequest]) -> Iterator[pb.ClassifyStreamResponse]:
        answer = service.echo(next(requests))
        return (pb.ClassifyStreamResponse(sequence=sequence, response=answer) for sequence in sequences)

    service.stream = wrong
    with pytest.raises(ClientError, match=complaint):
        list(client.classify_stream([b"one", b"two"], model="fake"))


def test_a_window_of_nothing_is_refused(client: Client) -> None:
    with pytest.raises(ValueError, match="max_in_flight"):
        next(client.classify_stream([b"one"], model="fake", max_in_flight=0))


def test_what_the_other_side_cancels_is_unavailable_and_what_may_be_sent_again_is(
    make_client: Any, target: str, service: Any, refusal: Any
) -> None:
    """HAProxy resets streams with CANCEL for a server that goes."""

    def answer(request: pb.ClassifyRequest) -> pb.ClassifyResponse:
        if len(service.requests) == 1:
            raise refusal(code_pb2.CANCELLED, "reset")
        return service.echo(request)

    def stream(requests: Iterator[pb.ClassifyRequest]) -> Iterator[pb.ClassifyStreamResponse]:
        yield next(service.in_turn(requests))
        raise refusal(code_pb2.CANCELLED, "reset")

    service.answer = answer
    with make_client(target) as client:
        assert len(client.classify([b"cat"], model="fake")) == 1
        assert len(service.requests) == 2
        service.stream = stream
        outcomes = iter(client.classify_stream([b"cat", b"dog"], model="fake", max_in_flight=1))
        assert next(outcomes).predictions[0].label == "cat"
        with pytest.raises(ClientError, match="UNAVAILABLE: reset"):
            next(outcomes)
