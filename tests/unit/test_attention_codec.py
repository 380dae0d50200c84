"""attnserve.v1: pictures in, predictions and maps out."""

from __future__ import annotations

import numpy as np
import pytest

from attnserve.card import Site
from attnserve.codec.attention import image_result, outputs_for, sites_of, sources_of, timings_message
from attnserve.contract import Timings
from attnserve.decode import Picture
from attnserve.errors import InvalidArgument
from attnserve.preprocess import CropBox
from attnserve.v1 import attention_pb2 as pb

CBAM = Site("layer1.0.cbam", "cbam", 2, 2, 3, 8, "attention/layer1.0.cbam/channel", "attention/layer1.0.cbam/spatial")
ADD = Site("bam1", "bam", 2, 2, 3, 8, "attention/bam1/channel", "attention/bam1/spatial", "add")
MUL = Site("bam2", "bam", 2, 2, 3, 8, "attention/bam2/channel", "attention/bam2/spatial", "mul")
SPATIAL_ONLY = Site("sam", "cbam", 2, 2, 3, 8, None, "attention/sam/spatial")
CHANNEL_ONLY = Site("se", "cbam", 2, 2, 3, 8, "attention/se/channel", None)
SITES = [CBAM, ADD, MUL, SPATIAL_ONLY, CHANNEL_ONLY]
NONE, SPATIAL, FULL = pb.ATTENTION_LEVEL_NONE, pb.ATTENTION_LEVEL_SPATIAL, pb.ATTENTION_LEVEL_FULL


def raw(**fields) -> pb.ClassifyRequest:
    return pb.ClassifyRequest(images=[pb.Image(raw=pb.RawImage(**fields))])


def test_files_and_raw_pixels_are_taken_in_order():
    pixels = pb.RawImage(pixels=bytes(range(18)), height=2, width=3, channels=3)
    request = pb.ClassifyRequest(images=[pb.Image(encoded=b"file"), pb.Image(raw=pixels), pb.Image(encoded=b"")])
    file, array, empty = sources_of(request, max_images=3)
    assert (file, empty) == (b"file", b"")
    assert (array.shape, array.dtype) == ((2, 3, 3), np.uint8)
    assert array.tolist() == np.arange(18).reshape(2, 3, 3).tolist()


def test_three_channels_are_the_default_and_one_is_grey():
    assert sources_of(raw(pixels=bytes(18), height=2, width=3), 1)[0].shape == (2, 3, 3)
    assert sources_of(raw(pixels=bytes(6), height=2, width=3, channels=1), 1)[0].shape == (2, 3, 1)


@pytest.mark.parametrize("count", [0, 4])
def test_the_number_of_pictures_is_bounded(count):
    with pytest.raises(InvalidArgument, match=f"images: needs 1 to 3, got {count}"):
        sources_of(pb.ClassifyRequest(images=[pb.Image(encoded=b"x")] * count), max_images=3)


def test_a_picture_without_a_source_is_refused_by_its_number():
    with pytest.raises(InvalidArgument, match=r"images\[1\]: has neither encoded nor raw"):
        sources_of(pb.ClassifyRequest(images=[pb.Image(encoded=b"x"), pb.Image()]), max_images=3)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"pixels": bytes(17), "height": 2, "width": 3}, "2 x 3 x 3 needs 18 bytes, got 17"),
        ({"pixels": bytes(19), "height": 2, "width": 3}, "2 x 3 x 3 needs 18 bytes, got 19"),
        ({"pixels": b"", "height": 2, "width": 3}, "2 x 3 x 3 needs 18 bytes, got 0"),
        ({"pixels": bytes(18), "height": 2, "width": 3, "channels": 1}, "2 x 3 x 1 needs 6 bytes, got 18"),
        ({"pixels": bytes(24), "height": 2, "width": 3, "channels": 4}, "channels must be 1 or 3, got 4"),
        ({"pixels": bytes(12), "height": 2, "width": 3, "channels": 2}, "channels must be 1 or 3, got 2"),
        ({"pixels": b"", "height": 0, "width": 3}, "height and width must be positive"),
        ({"pixels": b"", "height": 2}, "height and width must be positive"),
        (
            {"pixels": b"", "height": 1 << 31, "width": 1 << 31},
            "2147483648 x 2147483648 x 3 needs 13835058055282163712 bytes, got 0",
        ),
        (
            {"pixels": b"", "height": (1 << 32) - 1, "width": (1 << 32) - 1},
            "4294967295 x 4294967295 x 3 needs 55340232195358851075 bytes, got 0",
        ),
    ],
)
def test_raw_pixels_that_do_not_fit_are_refused(fields, message):
    with pytest.raises(InvalidArgument) as caught:
        sources_of(raw(**fields), max_images=1)
    assert str(caught.value) == f"images[0].raw: {message}"


def test_without_a_level_no_site_is_shown():
    assert sites_of(pb.AttentionOptions(), SITES) == []
    assert sites_of(pb.AttentionOptions(level=NONE, sites=["bam1"]), SITES) == []


@pytest.mark.parametrize("level", [SPATIAL, FULL])
def test_without_names_every_site_is_shown_and_with_names_these_in_their_order(level):
    assert sites_of(pb.AttentionOptions(level=level), SITES) == SITES
    assert sites_of(pb.AttentionOptions(level=level, sites=["bam2", "layer1.0.cbam"]), SITES) == [MUL, CBAM]


def test_an_unknown_site_is_refused_with_the_choices():
    with pytest.raises(InvalidArgument) as caught:
        sites_of(pb.AttentionOptions(level=FULL, sites=["bam1", "layer9"]), SITES)
    assert str(caught.value) == ("attention.sites: unknown 'layer9'; the model has layer1.0.cbam, bam1, bam2, sam, se")


def test_a_site_of_a_model_without_any_is_refused():
    with pytest.raises(InvalidArgument, match="the model has none"):
        sites_of(pb.AttentionOptions(level=FULL, sites=["bam1"]), [])
    assert sites_of(pb.AttentionOptions(level=FULL), []) == []


@pytest.mark.parametrize("level", [3, 99, -1])
def test_an_unknown_level_is_refused_with_the_choices(level):
    with pytest.raises(InvalidArgument, match=rf"attention\.level: unknown {level}") as caught:
        sites_of(pb.AttentionOptions(level=level), SITES)
    assert "ATTENTION_LEVEL_SPATIAL" in str(caught.value)


def test_a_site_asked_for_again_and_again_is_not_sent_again_and_again():
    """Else a request of a few megabytes makes an answer of many gigabytes."""
    try:
        sites = sites_of(pb.AttentionOptions(level=FULL, sites=["bam1"] * 1000), SITES)
    except InvalidArgument:
        return
    assert sites == [ADD]


def test_only_what_the_maps_need_is_computed():
    assert outputs_for([], NONE) == ["probabilities"]
    assert outputs_for([CBAM], SPATIAL) == ["probabilities", CBAM.spatial]
    assert outputs_for([CBAM], FULL) == ["probabilities", CBAM.spatial, CBAM.channel]
    assert outputs_for([ADD], SPATIAL) == ["probabilities", ADD.spatial, ADD.channel]  # for the combined map
    assert outputs_for([SPATIAL_ONLY, CHANNEL_ONLY], SPATIAL) == ["probabilities", SPATIAL_ONLY.spatial]
    assert outputs_for([SPATIAL_ONLY, CHANNEL_ONLY], FULL) == [
        "probabilities",
        SPATIAL_ONLY.spatial,
        CHANNEL_ONLY.channel,
    ]


RNG = np.random.default_rng(0)
RESULT = {"probabilities": np.array([[0.1, 0.7, 0.2], [0.4, 0.2, 0.4]], np.float32)}
for _site in SITES:
    if _site.channel:
        RESULT[_site.channel] = RNG.normal(size=(2, 2)).astype(np.float32)
    if _site.spatial:
        RESULT[_site.spatial] = RNG.normal(size=(2, 2, 3)).astype(np.float32)
PICTURE = Picture(np.zeros((2, 3, 3), np.uint8), 20, 30, CropBox(1.5, 2.5, 28.5, 17.5))


def result_of(level: int, *sites: Site, row: int = 0, top_k: int = 0) -> pb.ImageResult:
    request = pb.ClassifyRequest(top_k=top_k, attention=pb.AttentionOptions(level=level))
    computed = {name: RESULT[name] for name in outputs_for(sites, level)}
    return image_result(row, PICTURE, computed, ("cat", "dog", "eel"), request, sites)


def floats(message: pb.FloatMap) -> np.ndarray:
    return np.frombuffer(message.values, "<f4").reshape(message.height, message.width)


@pytest.mark.parametrize(("top_k", "indices"), [(0, [1, 2, 0]), (1, [1]), (2, [1, 2]), (3, [1, 2, 0]), (99, [1, 2, 0])])
def test_predictions_are_the_best_with_their_labels(top_k, indices):
    predictions = result_of(NONE, top_k=top_k).predictions
    assert [prediction.index for prediction in predictions] == indices
    assert [prediction.label for prediction in predictions] == [("cat", "dog", "eel")[index] for index in indices]
    assert predictions[0].probability == np.float32(0.7)


def test_each_picture_has_its_own_row():
    second = result_of(FULL, CBAM, row=1)
    assert [prediction.index for prediction in second.predictions] == [0, 2, 1]
    np.testing.assert_array_equal(floats(second.attention[0].spatial), RESULT[CBAM.spatial][1])


def test_the_view_is_told_in_pixels_of_the_original():
    result = result_of(NONE)
    assert (result.image_height, result.image_width) == (20, 30)
    assert (result.view.left, result.view.top, result.view.right, result.view.bottom) == (1.5, 2.5, 28.5, 17.5)


def test_the_spatial_level_sends_maps_and_no_channel_vectors():
    cbam, bam = result_of(SPATIAL, CBAM, ADD).attention
    assert (cbam.site, cbam.kind, bam.site, bam.kind) == ("layer1.0.cbam", "cbam", "bam1", "bam")
    np.testing.assert_array_equal(floats(cbam.spatial), RESULT[CBAM.spatial][0])
    assert not cbam.channel
    assert not bam.channel
    assert not cbam.HasField("combined")
    assert bam.HasField("combined")


def test_the_full_level_sends_the_channel_vectors_too():
    cbam, bam = result_of(FULL, CBAM, ADD).attention
    assert list(cbam.channel) == RESULT[CBAM.channel][0].tolist()
    assert list(bam.channel) == RESULT[ADD.channel][0].tolist()


def test_a_missing_branch_is_left_out():
    spatial_only, channel_only = result_of(FULL, SPATIAL_ONLY, CHANNEL_ONLY).attention
    assert spatial_only.HasField("spatial")
    assert not spatial_only.channel
    assert not channel_only.HasField("spatial")
    assert list(channel_only.channel) == RESULT[CHANNEL_ONLY.channel][0].tolist()


@pytest.mark.parametrize("site", [ADD, MUL])
@pytest.mark.parametrize("level", [SPATIAL, FULL])
def test_the_combined_map_of_a_bam_follows_the_plain_formula(site, level):
    (answer,) = result_of(level, site).attention
    channel, spatial = RESULT[site.channel][0], RESULT[site.spatial][0]
    expected = np.zeros((2, 3))
    for y in range(2):
        for x in range(3):
            for c in range(2):
                logit = channel[c] + spatial[y, x] if site is ADD else channel[c] * spatial[y, x]
                expected[y, x] += 1 / (1 + np.exp(-float(logit))) / 2
    np.testing.assert_allclose(floats(answer.combined), expected, rtol=1e-5)


def test_timings_are_milliseconds():
    message = timings_message(Timings(decode_s=0.5, queue_s=0.25, infer_s=0.125, postprocess_s=9))
    assert (message.decode_ms, message.queue_ms, message.infer_ms) == (500, 250, 125)
