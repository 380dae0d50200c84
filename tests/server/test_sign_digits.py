"""The sign-digit models on photos of people they have never seen; the photos are not part of the repository."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest

from attnserve.card import Preprocessing
from attnserve.datasets import SplitRule, picture
from attnserve.faithfulness.foreground import foreground

ROOT = Path(__file__).parents[2]
PHOTOS = ROOT.parent / "shared/data/sign_language_digits.tar"


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> list[Path]:
    if not PHOTOS.is_file():
        pytest.skip(f"the sign-digit photos are not at ../shared/data/{PHOTOS.name}")
    folder = tmp_path_factory.mktemp("photos")
    with tarfile.open(PHOTOS) as archive:
        archive.extractall(folder, filter="data")
    return sorted(folder.rglob("*.JPG"))


@pytest.mark.parametrize("model", ["sign-digits-cbam", "sign-digits-bam"])
def test_served_accuracy_on_people_never_seen_is_what_the_card_says(client, photos, model):
    card = json.loads((ROOT / "model_repo" / model / "1" / "model.json").read_text())
    rule = SplitRule(**card["training"]["split"])
    held_out = [photos[index] for index in rule.parts([photo.name for photo in photos])["test"]]
    right = 0
    for photo, answer in zip(held_out, client.classify_stream(held_out, model=model, timeout_s=120), strict=True):
        right += answer.predictions[0].label == photo.parent.name
    (entry,) = card["evaluation"]
    assert len(held_out) == entry["images"]
    assert right / len(held_out) == entry["accuracy"]


def test_the_hand_is_found_whosoever_it_is(photos):
    preprocessing = Preprocessing(96, 96)
    areas = []
    for path in photos[::9]:
        hand = foreground(picture(path, preprocessing))
        areas.append(hand.mean())
        assert hand[48:, 24:72].mean() > hand[:8].mean()  # it comes from below
    assert min(areas) > 0.1
    assert max(areas) < 0.5
