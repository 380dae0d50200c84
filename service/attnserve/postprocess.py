"""From graph outputs to answers: the best classes, and the maps that a person can read. Pure functions over numpy."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]


def top_k(probabilities: Float32, k: int) -> NDArray[np.intp]:
    """Indices of the k largest of (K,) probabilities, best first, ties by index; all for k = 0 or k > K."""
    if k == 1:
        best = probabilities.argmax()
        if probabilities[best] == probabilities[best]:  # argmax takes NaN for the largest, sorting for the smallest
            return np.asarray([best])
    order = np.argsort(-probabilities, kind="stable")
    return order[:k] if k else order


def largest(values: Float32, k: int) -> NDArray[np.intp]:
    """(N, C) -> (N, min(k, C)): indices of the largest values of each row, the largest first."""
    k = min(k, values.shape[1])
    found = np.argpartition(-values, k - 1, axis=1)[:, :k]  # sorting 2048 channels would cost ten times as much
    rows = np.arange(len(values))[:, np.newaxis]
    return np.asarray(found[rows, np.argsort(-values[rows, found], axis=1)])


def combined_bam(channel: Float32, spatial: Float32, combine: str) -> Float32:
    """Mean over channels of BAM's attention M, (H, W) in 0..1, from its two branches.

    Args:
        channel: Mc before the sigmoid, (C,).
        spatial: Ms before the sigmoid, (H, W).
        combine: `add`: M = sigmoid(Mc + Ms), as in Park et al., "BAM: Bottleneck Attention Module", BMVC 2018
            (arXiv:1807.06514); `mul`: M = sigmoid(Mc * Ms), as in the authors' released code.
    """
    c = channel[:, np.newaxis, np.newaxis]  # (C, 1, 1)
    logits = c + spatial if combine == "add" else c * spatial  # (C, H, W)
    attention = 0.5 * (1.0 + np.tanh(0.5 * logits))  # the sigmoid, in a form that cannot overflow
    return np.asarray(attention.mean(axis=0), dtype=np.float32)
