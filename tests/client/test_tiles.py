"""Tiles to a server whose answers are chosen here: what is sent, what is sent again, what ends a picture."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from attnserve.client import Client, ClientError, Explain, Retry
from attnserve.tiles import Grid, classify_tiles, open_picture
from attnserve.tiles.sending import Sender
from attnserve.v1 import attention_pb2 as pb

PICTURE = np.random.default_rng(5).integers(0, 256, (64, 48), np.uint8)
FULL, GONE, OURS, WRONG = 8, 14, 13, 3  # RESOURCE_EXHAUSTED, UNAVAILABLE, INTERNAL, INVALID_ARGUMENT


@pytest.fixture
def connected(target: str) -> Iterator[Client]:
    with Client(target, timeout_s=10, retry=None) as client:
        yield client


@pytest.fixture
def waits() -> list[float]:
    return []


@pytest.fixture
def tiled(connected: Client, service: Any, waits: list[float]) -> Any:
    """Classifies in tiles of 16 x 16; an answer's probability of `dog` is the tile's first pixel in 255ths."""

    def result(image: pb.Image, level: int) -> pb.ImageResult:
        first = image.raw.pixels[0] / 255
        cbam = pb.AttentionMap(site="a", kind="cbam", spatial=spatial(np.full((2, 2), first)))
        bam = pb.AttentionMap(site="b", kind="bam", spatial=spatial(np.zeros((2, 2))))
        bam.combined.CopyFrom(spatial(np.full((4, 4), first)))
        return pb.ImageResult(
            predictions=[
                pb.Prediction(index=1, label="dog", probability=first),
                pb.Prediction(index=0, label="cat", probability=1 - first),
            ],
            attention=[cbam, bam] if level else [],
            view=pb.CropBox(right=16, bottom=16),
        )

    service.result = result

    def call(picture: Any = PICTURE, **options: Any) -> Any:
        return classify_tiles(
            connected, picture, **{"model": "fake", "tile": 16, "sleep": waits.append, "retry": Retry(3)} | options
        )

    return call


def spatial(values: np.ndarray[Any, Any]) -> pb.SpatialMap:
    return pb.SpatialMap(height=len(values), width=len(values[0]), values=values.astype("<f4").tobytes())


def test_every_tile_is_sent_once_as_raw_pixels_in_order(tiled: Any, service: Any) -> None:
    result = tiled(stride=8, tile=24)
    sent = [request.images[0].raw for request in service.requests]
    assert len(sent) == result.grid.tiles == 6 * 4
    colour = np.repeat(PICTURE[..., np.newaxis], 3, axis=2)
    for tile, image in enumerate(sent):
        row, column = result.grid.place(tile)
        top, left = result.grid.tops[row], result.grid.lefts[column]
        assert image.pixels == colour[top : top + 24, left : left + 24].tobytes()
        assert (image.height, image.width, image.channels) == (24, 24, 3)
    assert {request.version for request in service.requests} == {"3"}  # the one that answered first, to the end


def test_probabilities_and_attention_lie_where_their_tiles_do(tiled: Any) -> None:
    result = tiled(attention=True)
    firsts = (PICTURE[::16, ::16] / 255).astype(np.float32)
    np.testing.assert_allclose(result.probabilities.values, [1 - firsts, firsts], atol=1e-6)
    np.testing.assert_allclose(result.mean, [1 - firsts.mean(), firsts.mean()], atol=1e-6)
    np.testing.assert_allclose(result.max, [1 - firsts.min(), firsts.max()], atol=1e-6)
    assert (result.probabilities.cell_height, result.probabilities.cell_width) == (16, 16)
    np.testing.assert_allclose(result.attention["a"].values, np.kron(firsts, np.ones((2, 2))), atol=1e-6)
    np.testing.assert_allclose(result.attention["b"].values, np.kron(firsts, np.ones((4, 4))), atol=1e-6)
    assert (result.attention["b"].cell_height, result.failures) == (4, ())
    for pool, pooled in (("mean", result.mean), ("max", result.max)):
        order = sorted((0, 1), key=lambda index: -pooled[index])
        found = [(each.index, each.label, each.probability) for each in result.predictions(pool)]
        assert found == [(index, ("cat", "dog")[index], pooled[index]) for index in order]


def test_a_full_server_is_given_time_and_gets_the_refused_tiles_again(
    tiled: Any, service: Any, refusal: Any, waits: list[float]
) -> None:
    seen: dict[bytes, int] = {}

    def sometimes(request: pb.ClassifyRequest) -> pb.ClassifyResponse:
        pixels = request.images[0].raw.pixels
        seen[pixels] = seen.get(pixels, 0) + 1
        if len(seen) % 5 == 0 and seen[pixels] == 1:
            raise refusal(FULL, "full", 0.25)
        return service.echo(request)

    service.answer = sometimes
    expected = PICTURE[::16, ::16] / 255
    result = tiled()
    np.testing.assert_allclose(result.probabilities.values[1], expected, atol=1e-6)
    assert result.failures == ()
    assert 1 <= len(waits) <= 2
    assert min(waits) >= 0.25  # as RetryInfo asks


def test_a_server_that_stays_full_ends_the_picture_with_its_error(
    tiled: Any, service: Any, refusal: Any, waits: list[float]
) -> None:
    def full(request: pb.ClassifyRequest) -> pb.ClassifyResponse:  # noqa: ARG001
        raise refusal(FULL, "full", 0.01)

    service.answer = full
    with pytest.raises(ClientError, match="RESOURCE_EXHAUSTED: full"):
        tiled()
    assert len(waits) == 2  # three attempts


def test_a_server_that_answers_little_at_a_time_is_asked_to_the_end(
    tiled: Any, service: Any, waits: list[float]
) -> None:
    def one_each(requests: Any) -> Any:
        yield pb.ClassifyStreamResponse(sequence=0, response=service.echo(next(requests)))
        for sequence, _ in enumerate(requests, start=1):
            yield pb.ClassifyStreamResponse(sequence=sequence, code=FULL, message="full", retry_after_ms=10)

    service.stream = one_each
    np.testing.assert_allclose(tiled().probabilities.values[1], PICTURE[::16, ::16] / 255, atol=1e-6)
    assert len(waits) == 11  # more often than `retry` allows in a row


def test_after_a_refusal_no_more_tiles_are_sent_before_the_wait(tiled: Any, service: Any, refusal: Any) -> None:
    def full(request: pb.ClassifyRequest) -> pb.ClassifyResponse:  # noqa: ARG001
        raise refusal(FULL, "full", 0.01)

    service.answer = full
    with pytest.raises(ClientError):
        tiled(stride=1, retry=None)
    assert len(service.requests) < 64 + 8  # those in flight, of 1617


def test_a_connection_lost_halfway_costs_no_tile(tiled: Any, service: Any, refusal: Any, waits: list[float]) -> None:
    calls = []

    def lost(requests: Any) -> Any:
        calls.append(1)
        for sequence, request in enumerate(requests):
            service.requests.append(request)
            if sequence == 4 and len(calls) < 3:
                raise refusal(GONE, "draining")
            yield pb.ClassifyStreamResponse(sequence=sequence, response=service.echo(request))

    service.stream = lost
    result = tiled()
    np.testing.assert_allclose(result.probabilities.values[1], PICTURE[::16, ::16] / 255, atol=1e-6)
    assert (len(calls), len(waits)) == (3, 2)


def test_a_server_that_is_gone_is_unavailable(tiled: Any, service: Any, refusal: Any, waits: list[float]) -> None:
    def gone(requests: Any) -> Any:
        next(requests)
        raise refusal(GONE, "draining")
        yield

    service.stream = gone
    with pytest.raises(ClientError, match="UNAVAILABLE: draining"):
        tiled()
    assert len(waits) == 2


def test_a_tile_at_which_the_server_fails_is_named_and_left_out(tiled: Any, service: Any, refusal: Any) -> None:
    broken = np.repeat(PICTURE[16:32, 32:48, np.newaxis], 3, axis=2).tobytes()

    def fails(request: pb.ClassifyRequest) -> pb.ClassifyResponse:
        if request.images[0].raw.pixels == broken:
            raise refusal(OURS, "a map of this picture is not finite")
        return service.echo(request)

    service.answer = fails
    result = tiled(attention=True)
    (failure,) = result.failures
    assert (failure.top, failure.left, failure.error.code) == (16, 32, "INTERNAL")
    assert np.argwhere(np.isnan(result.probabilities.values[1])).tolist() == [[1, 2]]
    assert np.isnan(result.attention["a"].values).sum() == 4
    firsts = np.delete(PICTURE[::16, ::16].ravel() / 255, 5)
    np.testing.assert_allclose(result.mean[1], firsts.mean(), atol=1e-6)


@pytest.mark.parametrize(("code", "name"), [(OURS, "INTERNAL"), (WRONG, "INVALID_ARGUMENT")])
def test_a_server_that_fails_at_every_tile_or_a_wrong_question_ends_the_picture(
    tiled: Any, service: Any, refusal: Any, code: int, name: str
) -> None:
    def fails(request: pb.ClassifyRequest) -> pb.ClassifyResponse:  # noqa: ARG001
        raise refusal(code, "no")

    service.answer = fails
    with pytest.raises(ClientError, match=f"{name}: no"):
        tiled()
    service.requests.clear()
    with pytest.raises(ClientError, match=f"{name}: no"):
        tiled(stride=1)
    most = 100 if name == "INTERNAL" else 1
    assert most <= len(service.requests) < most + 64 + 8  # of 1617; 64 are in flight


def explaining(service: Any) -> None:
    """Maps that are the class index and the tile's first pixel."""

    def echo(request: pb.ClassifyRequest) -> pb.ClassifyResponse:
        reply: pb.ClassifyResponse = type(service).echo(service, request)
        for image, result in zip(request.images, reply.results, strict=True):
            for index in request.explain.classes:
                values = np.full((2, 2), index + image.raw.pixels[0] / 255)
                result.explanations.add(layer="last", method="gradcam", class_index=index, map=spatial(values))
        return reply

    service.answer = echo


def test_a_named_class_is_explained_in_the_same_pass(tiled: Any, service: Any) -> None:
    explaining(service)
    result = tiled(explain=Explain(classes=[0]))
    assert len(service.requests) == result.grid.tiles
    (found,) = result.explanations
    assert (found.layer, found.method, found.class_index) == ("last", "gradcam", 0)
    np.testing.assert_allclose(found.map.values, np.kron(PICTURE[::16, ::16] / 255, np.ones((2, 2))), atol=1e-6)


def test_without_a_class_the_best_of_the_picture_is_explained_everywhere_in_a_second_pass(
    tiled: Any, service: Any
) -> None:
    explaining(service)
    result = tiled(explain=Explain())
    assert len(service.requests) == 2 * result.grid.tiles
    best = result.predictions()[0].index
    assert {tuple(request.explain.classes) for request in service.requests[result.grid.tiles :]} == {(best,)}
    (found,) = result.explanations
    assert found.class_index == best
    np.testing.assert_allclose(found.map.values[::2, ::2], best + PICTURE[::16, ::16] / 255, atol=1e-6)


@pytest.mark.parametrize(("side", "in_flight"), [(28, 64), (512, 42), (2000, 2), (4000, 1)])
def test_large_tiles_are_few_in_flight(side: int, in_flight: int) -> None:
    asked = []

    class Recorder:
        def classify_stream(self, images: Any, *, max_in_flight: int, **_: Any) -> Iterator[ClientError]:
            asked.append(max_in_flight)
            for _image in images:
                yield ClientError("INTERNAL", "not asked")

    with open_picture(np.zeros((side, side), np.uint8)) as source:
        sender = Sender(Recorder(), source, Grid.over(side, side, side, side), {})
        assert [tile for tile, _ in sender.outcomes(range(1))] == [0]
    assert asked == [in_flight]
