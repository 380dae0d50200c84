"""Confidence and entropy of answers, against their definitions in plain Python."""

from __future__ import annotations

import math

import numpy as np
import pytest

from attnserve import drift
from attnserve.card import Site


def site(name: str, height: int, width: int, kind: str = "cbam", spatial: str | None = "") -> Site:
    combine = "add" if kind == "bam" else None
    named = f"attention/{name}/spatial" if spatial == "" else spatial
    return Site(name, kind, 8, height, width, 1, None, named, combine)


def entropy(weights) -> float:
    """-sum(p log p) / log(L), one position at a time."""
    flat = [float(w) for w in np.ravel(weights)]
    parts = [w / sum(flat) for w in flat]
    return -sum(p * math.log(p) for p in parts if p > 0) / math.log(len(flat))


def one(weights, kind: str = "cbam") -> float:
    weights = np.float32(weights)[np.newaxis]
    (values,) = drift.entropies([site("s", *weights.shape[1:], kind=kind)], {"attention/s/spatial": weights}).values()
    return float(values[0])


def test_the_confidence_is_each_picture_s_largest_probability():
    assert drift.confidences(np.float32([[0.25, 0.75], [0.5, 0.5]])).tolist() == [0.75, 0.5]


def test_an_even_map_has_one_and_a_single_position_has_zero():
    assert one(np.full((4, 4), 0.3)) == pytest.approx(1, abs=1e-6)
    single = np.zeros((4, 4))
    single[1, 2] = 0.9
    assert one(single) == pytest.approx(0, abs=1e-6)


def test_half_of_the_positions_evenly_is_the_ratio_of_the_logarithms():
    half = np.zeros((4, 4))
    half[:2] = 0.7
    assert one(half) == pytest.approx(math.log(8) / math.log(16), abs=1e-6)


def test_a_map_of_zeros_counts_as_even():
    assert one(np.zeros((3, 2))) == pytest.approx(1, abs=1e-5)


def test_bam_s_branch_goes_through_the_sigmoid_first():
    branch = np.float32([[-1.5, 2.0, 90.0], [0.25, 3.0, -200.0]])
    assert one(branch, "bam") == pytest.approx(entropy(1 / (1 + np.exp(-branch.astype(float)))), abs=1e-5)


def test_sites_of_different_sizes_are_told_apart_and_pictures_too():
    rng = np.random.default_rng(0)
    sites = [site("a", 14, 14), site("b", 2, 2), site("c", 7, 3, kind="bam")]
    outputs = {each.spatial: rng.random((5, each.height, each.width), np.float32) for each in sites}
    found = drift.entropies(sites, outputs)
    assert list(found) == ["a", "b", "c"]
    for each in sites:
        maps = outputs[each.spatial].astype(float)
        weights = 1 / (1 + np.exp(-maps)) if each.kind == "bam" else maps
        np.testing.assert_allclose(found[each.name], [entropy(w) for w in weights], atol=2e-6)


def test_only_maps_that_were_asked_for_are_looked_at():
    sites = [site("a", 2, 2), site("b", 2, 2), site("c", 2, 2, spatial=None)]
    outputs = {"probabilities": np.ones((1, 2), np.float32)}
    assert drift.entropies(sites, outputs) == {}
    assert list(drift.entropies(sites, {**outputs, "attention/b/spatial": np.ones((1, 2, 2), np.float32)})) == ["b"]


def test_of_a_large_answer_the_first_pictures_are_the_sample():
    maps = np.ones((drift.MOST_PICTURES + 1, 2, 2), np.float32)
    maps[drift.MOST_PICTURES - 1, 0] = 0
    (values,) = drift.entropies([site("a", 2, 2)], {"attention/a/spatial": maps}).values()
    assert values.tolist() == pytest.approx([1] * (drift.MOST_PICTURES - 1) + [0.5], abs=1e-6)


def test_a_site_of_one_position_has_no_entropy():
    assert drift.entropies([site("a", 1, 1)], {"attention/a/spatial": np.ones((3, 1, 1), np.float32)}) == {}


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_a_map_that_is_not_finite_is_left_out_and_no_other(wrong):
    maps = np.ones((3, 2, 2), np.float32)
    maps[1, 0, 0] = wrong
    assert drift.entropies([site("a", 2, 2)], {"attention/a/spatial": maps})["a"].tolist() == pytest.approx([1, 1])


@pytest.mark.parametrize("kind", ["cbam", "self", "rollout"])
def test_gates_and_shares_are_weights_as_they_are(kind):
    shares = np.float32([[0.5, 0.25], [0.125, 0.0]])
    assert one(shares, kind) == pytest.approx(entropy(shares.astype(float)), abs=1e-6)
