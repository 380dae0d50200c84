"""Figures of an answer that move when the pictures do: how sure it is, and how evenly the network looked.

Pure functions over what was computed anyway; they never make the graph compute anything.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from attnserve.card import Site
from attnserve.contract import Outputs

Float32 = NDArray[np.float32]

MOST_PICTURES = 8
"""Of one answer, for entropies: a sample shows drift as well, and 64 pictures of a 224-pixel ResNet-50 take 5 ms."""

_NO_MAPS = {"probabilities"}  # what most requests ask for
_LEAST = np.float32(1e-30)  # stands for 0, whose logarithm is none; too small to weigh beside any gate


def confidences(probabilities: Float32) -> Float32:
    """The largest of each row of (N, K) probabilities, (N,)."""
    return np.asarray(np.maximum.reduce(probabilities, axis=1), dtype=np.float32)


def entropies(sites: Sequence[Site], outputs: Outputs) -> dict[str, Float32]:
    """The normalised entropies (see `row_entropies`) of the first `MOST_PICTURES` pictures, for the metrics.

    Single maps that are not finite are left out.
    """
    if outputs.keys() == _NO_MAPS:
        return {}
    found = row_entropies(sites, {name: values[:MOST_PICTURES] for name, values in outputs.items()})
    return {site: values[np.isfinite(values)] for site, values in found.items()}


def row_entropies(sites: Sequence[Site], outputs: Outputs) -> dict[str, Float32]:
    """The normalised entropy of each picture's spatial attention, for every site whose spatial map is in `outputs`.

    For a map w of L positions, p = w / sum(w): H = -sum(p log p) / log(L), from 0 (one position has it all) to 1 (even,
    which a map of zeros counts as). w is the sigmoid of BAM's spatial branch, else the map itself: CBAM's gate, a
    transformer's shares. A site of one position has no entropy and is left out.

    Returns:
        Site name -> values in 0..1, float32, of the pictures in their order; NaN for a map that is not finite.
    """
    found = [site for site in sites if site.spatial in outputs and site.height * site.width > 1]
    if not found:
        return {}
    maps = [_weights(outputs[site.spatial or ""], site.kind) for site in found]  # each (N, L)
    sizes = np.array([each.shape[1] for each in maps])
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    with np.errstate(all="ignore"):  # for maps that are not finite
        weights = np.maximum(np.concatenate(maps, axis=1), _LEAST)  # all sites at once: numpy's cost is per call
        sums = np.add.reduceat(weights, starts, axis=1)  # (N, sites)
        logs = np.add.reduceat(weights * np.log(weights), starts, axis=1)
        values = np.clip((np.log(sums) - logs / sums) / np.log(sizes), 0, 1).astype(np.float32)
    return {site.name: column for site, column in zip(found, values.T, strict=True)}


def _weights(spatial: Float32, kind: str) -> Float32:
    """The map (N, H, W) as weights (N, L) that are not negative."""
    flat = spatial.reshape(len(spatial), -1)
    return 0.5 * (1 + np.tanh(0.5 * flat)) if kind == "bam" else flat  # the sigmoid, in a form that cannot overflow
