"""The cores that this process may use, on folders that look like a cgroup's."""

from __future__ import annotations

import os

import pytest

from attnserve.cores import available_cores, memory_nodes

USABLE = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


@pytest.fixture
def v2(tmp_path):
    def write(text: str):
        (tmp_path / "cpu.max").write_text(text)
        return tmp_path

    return write


@pytest.fixture
def v1(tmp_path):
    def write(quota: str, period: str = "100000\n"):
        (tmp_path / "cpu").mkdir()
        (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(quota)
        (tmp_path / "cpu" / "cpu.cfs_period_us").write_text(period)
        return tmp_path

    return write


def test_without_a_cgroup_every_usable_core_counts(tmp_path):
    assert available_cores(tmp_path) == USABLE
    assert available_cores(tmp_path / "none") == USABLE


@pytest.mark.parametrize(
    ("quota", "cores"),
    [
        ("100000 100000\n", 1),
        ("50000 100000\n", 1),
        ("1000 100000\n", 1),
        ("150000 100000\n", 2),
        ("200000 100000\n", 2),
    ],
)
def test_a_quota_counts_rounded_up(v2, quota, cores):
    assert available_cores(v2(quota)) == min(cores, USABLE)


@pytest.mark.parametrize(("quota", "cores"), [("100000\n", 1), ("1000\n", 1), ("110000\n", 2)])
def test_a_quota_of_the_old_kind_counts_too(v1, quota, cores):
    assert available_cores(v1(quota)) == min(cores, USABLE)


def test_a_quota_above_the_usable_cores_changes_nothing(v2):
    assert available_cores(v2(f"{(USABLE + 3) * 100000} 100000\n")) == USABLE


def test_another_period_is_divided_by(v2):
    assert available_cores(v2("20000 20000\n")) == 1


@pytest.mark.parametrize("text", ["max 100000\n", "max\n", "", "rubbish", "1 2 3"])
def test_no_quota_or_one_that_cannot_be_read_changes_nothing(v2, text):
    assert available_cores(v2(text)) == USABLE


@pytest.mark.parametrize("quota", ["-1\n", "rubbish", ""])
def test_no_quota_of_the_old_kind_changes_nothing(v1, quota):
    assert available_cores(v1(quota)) == USABLE


def test_the_new_kind_comes_before_the_old(v1, v2):
    assert v1("10000000\n") == v2("100000 100000\n")
    assert available_cores(v2("100000 100000\n")) == 1


def test_this_machine_has_at_least_one_core():
    assert 1 <= available_cores() <= USABLE


@pytest.fixture
def tree(tmp_path):
    """A kernel's folder of memory nodes with those lists of CPUs."""

    def write(*lists: str):
        for index, text in enumerate(lists):
            (tmp_path / f"node{index}").mkdir()
            (tmp_path / f"node{index}" / "cpulist").write_text(f"{text}\n")
        return tmp_path

    return write


@pytest.mark.parametrize(
    ("lists", "usable", "nodes"),
    [
        (["0-3", "4-7"], range(8), [{0, 1, 2, 3}, {4, 5, 6, 7}]),
        (["0-1,4-5", "2-3,6"], range(7), [{0, 1, 4, 5}, {2, 3, 6}]),
        (["0-3", "4-7"], {2, 3, 5}, [{2, 3}, {5}]),
        (["0-3", "4-7"], {1}, [{1}]),
        (["0-3", ""], range(4), [{0, 1, 2, 3}]),  # a node of memory alone
        ([], {0, 1}, [{0, 1}]),
        (["0-3"], range(8), [set(range(8))]),  # of some nothing is told
        (["0-3", "what"], range(8), [set(range(8))]),
    ],
)
def test_memory_nodes_are_those_with_usable_cpus(tree, lists, usable, nodes):
    assert memory_nodes(tree(*lists), frozenset(usable)) == nodes


def test_this_machines_nodes_hold_its_usable_cpus_once_each():
    found = memory_nodes()
    assert sum(map(len, found)) == len(frozenset().union(*found)) == USABLE
