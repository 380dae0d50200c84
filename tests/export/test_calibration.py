"""The temperature: how it is fitted, on what, and what it changes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from attnserve.card import Card
from attnserve.datasets import Pictures
from attnserve.errors import ConfigError
from attnserve.export import calibration
from attnserve.export.architecture import Attention
from attnserve.export.augment import Augmentation
from attnserve.export.calibration import CalibrationSet, calibration_set, fit_temperature
from attnserve.export.checkpoint import Checkpoint
from attnserve.export.entry import Job, Target, write_entry
from attnserve.export.servable import Servable, logits_of
from attnserve.measure import expected_calibration_error


def drawn(temperature: float, count: int = 20_000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits whose right probabilities are softmax(logits / temperature), and labels drawn from those."""
    random = np.random.default_rng(seed)
    logits = (2 * random.normal(size=(count, 5)) * temperature).astype(np.float32)
    shares = calibration.probabilities(logits, temperature)
    return logits, (shares.cumsum(1) < random.random((count, 1))).sum(1).clip(max=4)


@settings(max_examples=10, deadline=None)
@given(temperature=st.floats(0.2, 5.0), seed=st.integers(0, 9))
def test_a_known_temperature_is_found_again(temperature: float, seed: int) -> None:
    assert fit_temperature(*drawn(temperature, seed=seed)) == pytest.approx(temperature, rel=0.05)


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_the_fitted_temperature_lowers_nll_and_ece_on_other_pictures(temperature: float) -> None:
    fitted = fit_temperature(*drawn(temperature))
    measured = calibration.quality(*drawn(temperature, 100_000, seed=1), fitted)  # enough to see 0.01
    assert measured["nll_after"] < measured["nll_before"]
    assert measured["ece_after"] < 0.01 < measured["ece_before"]


def test_the_fit_is_the_minimum_of_the_likelihood() -> None:
    logits, labels = drawn(1.7, 500)
    fitted = fit_temperature(logits, labels)
    loss = [
        float(torch.nn.functional.cross_entropy(torch.from_numpy(logits / t), torch.from_numpy(labels).long()))
        for t in (fitted * 0.98, fitted, fitted * 1.02)
    ]
    assert loss[1] == min(loss)
    assert calibration.quality(logits, labels, fitted)["nll_after"] == pytest.approx(loss[1], abs=1e-5)


def test_the_calibration_error_is_the_mean_gap_weighted_by_bin() -> None:
    """Confidence 0.9 twice, right once; 0.6 twice, right twice: (2 * 0.4 + 2 * 0.4) / 4."""
    shares = np.array([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [0.4, 0.6]])
    assert expected_calibration_error(shares, np.array([0, 1, 1, 1])) == pytest.approx(0.4)
    assert expected_calibration_error(np.array([[1.0, 0.0]]), np.array([0])) == 0


def test_a_bin_has_its_upper_end_and_not_its_lower() -> None:
    """With two bins 0.5 lies in the lower one, so a wrong and a right answer beside it do not cancel."""
    shares = np.array([[0.5, 0.5], [0.6, 0.4]])
    assert expected_calibration_error(shares, np.array([1, 0]), bins=2) == pytest.approx((0.5 + 0.4) / 2)
    assert expected_calibration_error(shares, np.array([1, 0]), bins=1) == pytest.approx(abs(1 - 1.1) / 2)


def test_pictures_that_are_all_answered_right_fit_no_temperature() -> None:
    with pytest.raises(ConfigError, match=r"100\.0% of the 3 pictures"):
        fit_temperature(np.eye(3, dtype=np.float32), np.arange(3))


def test_a_temperature_that_many_pictures_ask_for_is_not_doubted() -> None:
    logits, labels = drawn(2.0)
    record = {"temperature": 2.0, "fit": calibration.quality(logits, labels, 2.0)}
    assert calibration.doubts(record) == []
    assert calibration.doubts({**record, "test": calibration.quality(*drawn(2.0, seed=1), 2.0)}) == []


def test_too_few_pictures_and_worse_probabilities_are_said() -> None:
    logits, labels = drawn(1.0, 12)  # nothing to correct: whatever is fitted is chance
    fitted = fit_temperature(logits, labels)
    record = {"temperature": fitted, "fit": calibration.quality(logits, labels, fitted)}
    assert calibration.doubts(record)[0] == f"its 12 pictures are too few to tell {fitted} from 1"
    few, worse = calibration.doubts({**record, "test": calibration.quality(*drawn(1.0, seed=1), 3.0)})
    assert few.startswith("its 12 pictures are too few")
    assert worse.startswith("the probabilities are worse with it on the 20000 held-out pictures: NLL 0.")


def test_a_calibration_error_that_rises_while_the_likelihood_improves_is_said() -> None:
    better = {"images": 900, "nll_before": 0.6, "nll_after": 0.5, "ece_before": 0.0124, "ece_after": 0.0652}
    record = {"temperature": 0.8, "fit": better}
    said = "it lowers the NLL (0.6000 -> 0.5000) but raises the ECE (0.0124 -> 0.0652) on the 900 {} pictures"
    assert calibration.doubts(record) == [said.format("same")]
    assert calibration.doubts({**record, "test": better}) == [said.format("held-out")]


@pytest.fixture(scope="module")
def tiny(tiny_checkpoint: Callable[..., Checkpoint]) -> Checkpoint:
    return tiny_checkpoint(Attention("cbam", "stage", (4,), 4, 3))


def pictures(checkpoint: Checkpoint, count: int) -> Pictures:
    """Noise, labelled by chance as a network of temperature 0.1 would be right."""
    random = np.random.default_rng(count)
    images = random.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    shares = calibration.probabilities(logits_of(Servable(checkpoint.network(), checkpoint.preprocessing))(images), 0.1)
    return Pictures(images, (shares.cumsum(1) < random.random((count, 1))).sum(1).clip(max=2))


def test_the_file_divides_by_the_temperature_and_leaves_the_logits_alone(tmp_path: Path, tiny: Checkpoint) -> None:
    fitting, target = CalibrationSet("noise", calibration.FOREIGN, pictures(tiny, 120)), Target(tmp_path, "tiny")
    plain = write_entry(tiny, Target(tmp_path, "plain"), Job("x"))
    card = write_entry(tiny, target, Job("x", calibration=fitting, held_out=pictures(tiny, 60)))
    temperature = card.calibration["temperature"]
    assert 0.05 < temperature < 0.2
    images = pictures(tiny, 7).images
    (probabilities, logits), (plain_logits,) = (
        onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"]).run(
            names, {"images": images}
        )
        for folder, names in (
            (target.version_folder, ["probabilities", "logits"]),
            (tmp_path / "plain" / "1", ["logits"]),
        )
    )
    np.testing.assert_allclose(probabilities, calibration.probabilities(logits, temperature), atol=1e-6)
    np.testing.assert_array_equal(logits, plain_logits)
    assert max(card.parity.values()) <= 1e-5
    assert card.calibration["fit"]["nll_after"] < card.calibration["fit"]["nll_before"]
    assert card.calibration["test"]["images"] == 60
    assert card.calibration["doubts"] == []
    assert (card.calibration["dataset"], card.calibration["bins"]) == ("noise", 15)
    assert plain.calibration == {}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """`animals/<class>/<number>.png`, ten pictures of each of the checkpoint's two file-system-safe classes."""
    random = np.random.default_rng(0)
    for number in range(20):
        path = tmp_path / "animals" / ("hat" if number % 2 else 'quo"te') / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(path)
    return tmp_path / "animals"


def never() -> Augmentation:
    raise AssertionError("asked for the augmentation")


def test_a_folder_the_network_never_saw_is_used_whole_by_label(folder: Path, tiny: Checkpoint) -> None:
    chosen = calibration_set(str(folder), None, tiny, never)
    assert (chosen.dataset, chosen.part) == ("animals", calibration.FOREIGN)
    assert sorted(chosen.pictures.labels.tolist()) == [0] * 10 + [2] * 10
    (folder / "hat").rename(folder / "bat")
    with pytest.raises(ConfigError, match="classes that the network has not: bat"):
        calibration_set(str(folder), None, tiny, never)


def trained_on_animals(tiny: Checkpoint, validation: float) -> Checkpoint:
    split = {"kind": "random", "test": 0.2, "validation": validation, "seed": 0}
    record = {"dataset": "animals", "licence": "CC0", "split": split}
    return Checkpoint(tiny.architecture, tiny.preprocessing, tiny.labels, tiny.state_dict, record)


def test_of_the_training_data_the_validation_part_is_used(folder: Path, tiny: Checkpoint) -> None:
    chosen = calibration_set(str(folder), None, trained_on_animals(tiny, 0.25), never)
    assert (chosen.part, len(chosen.pictures)) == (calibration.HELD_OUT, 5)


def test_training_pictures_are_said_to_be_such_and_are_varied(folder: Path, tiny: Checkpoint) -> None:
    checkpoint = trained_on_animals(tiny, 0.0)
    plain = calibration_set(str(folder), None, checkpoint, Augmentation)
    varied = calibration_set(str(folder), None, checkpoint, lambda: Augmentation(erase=1.0))
    assert (varied.part, len(varied.pictures)) == (calibration.SEEN, 16)
    changed = (plain.pictures.images != varied.pictures.images).mean((1, 2, 3))
    assert ((changed > 0) & (changed < 0.5)).all()
    again = calibration_set(str(folder), None, checkpoint, lambda: Augmentation(erase=1.0))
    np.testing.assert_array_equal(again.pictures.images, varied.pictures.images)


def test_a_card_from_before_calibration_still_loads() -> None:
    card = Card.from_json('{"name": "a", "preprocessing": {"height": 8, "width": 8}, "labels": ["x"], "format": 1}')
    assert (card.precision, card.calibration, card.quantisation) == ("fp32", {}, {})
