"""What the server answers is what the network computed: accuracy, batches, attention maps."""

from __future__ import annotations

import json
from itertools import chain
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

pytestmark = [pytest.mark.both_transports, pytest.mark.fronts]

ROOT = Path(__file__).parents[2]
MODELS = ["fashion-mnist-cbam", "fashion-mnist-bam"]


def card(model: str) -> dict:
    return json.loads((ROOT / "model_repo" / model / "1" / "model.json").read_text())


def session(model: str) -> ort.InferenceSession:
    return ort.InferenceSession(ROOT / "model_repo" / model / "1" / "model.onnx", providers=["CPUExecutionProvider"])


def probabilities(answers) -> np.ndarray:
    """(N, K) in the order of the classes."""
    return np.array([[p.probability for p in sorted(a.predictions, key=lambda p: p.index)] for a in answers])


@pytest.mark.parametrize("model", MODELS)
def test_served_accuracy_on_1000_real_pictures_is_what_the_card_says(client, test_set, model):
    images, labels = test_set
    right = 0
    for start in range(0, 1000, 50):
        answers = client.classify(list(images[start : start + 50]), model=model, top_k=1)
        right += sum(
            a.predictions[0].index == label for a, label in zip(answers, labels[start : start + 50], strict=True)
        )
    measured = [entry["accuracy"] for entry in card(model)["evaluation"] if entry["images"] == 1000]
    assert len(measured) == 1
    assert right / 1000 == measured[0]


@pytest.mark.parametrize("model", MODELS)
def test_one_picture_alone_equals_the_same_picture_in_any_batch(client, test_set, model):
    images = list(test_set[0][:33])
    together = probabilities(client.classify(images, model=model, top_k=0))
    for size in (1, 2, 5, 16):
        apart = [client.classify(images[i : i + size], model=model, top_k=0) for i in range(0, 33, size)]
        np.testing.assert_allclose(probabilities(chain.from_iterable(apart)), together, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("model", MODELS)
def test_maps_are_the_graph_s_own_outputs(client, test_set, pictures, model):
    sites = card(model)["sites"]
    assert sites
    names = [site[branch] for site in sites for branch in ("channel", "spatial")]
    truth = dict(zip(names, session(model).run(names, {"images": pictures[:3]}), strict=True))
    answers = client.classify(list(test_set[0][:3]), model=model, attention="full")
    for row, answer in enumerate(answers):
        assert [found.site for found in answer.attention] == [site["name"] for site in sites]
        for found, site in zip(answer.attention, sites, strict=True):
            assert found.spatial.values.dtype == np.float32
            assert found.spatial.values.shape == (site["height"], site["width"])
            np.testing.assert_allclose(found.spatial.values, truth[site["spatial"]][row], rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(found.channel, truth[site["channel"]][row], rtol=1e-5, atol=1e-6)


def test_bam_s_combined_map_is_the_mean_of_the_attention_that_the_network_applies(client, test_set):
    answer = client.classify(list(test_set[0][:1]), model="fashion-mnist-bam", attention="full")[0]
    for found in answer.attention:
        attention = 1 / (1 + np.exp(-(found.channel[:, None, None] + found.spatial.values)))  # (C, H, W), combine = add
        np.testing.assert_allclose(found.combined.values, attention.mean(axis=0), rtol=1e-5)


def test_maps_come_only_when_asked_for_and_only_for_the_sites_named(client, test_set):
    image = [test_set[0][0]]
    assert client.classify(image, model="fashion-mnist-cbam")[0].attention == ()
    name = card("fashion-mnist-cbam")["sites"][2]["name"]
    found = client.classify(image, model="fashion-mnist-cbam", attention="summary", sites=[name])[0].attention
    assert [entry.site for entry in found] == [name]
    assert found[0].channel is None


def test_the_view_says_which_part_of_the_picture_the_model_saw(client):
    wide = np.zeros((40, 90, 3), np.uint8)
    answer = client.classify([wide], model="fashion-mnist-cbam")[0]
    assert (answer.image_height, answer.image_width) == (40, 90)
    assert (answer.view.left, answer.view.top, answer.view.right, answer.view.bottom) == (0, 0, 90, 40)
