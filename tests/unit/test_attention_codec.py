"""attnserve.v1: pictures in, predictions and maps out."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Sequence

import numpy as np
import pytest
from PIL import Image

from attnserve import drift
from attnserve.card import Card, Explanation, Preprocessing, Site
from attnserve.codec.attention import (
    ImageResults,
    outputs_for,
    reply_bytes,
    sites_of,
    sources_of,
    timings_message,
    wish_of,
)
from attnserve.codec.maps import MapStyle, Stack, style_of
from attnserve.contract import Timings
from attnserve.decode import Picture
from attnserve.errors import Internal, InvalidArgument
from attnserve.explain import Explained
from attnserve.preprocess import CropBox
from attnserve.v1 import attention_pb2 as pb

CBAM = Site("layer1.0.cbam", "cbam", 2, 2, 3, 8, "attention/layer1.0.cbam/channel", "attention/layer1.0.cbam/spatial")
ADD = Site("bam1", "bam", 2, 2, 3, 8, "attention/bam1/channel", "attention/bam1/spatial", "add")
MUL = Site("bam2", "bam", 2, 2, 3, 8, "attention/bam2/channel", "attention/bam2/spatial", "mul")
SPATIAL_ONLY = Site("sam", "cbam", 2, 2, 3, 8, None, "attention/sam/spatial")
CHANNEL_ONLY = Site("se", "cbam", 2, 2, 3, 8, "attention/se/channel", None)
SITES = [CBAM, ADD, MUL, SPATIAL_ONLY, CHANNEL_ONLY]
NONE, SUMMARY, FULL = pb.ATTENTION_LEVEL_NONE, pb.ATTENTION_LEVEL_SUMMARY, pb.ATTENTION_LEVEL_FULL


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


@pytest.mark.parametrize("level", [SUMMARY, FULL])
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
    assert "ATTENTION_LEVEL_SUMMARY" in str(caught.value)


def test_a_site_asked_for_again_and_again_is_not_sent_again_and_again():
    """Else a request of a few megabytes makes an answer of many gigabytes."""
    try:
        sites = sites_of(pb.AttentionOptions(level=FULL, sites=["bam1"] * 1000), SITES)
    except InvalidArgument:
        return
    assert sites == [ADD]


def test_only_what_the_answer_needs_is_computed():
    assert outputs_for([]) == ["probabilities"]
    assert outputs_for([CBAM]) == ["probabilities", CBAM.spatial, CBAM.channel]
    assert outputs_for([SPATIAL_ONLY, CHANNEL_ONLY]) == ["probabilities", SPATIAL_ONLY.spatial, CHANNEL_ONLY.channel]
    assert outputs_for([], wish()) == ["probabilities", "features"]
    assert outputs_for([SPATIAL_ONLY], wish(layers=["layer3"])) == ["probabilities", SPATIAL_ONLY.spatial]


RNG = np.random.default_rng(0)
RESULT = {"probabilities": np.array([[0.1, 0.7, 0.2], [0.4, 0.2, 0.4]], np.float32)}
for _site in SITES:
    if _site.channel:
        RESULT[_site.channel] = RNG.normal(size=(2, 2)).astype(np.float32)
    if _site.spatial:
        RESULT[_site.spatial] = RNG.normal(size=(2, 2, 3)).astype(np.float32)
PICTURE = Picture(RNG.integers(0, 256, (2, 3, 3), np.uint8), 20, 30, CropBox(1.5, 2.5, 28.5, 17.5))


def result_of(
    level: int, *sites: Site, row: int = 0, top_k: int = 0, explained: Sequence[Explained] = (), **maps
) -> pb.ImageResult:
    options = {"attention": pb.AttentionOptions(level=level), "maps": pb.MapOptions(**maps)}
    request = pb.ClassifyRequest(top_k=top_k, **options)
    computed = {name: RESULT[name] for name in outputs_for(sites)}
    results = ImageResults([PICTURE, PICTURE], computed, explained, ("cat", "dog", "eel"), request, sites)
    return results.answer(row)


def floats(message: pb.SpatialMap) -> np.ndarray:
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


def test_the_summary_sends_maps_and_no_channel_vectors():
    cbam, bam = result_of(SUMMARY, CBAM, ADD).attention
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
@pytest.mark.parametrize("level", [SUMMARY, FULL])
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


def test_a_summary_tells_of_each_branch_in_a_few_numbers():
    (cbam,) = result_of(SUMMARY, CBAM, row=1).attention
    values, channel = RESULT[CBAM.spatial][1], RESULT[CBAM.channel][1]
    assert (cbam.spatial.min, cbam.spatial.max) == (values.min(), values.max())
    assert cbam.spatial.mean == pytest.approx(values.mean(), rel=1e-6)
    strongest = [(each.index, each.value) for each in cbam.top_channels]
    assert strongest == sorted(enumerate(channel.tolist()), key=lambda pair: -pair[1])
    assert cbam.entropy == drift.row_entropies([CBAM], RESULT)[CBAM.name][1]
    assert not result_of(SUMMARY, CHANNEL_ONLY).attention[0].HasField("entropy")


def test_at_most_eight_channels_are_in_a_summary(monkeypatch):
    many = np.arange(20, dtype=np.float32)[np.newaxis].repeat(2, axis=0)
    monkeypatch.setitem(RESULT, CBAM.channel, many)
    (cbam,) = result_of(SUMMARY, CBAM).attention
    assert [each.index for each in cbam.top_channels] == [19, 18, 17, 16, 15, 14, 13, 12]


LAST_LAYER = Explanation("last", "explain/last.onnx", 8, 2, 3, 4, ("gradcam", "layercam"))
THIRD = Explanation("layer3", "explain/layer3.onnx", 4, 2, 3, 4, ("gradcam",))
EXPLAINED = Card("net", Preprocessing(16, 24), ("cat", "dog", "eel"), explain=(LAST_LAYER, THIRD))


def wish(*, max_rows: int = 99, images: int = 1, **options):
    request = pb.ClassifyRequest(images=[pb.Image()] * images, explain=pb.ExplainOptions(**options))
    return wish_of(request, EXPLAINED, max_rows)


def test_who_does_not_ask_gets_no_explanation():
    assert wish_of(pb.ClassifyRequest(), EXPLAINED, 99) is None


def test_an_empty_wish_is_grad_cam_of_the_predicted_class_by_the_last_layer():
    asked = wish()
    assert (asked.layers, asked.method, asked.classes, asked.top_k) == ((LAST_LAYER,), "gradcam", (), 1)


def test_where_the_last_layer_cannot_explain_the_first_that_can_does():
    request = pb.ClassifyRequest(images=[pb.Image()], explain=pb.ExplainOptions())
    assert wish_of(request, dataclasses.replace(EXPLAINED, explain=(THIRD,)), 99).layers == (THIRD,)
    with pytest.raises(InvalidArgument, match="unknown 'last'; the model has none"):
        wish_of(request, dataclasses.replace(EXPLAINED, explain=()), 99)


def test_layers_and_classes_named_again_count_once():
    asked = wish(layers=["layer3", "last", "layer3"], classes=[2, 0, 2])
    assert (asked.layers, asked.classes, asked.rows_per_image) == ((THIRD, LAST_LAYER), (2, 0), 2)


def test_more_classes_than_there_are_means_all():
    assert wish(top_k=4_000_000_000).rows_per_image == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": ["layer9"]}, "explain.layers: unknown 'layer9'; the model has last, layer3"),
        ({"method": "magic"}, "explain.method: 'last' has no 'magic'; choose gradcam, layercam"),
        ({"method": "layercam", "layers": ["layer3"]}, "explain.method: 'layer3' has no 'layercam'; choose gradcam"),
        ({"classes": [0, 3]}, "explain.classes: no 3; the model has 0 to 2"),
        ({"classes": [0], "top_k": 1}, "explain: give classes or top_k, not both"),
        ({"top_k": 3, "images": 4, "max_rows": 11}, "explain: at most 11 images times classes in one request, got 12"),
    ],
)
def test_a_wish_that_cannot_be_fulfilled_is_refused_with_the_choices(options, message):
    with pytest.raises(InvalidArgument) as caught:
        wish(**options)
    assert str(caught.value) == message


@pytest.mark.parametrize(("field", "most"), [("layers", 1024), ("classes", 99)])
def test_names_by_the_million_are_counted_and_not_looked_at(field, most):
    named = ["last"] * 2000 if field == "layers" else [0] * 2000
    with pytest.raises(InvalidArgument) as caught:
        wish(**{field: named})
    assert str(caught.value) == f"explain.{field}: at most {most}, got 2000"


def test_sites_by_the_million_are_counted_and_not_looked_at():
    with pytest.raises(InvalidArgument, match=r"attention\.sites: at most 1024, got 2000"):
        sites_of(pb.AttentionOptions(level=FULL, sites=["bam1"] * 2000), SITES)


@pytest.mark.parametrize(
    ("form", "level", "expected"),
    [
        (pb.MAP_FORM_RAW, SUMMARY, 4 * 6 * 3 + 4 * 6 * 4),  # one map of CBAM, two of BAM; two classes by two layers
        (pb.MAP_FORM_RAW, FULL, 4 * 6 * 3 + 4 * 6 * 4 + 4 * (CBAM.channels + ADD.channels)),
        (pb.MAP_FORM_NORMALISED, SUMMARY, 4 * 16 * 24 * (3 + 4)),
        (pb.MAP_FORM_OVERLAY, SUMMARY, 3 * 16 * 24 * (3 + 4)),
    ],
)
def test_the_bytes_of_a_reply_are_known_before_anything_is_run(form, level, expected):
    options = {"attention": pb.AttentionOptions(level=level), "maps": pb.MapOptions(form=form)}
    request = pb.ClassifyRequest(images=[pb.Image()] * 5, **options)
    asked = wish(layers=["last", "layer3"], top_k=2)
    assert reply_bytes(request, EXPLAINED, [CBAM, ADD], asked) == 5 * expected
    assert reply_bytes(request, EXPLAINED, [], None) == 0
    without_sites, without_wish = (
        reply_bytes(request, EXPLAINED, [], asked),
        reply_bytes(request, EXPLAINED, [CBAM, ADD], None),
    )
    assert without_sites + without_wish == 5 * expected


def test_explanations_come_by_layer_and_then_by_class():
    maps = RNG.random((2, 2, 2, 3), np.float32)  # two pictures, two classes each
    classes = np.array([[1, 2], [0, 2]])
    layers = [Explained(LAST_LAYER, "gradcam", classes, maps), Explained(THIRD, "gradcam", classes, maps + 1)]
    found = result_of(NONE, row=1, explained=layers).explanations
    assert [(each.layer, each.method, each.class_index, each.label) for each in found] == [
        ("last", "gradcam", 0, "cat"),
        ("last", "gradcam", 2, "eel"),
        ("layer3", "gradcam", 0, "cat"),
        ("layer3", "gradcam", 2, "eel"),
    ]
    np.testing.assert_array_equal(floats(found[1].map), maps[1, 1])
    np.testing.assert_array_equal(floats(found[2].map), maps[1, 0] + 1)
    assert not any(each.map.empty for each in found)


def test_a_map_of_zeros_is_empty_in_every_form_and_never_nan():
    nothing = [Explained(LAST_LAYER, "gradcam", np.zeros((2, 1), np.int64), np.zeros((2, 1, 2, 3), np.float32))]
    for form in (pb.MAP_FORM_RAW, pb.MAP_FORM_NORMALISED):
        (found,) = result_of(NONE, explained=nothing, form=form).explanations
        assert found.map.empty
        assert floats(found.map).tolist() == [[0, 0, 0], [0, 0, 0]]
    (found,) = result_of(NONE, explained=nothing, form=pb.MAP_FORM_HEATMAP, colormap="grey").explanations
    assert (pixels(found.map) == 0).all()


def pixels(message: pb.SpatialMap) -> np.ndarray:
    assert not message.values
    picture = np.asarray(Image.open(io.BytesIO(message.png)))
    assert picture.shape == (message.height, message.width, 3)
    return picture


MAP = np.array([[0.0, 1.0], [3.0, 7.0]], np.float32)


def test_the_forms_follow_each_other_from_numbers_to_pixels():
    """At twice the map's size and by hand: bilinear between pixel centres, 0..1, then grey, then half of each."""
    view = RNG.integers(0, 256, (4, 4, 3), np.uint8)
    near = np.array([[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]])  # weights of the two samples at each pixel
    expected = near @ (MAP / 7) @ near.T
    stack = Stack(MAP[np.newaxis])
    made = {form: stack.message(0, MapStyle(form, "grey", 0.5), view) for form in pb.MapForm.values()}
    np.testing.assert_array_equal(floats(made[pb.MAP_FORM_RAW]), MAP)
    np.testing.assert_allclose(floats(made[pb.MAP_FORM_NORMALISED]), expected, atol=1e-6)
    grey = np.repeat(np.rint(255 * expected)[..., np.newaxis], 3, axis=2)
    np.testing.assert_array_equal(pixels(made[pb.MAP_FORM_HEATMAP]), grey)
    np.testing.assert_array_equal(pixels(made[pb.MAP_FORM_OVERLAY]), np.rint((grey + view) / 2))
    for message in made.values():
        assert (message.min, message.max, message.mean, message.empty) == (0, 7, 2.75, False)


def test_a_map_that_is_not_finite_is_no_picture():
    broken = Stack(np.array([[[np.nan, 1.0]]], np.float32))
    with pytest.raises(Internal, match="not finite"):
        broken.message(0, MapStyle(pb.MAP_FORM_OVERLAY, "jet", 0.5), np.zeros((2, 2, 3), np.uint8))


def test_the_style_has_defaults():
    assert style_of(pb.MapOptions()) == (pb.MAP_FORM_RAW, "jet", 0.5)
    assert not style_of(pb.MapOptions()).draws
    assert style_of(pb.MapOptions(form=pb.MAP_FORM_NORMALISED)).draws


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"form": 9}, "maps.form: unknown 9; choose MAP_FORM_RAW, MAP_FORM_NORMALISED"),
        ({"colormap": "rainbow"}, "maps.colormap: unknown 'rainbow'; choose jet, viridis, grey"),
        ({"alpha": 1.5}, "maps.alpha: must be within 0..1, got 1.5"),
        ({"alpha": float("nan")}, "maps.alpha: must be within 0..1, got nan"),
    ],
)
def test_a_style_that_does_not_exist_is_refused_with_the_choices(options, message):
    with pytest.raises(InvalidArgument) as caught:
        style_of(pb.MapOptions(**options))
    assert str(caught.value).startswith(message)


def test_timings_are_milliseconds():
    spent = Timings(decode_s=0.5, queue_s=0.25, infer_s=0.125, explain_s=0.0625, postprocess_s=9)
    message = timings_message(spent)
    assert (message.decode_ms, message.queue_ms, message.infer_ms, message.explain_ms) == (500, 250, 125, 62.5)
