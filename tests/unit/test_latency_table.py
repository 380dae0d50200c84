"""What is learned about batches: literal tables."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attnserve.latency_table import LatencyTable

GPU = {1: 0.010, 2: 0.011, 4: 0.012, 8: 0.016, 16: 0.032, 32: 0.064}  # a step: nothing is gained above 8
CPU = {1: 0.080, 2: 0.160, 4: 0.320, 8: 0.640}  # a line: nothing is gained at all


def test_sizes_between_the_measured_ones_are_interpolated():
    table = LatencyTable({2: 1.0, 4: 2.0, 8: 6.0})
    assert [table.predicted_s(rows) for rows in (1, 2, 3, 4, 6, 8, 16)] == [1.0, 1.0, 1.5, 2.0, 4.0, 6.0, 12.0]


def test_an_engine_that_pads_takes_as_long_for_any_size_as_for_the_next_measured():
    table = LatencyTable({2: 1.0, 4: 2.0, 8: 6.0}, padded=True)
    assert [table.predicted_s(rows) for rows in (1, 2, 3, 4, 5, 8, 16)] == [1.0, 1.0, 2.0, 2.0, 6.0, 6.0, 12.0]
    for _ in range(300):
        table.observe(5, 12.0)  # a batch of 8 to the engine
        table.observe(4, 2.0)
    assert table.predicted_s(8) / table.predicted_s(4) > 5


def test_an_engine_that_pads_is_given_no_batch_that_is_mostly_padding():
    table = LatencyTable({8: 5.4e-3, 16: 7.2e-3, 32: 11.5e-3, 64: 19.9e-3}, padded=True)
    taken = {rows: table.worth_taking(rows) for rows in (1, 8, 9, 12, 17, 33, 50, 58, 64, 65)}
    assert taken == {1: 1, 8: 8, 9: 8, 12: 12, 17: 16, 33: 32, 50: 32, 58: 58, 64: 64, 65: 65}
    assert LatencyTable({32: 11.5e-3, 64: 19.9e-3}).worth_taking(33) == 33
    assert LatencyTable(padded=True).worth_taking(33) == 33


def test_an_empty_table_knows_nothing_and_limits_nothing():
    table = LatencyTable()
    assert (table.predicted_s(7), table.efficient_size(64), table.largest_within(0.0, 64)) == (0.0, 64, 64)


@pytest.mark.parametrize(
    ("seconds", "most", "size"),
    [(GPU, 32, 8), (GPU, 4, 4), (GPU, 6, 6), (CPU, 8, 1), ({1: 1.0, 64: 2.0}, 64, 64), (CPU, 9, 9)],
)
def test_the_efficient_size_is_the_smallest_that_loses_no_throughput(seconds, most, size):
    assert LatencyTable(seconds).efficient_size(most) == size


@pytest.mark.parametrize(
    ("budget_s", "most", "rows"), [(1.0, 32, 32), (0.0321, 32, 16), (0.0241, 32, 12), (0.0161, 8, 8), (0.009, 32, 0)]
)
def test_the_largest_batch_within_a_budget(budget_s, most, rows):
    assert LatencyTable(GPU).largest_within(budget_s, most) == rows


def test_a_busy_machine_makes_every_size_slower_within_a_dozen_batches():
    table = LatencyTable(GPU)
    for _ in range(12):
        table.observe(8, 0.032)
    assert table.predicted_s(8) == pytest.approx(0.032, rel=0.1)
    assert 0.016 < table.predicted_s(1) <= 0.020  # most of it
    for _ in range(12):
        table.observe(8, 0.016)
    assert table.predicted_s(8) == pytest.approx(0.016, rel=0.1)


def test_one_size_that_is_slower_than_thought_is_learned_against_the_others():
    table = LatencyTable({1: 1.0, 2: 1.0, 4: 1.0})
    assert table.efficient_size(4) == 4
    for _ in range(200):
        table.observe(4, 4.0)
        table.observe(1, 1.0)
    assert table.predicted_s(4) / table.predicted_s(1) > 3
    assert table.efficient_size(4) == 2


def test_the_first_batch_of_an_empty_table_is_believed():
    table = LatencyTable()
    table.observe(4, 2.0)
    assert (table.predicted_s(4), table.predicted_s(8), table.predicted_s(1)) == (2.0, 4.0, 2.0)


def test_a_run_of_no_time_at_all_is_ignored():
    table = LatencyTable(GPU)
    table.observe(8, 0.0)
    assert table.sizes == GPU


@given(
    st.lists(st.tuples(st.integers(1, 64), st.floats(1e-6, 100)), max_size=50), st.floats(0, 100), st.integers(1, 64)
)
def test_whatever_is_observed_the_answers_stay_within_bounds(observed, budget_s, most):
    table = LatencyTable(GPU)
    for rows, seconds in observed:
        table.observe(rows, seconds)
    assert 1 <= table.efficient_size(most) <= most
    assert 0 <= table.largest_within(budget_s, most) <= most
    assert 0 < table.predicted_s(most) < float("inf")
