"""The best classes, and BAM's attention as one map."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from attnserve.postprocess import combined_bam, largest, top_k


def scores(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


@pytest.mark.parametrize(
    ("k", "best"),
    [(1, [2]), (2, [2, 0]), (4, [2, 0, 3, 1]), (0, [2, 0, 3, 1]), (5, [2, 0, 3, 1]), (10**6, [2, 0, 3, 1])],
)
def test_the_best_come_first(k, best):
    assert top_k(scores(0.3, 0.0, 0.6, 0.1), k).tolist() == best


@pytest.mark.parametrize("k", [1, 2])
def test_what_is_no_number_comes_last(k):
    assert top_k(scores(0.3, np.nan, 0.6), k).tolist() == [2, 0][:k]


def test_ties_are_broken_by_index():
    assert top_k(scores(0.1, 0.4, 0.1, 0.4), 0).tolist() == [1, 3, 0, 2]
    assert top_k(scores(0.25, 0.25, 0.25, 0.25), 3).tolist() == [0, 1, 2]


@given(hnp.arrays(np.float32, st.integers(1, 30), elements=st.floats(0, 1, width=32)), st.integers(0, 40))
def test_top_k_is_the_beginning_of_a_stable_sort(probabilities, k):
    expected = sorted(range(len(probabilities)), key=lambda index: (-probabilities[index], index))
    assert top_k(probabilities, k).tolist() == (expected[:k] if k else expected)


def test_add_is_the_paper_s_formula_by_hand():
    combined = combined_bam(scores(0.0, 1.0), np.array([[0.0, -1.0]], np.float32), "add")
    sigmoid = {-1: 0.26894142, 0: 0.5, 1: 0.73105858}
    expected = [[(sigmoid[0] + sigmoid[1]) / 2, (sigmoid[-1] + sigmoid[0]) / 2]]
    np.testing.assert_allclose(combined, expected, rtol=1e-6)


def test_mul_is_the_released_code_s_formula_by_hand():
    combined = combined_bam(scores(2.0, -1.0), np.array([[0.0], [1.0]], np.float32), "mul")
    expected = [[0.5], [(0.88079708 + 0.26894142) / 2]]
    np.testing.assert_allclose(combined, expected, rtol=1e-6)


@pytest.mark.parametrize("combine", ["add", "mul"])
def test_the_map_has_the_spatial_shape_and_is_float32(combine):
    combined = combined_bam(np.ones(5, np.float32), np.ones((2, 7), np.float32), combine)
    assert (combined.shape, combined.dtype) == ((2, 7), np.float32)


@pytest.mark.parametrize("combine", ["add", "mul"])
@pytest.mark.parametrize("channel", [-500.0, -89.0, 89.0, 500.0])
def test_branches_far_from_zero_give_zero_or_one_and_no_warning(combine, channel):
    combined = combined_bam(scores(channel), np.array([[1.0]], np.float32), combine)
    np.testing.assert_allclose(combined, [[0.0 if channel < 0 else 1.0]], atol=1e-6)


@pytest.mark.parametrize("k", [1, 3, 8, 20])
def test_the_largest_of_each_row_come_first(k):
    values = np.random.default_rng(0).permuted(np.arange(5 * 20).reshape(5, 20).astype(np.float32), axis=1)
    expected = [sorted(range(20), key=lambda at: -row[at])[:k] for row in values]
    assert largest(values, k).tolist() == expected


def test_there_are_no_more_largest_than_there_are():
    assert largest(np.array([[1.0, 3.0]], np.float32), 8).tolist() == [[1, 0]]
