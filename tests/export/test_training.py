"""The training loop: what it learns, how it resumes, and what it refuses."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from attnserve.datasets import Dataset, Pictures
from attnserve.errors import ConfigError
from attnserve.export.architecture import Attention
from attnserve.export.augment import Augmentation
from attnserve.export.checkpoint import Checkpoint
from attnserve.export.training import Recipe, Trainer, build_optimizer, moving_average
from attnserve.measure import accuracy

RECIPE = Recipe(
    epochs=4,
    batch_size=8,
    learning_rate=0.05,
    warmup_epochs=1,
    ema_decay=0.8,
    augmentation=Augmentation(flip=True, shift=0.1, erase=0.5),
)


def bright_and_dark(count: int, seed: int) -> Pictures:
    """Pictures of noise, of which class 1 is the brighter and class 2 the brightest."""
    random = np.random.default_rng(seed)
    labels = np.arange(count, dtype=np.int64) % 3
    images = random.integers(0, 60, (count, 32, 32, 3)) + 80 * labels[:, None, None, None]
    return Pictures(images.astype(np.uint8), labels)


LABELS = ("dark", "grey", "bright")
DATASET = Dataset("bright", "CC0", LABELS, bright_and_dark(50, 0), bright_and_dark(9, 1), bright_and_dark(30, 2), {})


def blank(make: Callable[..., Checkpoint]) -> Checkpoint:
    return dataclasses.replace(make(Attention("bam", "stage", (1, 2), 4)), state_dict={}, training={})


def trained(checkpoint: Checkpoint, output: Path, recipe: Recipe, max_minutes: float | None = None) -> Checkpoint:
    Trainer(recipe, checkpoint, DATASET).run(output, max_minutes)
    return Checkpoint.load(output)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_resumed_training_equals_an_undisturbed_one(
    tmp_path: Path, tiny_checkpoint: Callable[..., Checkpoint], optimizer: str
) -> None:
    recipe = dataclasses.replace(RECIPE, epochs=3, optimizer=optimizer, learning_rate=0.01)
    whole = trained(blank(tiny_checkpoint), tmp_path / "whole.pt", recipe)
    for _ in range(3):  # one epoch each: a limit of no minutes ends every run after its first
        checkpoint = blank(tiny_checkpoint)
        if (tmp_path / "pieces.pt").exists():
            checkpoint = Checkpoint.load(tmp_path / "pieces.pt")
        torch.manual_seed(99)  # what happens in the process meanwhile must not matter
        pieces = trained(checkpoint, tmp_path / "pieces.pt", recipe, max_minutes=0)
    assert pieces.training["epochs"] == whole.training["epochs"] == 3
    assert pieces.resume is None
    for key, value in whole.state_dict.items():
        assert torch.equal(value, pieces.state_dict[key]), key


def test_every_epoch_sees_the_pictures_in_another_order(tiny_checkpoint: Callable[..., Checkpoint]) -> None:
    trainer = Trainer(RECIPE, blank(tiny_checkpoint), DATASET)
    (first, again), trainer.epoch = [next(trainer.batches())[0] for _ in range(2)], 1
    assert torch.equal(first, again)
    assert not torch.equal(first, next(trainer.batches())[0])


def test_training_learns_and_another_seed_gives_another_network(
    tmp_path: Path, tiny_checkpoint: Callable[..., Checkpoint], capfd: pytest.CaptureFixture[str]
) -> None:
    trainer = Trainer(RECIPE, blank(tiny_checkpoint), DATASET)
    assert trainer.run(tmp_path / "net.pt")
    assert accuracy(trainer.classifier, DATASET.test) > 0.9
    lines = capfd.readouterr().err.splitlines()
    assert [line.split()[:2] for line in lines] == [["epoch", f"{i}/4"] for i in (1, 2, 3, 4)]
    assert all(" validation " in line for line in lines)
    other = trained(blank(tiny_checkpoint), tmp_path / "other.pt", dataclasses.replace(RECIPE, seed=1, epochs=1))
    key = "conv1.weight"
    assert not torch.allclose(other.state_dict[key], Checkpoint.load(tmp_path / "net.pt").state_dict[key])


def test_the_learning_rate_warms_up_to_its_peak_and_falls_to_zero() -> None:
    recipe = Recipe(epochs=10, learning_rate=0.4, warmup_epochs=2)
    assert [recipe.learning_rate_at(t) for t in (0, 1, 2, 6, 10)] == pytest.approx([0, 0.2, 0.4, 0.2, 0])


def test_weight_decay_spares_biases_and_normalisation(tiny_checkpoint: Callable[..., Checkpoint]) -> None:
    network = tiny_checkpoint(Attention("bam", "stage")).network()
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    decayed, spared = build_optimizer(RECIPE, network).param_groups
    assert (decayed["weight_decay"], spared["weight_decay"]) == (RECIPE.weight_decay, 0.0)
    assert all("bn" not in names[id(p)] and "bias" not in names[id(p)] for p in decayed["params"])
    assert len(decayed["params"]) + len(spared["params"]) == len(names)


def test_an_impossible_recipe_is_refused() -> None:
    for wrong in ({"epochs": 0}, {"epochs": 1, "batch_size": 1}, {"epochs": 1, "ema_decay": 1.0}):
        with pytest.raises(ConfigError, match="training"):
            Recipe(**wrong)


def test_the_moving_average_of_a_short_training_is_not_mostly_its_start() -> None:
    """The share of the first weights after n steps; with a fixed 0.999 sixty steps would keep 94 %."""
    average, zero = torch.ones(1), torch.zeros(1)
    update = moving_average(0.999)
    shares = {}
    for step in range(1, 20_001):
        update([average], [zero], step)
        shares[step] = float(average)
    assert shares[60] < 1e-6
    fixed = moving_average(0.5)
    for step in (1, 1000, 10**6):
        last = torch.ones(1)
        fixed([last], [zero], step)
        assert float(last) == pytest.approx(min(0.5, (1 + step) / (10 + step)))


def test_the_moving_average_forgets_by_the_decay_once_it_is_long() -> None:
    average = torch.ones(1)
    moving_average(0.999)([average], [torch.zeros(1)], 1_000_000)
    assert float(average) == pytest.approx(0.999)
