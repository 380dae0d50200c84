"""The card: what export writes, serving reads, and what it refuses."""

from __future__ import annotations

import dataclasses
import hashlib
import json

import pytest

from attnserve.card import Card, Preprocessing, Site, sha256_of
from attnserve.errors import ConfigError

CARD = Card(
    name="net",
    preprocessing=Preprocessing(
        224, 192, resize=256, interpolation="bicubic", mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6)
    ),
    labels=("cat", 'quo"te', "häß/lich"),
    sites=(
        Site("layer1.0.cbam", "cbam", 8, 7, 6, 32, "channel", None),
        Site("bam1", "bam", 8, 7, 6, 32, "c", "s", "mul"),
    ),
    architecture={"depth": 18},
    evaluation=({"dataset": "noise", "accuracy": 0.5},),
    files={"model.onnx": "0" * 64},
)


SITE = dataclasses.asdict(CARD.sites[1])


def changed(**fields) -> str:
    """The card's JSON with fields replaced; None takes one out."""
    raw = json.loads(CARD.to_json())
    raw.update(fields)
    return json.dumps({name: value for name, value in raw.items() if value is not None})


@pytest.mark.parametrize("methods", ["gradcam", [], [1]])
def test_a_graph_s_methods_are_a_list_of_names(methods):
    graph = {"layer": "last", "file": "explain/last.onnx", "stride": 8, "height": 2, "width": 3, "channels": 4}
    with pytest.raises(ConfigError, match="explain"):
        Card.from_json(changed(explain=[{**graph, "methods": methods}]))


def test_a_card_survives_the_way_through_json():
    again = Card.from_json(CARD.to_json())
    assert again == CARD
    assert again.to_json() == CARD.to_json()
    assert again.digest == CARD.digest


def test_labels_stay_readable_in_the_file():
    assert "häß/lich" in CARD.to_json()
    assert CARD.to_json().endswith("}\n")


def test_the_digest_is_of_the_text_and_changes_with_it():
    assert CARD.digest == hashlib.sha256(CARD.to_json().encode("utf-8")).hexdigest()
    other = Card("net", CARD.preprocessing, ("cat", "dog"))
    assert other.digest != CARD.digest


@pytest.mark.parametrize("label", ["a\nb", "a\rb", "\x1b[2J", "a\x00", "a\x85b", "\x7f"])
def test_a_label_with_a_control_character_is_refused_and_shown_escaped(label):
    with pytest.raises(ConfigError) as caught:
        Card.from_json(changed(labels=["cat", label]))
    assert str(caught.value) == f"labels: {label!r} holds a control character"
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "field", ["sites", "evaluation", "faithfulness", "architecture", "parity", "precision", "opset", "files"]
)
def test_a_card_without_an_optional_field_has_its_default(field):
    plain = Card("net", CARD.preprocessing, CARD.labels)
    assert getattr(Card.from_json(changed(**{field: None})), field) == getattr(plain, field)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no JSON",
        "[]",
        "null",
        "5",
        "{}",
        changed(format=None),
        changed(format=2),
        changed(format="1"),
        changed(name=None),
        changed(labels=None),
        changed(preprocessing=None),
        changed(preprocessing={"height": 224}),
        changed(preprocessing={"height": 224, "width": 224, "depth": 3}),
        changed(preprocessing=[224, 224]),
        changed(preprocessing={"height": "224", "width": 224}),
        changed(sites=[{"name": "bam1"}]),
        changed(sites=["bam1"]),
        changed(sites=5),
        *(
            changed(sites=[SITE | wrong])
            for wrong in (
                {"kind": "se"},
                {"combine": "max"},
                {"stride": 0},
                {"stride": 1 << 32},
                {"name": None},
                {"name": ["bam1"]},
                {"channels": "16"},
                {"height": 1.5},
                {"spatial": 3},
            )
        ),
        changed(invented="later"),
        changed(precision=8),
        changed(labels=[["c"], ["d"]]),
        changed(name="half a pair: \ud800"),
    ],
)
def test_what_is_no_card_is_refused(text):
    with pytest.raises(ConfigError):
        Card.from_json(text)


def test_a_card_of_another_format_says_so():
    with pytest.raises(ConfigError, match="card: format 2 is not 1"):
        Card.from_json(changed(format=2))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"height": 0}, "height and width must be positive, got 0 x 224"),
        ({"width": -1}, "height and width must be positive, got 224 x -1"),
        ({"resize": 223}, "resize 223 is smaller than the crop 224 x 224"),
        ({"resize": 0}, "resize 0 is smaller"),
        ({"resize": 4097}, "resize 4097 is more than 4096"),
        ({"resize": 240.5}, "must be whole"),
        ({"height": True}, "must be whole"),
        ({"height": 1 << 21, "resize": 1 << 21}, "must be whole and at most 1048576"),
        ({"interpolation": "lanczos"}, "unknown interpolation 'lanczos'"),
    ],
)
def test_preprocessing_that_cannot_be_done_is_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        Preprocessing(**{"height": 224, "width": 224, **fields})


def test_mean_and_std_are_tuples_wherever_they_come_from():
    preprocessing = Preprocessing(2, 3, mean=[0.1, 0.2, 0.3], std=[1, 1, 1])
    assert (preprocessing.mean, preprocessing.std) == ((0.1, 0.2, 0.3), (1, 1, 1))
    assert Card.from_json(CARD.to_json()).preprocessing.mean == (0.1, 0.2, 0.3)


def test_sha256_is_of_the_bytes(tmp_path):
    (tmp_path / "file").write_bytes(b"abc")
    assert sha256_of(tmp_path / "file") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
