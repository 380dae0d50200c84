"""Probabilities that mean what they say: one temperature, fitted on labelled pictures (Guo, Pleiss, Sun, Weinberger;
ICML 2017, arXiv:1706.04599).

Owns the choice of the pictures and the fit; knows nothing of ONNX or of where files lie.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from attnserve import datasets
from attnserve.datasets import Dataset, Pictures
from attnserve.errors import ConfigError
from attnserve.export.augment import Augmentation
from attnserve.export.checkpoint import Checkpoint
from attnserve.measure import BINS, expected_calibration_error, spaced

LOWEST, HIGHEST = 0.05, 20.0  # a sound network's temperature lies far inside
LARGEST_SET = 5000  # as many as the paper fits on; one parameter needs no more
CHANCE = (
    3.84  # 95th percentile of chi-square with one degree of freedom: the likelihood-ratio test of T = 1 (Wilks 1938)
)

SEEN, HELD_OUT, FOREIGN = "training pictures, varied as in training", "validation part", "all pictures of the folder"


@dataclass(frozen=True)
class CalibrationSet:
    """Labelled pictures to fit on.

    Attributes:
        dataset: Its name, for the card.
        part: Which of its pictures these are; `SEEN` where the network was trained on them.
    """

    dataset: str
    part: str
    pictures: Pictures


def fit(chosen: CalibrationSet, logits: NDArray[np.float32]) -> tuple[float, dict[str, Any]]:
    """The temperature for these pictures, given the network's (N, K) logits of them, and the card's record of it."""
    temperature = fit_temperature(logits, chosen.pictures.labels)
    measured = quality(logits, chosen.pictures.labels, temperature)
    record = {"temperature": temperature, "dataset": chosen.dataset, "part": chosen.part, "bins": BINS}
    return temperature, {**record, "fit": measured}


def fit_temperature(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """The T that minimises the mean negative log-likelihood of softmax(logits / T), to four digits.

    The likelihood is convex in 1 / T (the paper's supplement), so golden-section search finds the one minimum.

    Args:
        logits: (N, K).
        labels: (N,) indices of the right classes.

    Raises:
        ConfigError: The minimum lies outside 0.05..20: the pictures are all answered right, or the labels are wrong.
    """
    shrink = (math.sqrt(5) - 1) / 2
    low, high = math.log(LOWEST), math.log(HIGHEST)
    while high - low > 1e-5:
        left, right = high - shrink * (high - low), low + shrink * (high - low)
        if _nll(logits, labels, math.exp(left)) <= _nll(logits, labels, math.exp(right)):
            high = right
        else:
            low = left
    temperature = math.exp((low + high) / 2)
    if not LOWEST * 1.01 < temperature < HIGHEST / 1.01:
        share = float(np.mean(logits.argmax(1) == labels))
        raise ConfigError(
            f"--calibrate: no temperature fits: {share:.1%} of the {len(labels)} pictures are answered right; it takes"
            " some wrong answers, and labels that are the network's"
        )
    return round(temperature, 4)


def probabilities(logits: NDArray[np.float32], temperature: float) -> NDArray[np.float64]:
    """softmax(logits / temperature), (N, K) float64."""
    scaled = logits.astype(np.float64) / temperature
    powers = np.exp(scaled - scaled.max(1, keepdims=True))
    shares: NDArray[np.float64] = powers / powers.sum(1, keepdims=True)
    return shares


def quality(logits: NDArray[np.float32], labels: NDArray[np.int64], temperature: float) -> dict[str, float | int]:
    """Images, ECE and mean negative log-likelihood without (`_before`) and with the temperature (`_after`)."""
    measured: dict[str, float | int] = {"images": len(labels)}
    for when, t in (("before", 1.0), ("after", temperature)):
        measured[f"ece_{when}"] = round(expected_calibration_error(probabilities(logits, t), labels), 5)
        measured[f"nll_{when}"] = round(_nll(logits, labels, t), 5)
    return measured


def doubts(record: dict[str, Any]) -> list[str]:
    """What speaks against a temperature, by its record: too few pictures to fit it, or probabilities made worse.

    The likelihood is what is fitted and the better judge; the ECE of few pictures is mostly chance, but it is what
    people look at.
    """
    fitted, found = record["fit"], []
    if 2 * fitted["images"] * (fitted["nll_before"] - fitted["nll_after"]) < CHANCE:
        found.append(f"its {fitted['images']} pictures are too few to tell {record['temperature']} from 1")
    measured, where = (record["test"], "held-out") if "test" in record else (fitted, "same")
    change = {name: f"{measured[f'{name}_before']:.4f} -> {measured[f'{name}_after']:.4f}" for name in ("nll", "ece")}
    on = f"on the {measured['images']} {where} pictures"
    if measured["nll_after"] > measured["nll_before"]:
        found.append(f"the probabilities are worse with it {on}: NLL {change['nll']}, ECE {change['ece']}")
    elif measured["ece_after"] > measured["ece_before"]:
        found.append(f"it lowers the NLL ({change['nll']}) but raises the ECE ({change['ece']}) {on}")
    return found


def calibration_set(
    source: str, data_dir: Path | None, checkpoint: Checkpoint, augmentation: Callable[[], Augmentation]
) -> CalibrationSet:
    """The pictures of `source`, `fashion-mnist` or a folder of class sub-folders, that a temperature may be fitted on.

    Of the data set the checkpoint was trained on: its validation part; where it has none, pictures of the training
    part, evenly spaced and varied as in training, because the network is surer of the pictures it has learnt by heart.
    Never its test part. Of any other folder: all pictures; the sub-folders' names must be labels of the checkpoint.

    Args:
        augmentation: How the training varied its pictures; asked only where it matters.
    """
    record = checkpoint.training
    name = source if source == datasets.FASHION_MNIST else Path(source).resolve().name
    known = name == record.get("dataset")
    rule = datasets.recorded_rule(record.get("split", {})) if known else None
    licence = str(record.get("licence", "unknown"))
    dataset = datasets.load(source, data_dir, licence, checkpoint.preprocessing, rule)
    if not known:
        return CalibrationSet(name, FOREIGN, _some(_everything(dataset, checkpoint.labels)))
    if len(dataset.validation):
        return CalibrationSet(name, HELD_OUT, _some(dataset.validation))
    return CalibrationSet(name, SEEN, vary(_some(dataset.train), augmentation()))


def vary(pictures: Pictures, augmentation: Augmentation) -> Pictures:
    """The pictures, each varied once (the same way every time)."""
    generator = torch.Generator().manual_seed(0)
    varied = []
    for start in range(0, len(pictures), 500):  # bounded memory for large views
        images = torch.from_numpy(pictures.images[start : start + 500]).permute(0, 3, 1, 2).float() / 255
        moved = augmentation(images, generator).permute(0, 2, 3, 1)
        varied.append((moved * 255).round().clamp(0, 255).to(torch.uint8).numpy())
    return Pictures(np.concatenate(varied), pictures.labels)


def _nll(logits: NDArray[np.float32], labels: NDArray[np.int64], temperature: float) -> float:
    scaled = logits.astype(np.float64) / temperature
    highest = scaled.max(1)
    log_sum = highest + np.log(np.exp(scaled - highest[:, None]).sum(1))
    return float(np.mean(log_sum - scaled[np.arange(len(labels)), labels]))


def _some(pictures: Pictures) -> Pictures:
    """At most `LARGEST_SET` pictures, evenly spaced over the whole."""
    chosen = spaced(len(pictures), LARGEST_SET)
    return Pictures(pictures.images[chosen], pictures.labels[chosen])


def _everything(dataset: Dataset, labels: tuple[str, ...]) -> Pictures:
    return datasets.relabelled([dataset.train, dataset.validation, dataset.test], dataset.labels, labels)
