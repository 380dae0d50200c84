"""Accuracy and calibration of anything that classifies pictures, and the entries of checkpoints and cards for it.

Owns what is measured and how it is recorded; knows nothing of what runs the network.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attnserve.datasets import FASHION_MNIST, Dataset, Pictures

BATCH_SIZE = 500  # large enough to keep a core busy, small enough for any memory
BINS = 15  # of the calibration error, as in the tables of Guo et al.

Classifier = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
"""(N, H, W, 3) pictures -> (N, K) scores; the highest is the answer."""


def spaced(count: int, most: int) -> slice:
    """At most `most` of `count` things, evenly spaced over the whole: a folder's pictures come sorted by class."""
    return slice(None, None, max(1, -(-count // most)))


def scores(classify: Classifier, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The scores of any number of pictures, (N, K), computed in batches."""
    return np.concatenate([classify(images[i : i + BATCH_SIZE]) for i in range(0, len(images), BATCH_SIZE)])


def accuracy(classify: Classifier, pictures: Pictures) -> float:
    """Fraction of the pictures that are given their own label."""
    return float(np.mean(scores(classify, pictures.images).argmax(1) == pictures.labels))


def expected_calibration_error(shares: NDArray[np.floating[Any]], labels: NDArray[np.int64], bins: int = BINS) -> float:
    """ECE (Guo et al., ICML 2017, equation 3): sum over bins b of n_b / N * |accuracy_b - confidence_b|, 0..1.

    The bins are of equal width over 0..1, each without its lower and with its upper end; a picture falls into the bin
    of its highest probability.

    Args:
        shares: (N, K) probabilities.
        labels: (N,) indices of the right classes.
    """
    confidence = shares.max(1).astype(np.float64)
    right = shares.argmax(1) == labels
    chosen = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    gaps = np.bincount(chosen, weights=right - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(labels))


def evaluation(classify: Classifier, dataset: Dataset, measured_with: str, command: str) -> list[dict[str, Any]]:
    """Entries for the test part, by `dataset`'s name for it; of Fashion-MNIST also for the first 1,000 of it, which a
    quick check uses.
    """
    parts = {dataset.test_name: dataset.test}
    if dataset.name == FASHION_MNIST:
        parts["test, first 1000"] = Pictures(dataset.test.images[:1000], dataset.test.labels[:1000])
    return [
        {
            "dataset": dataset.name,
            "split": split,
            "images": len(pictures),
            "accuracy": accuracy(classify, pictures),
            "measured_with": measured_with,
            "command": command,
        }
        for split, pictures in parts.items()
    ]
