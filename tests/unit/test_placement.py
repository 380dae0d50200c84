"""How cores are dealt out, on machines that are told of in numbers."""

from __future__ import annotations

import pytest

from attnserve.errors import ConfigError
from attnserve.placement import Measured, Node, Placement, better, candidates, homes, parsed, within_quota

LEFT, RIGHT = frozenset(range(8)), frozenset(range(8, 16))


def node(cores: int) -> Node:
    return Node(frozenset(range(cores)), cores)


def test_a_placement_reads_as_it_is_written():
    assert parsed("4x2") == Placement(4, 2)
    assert str(Placement(4, 2)) == "4x2"
    assert [parsed(word) for word in ("auto", "throughput", "latency")] == [None] * 3


@pytest.mark.parametrize("text", ["", "4", "4x", "x4", "0x4", "4x0", "4*2", "-1x2", "4x2x1", "10000x1"])
def test_anything_else_is_refused(text):
    with pytest.raises(ConfigError, match="WORKERSxTHREADS"):
        parsed(text)


@pytest.mark.parametrize(
    ("cores", "found"),
    [
        ([1], ["1x1"]),
        ([2], ["2x1", "1x2"]),
        ([6], ["6x1", "3x2", "1x4", "1x6"]),
        ([16], ["16x1", "8x2", "4x4", "2x8", "1x16"]),
        ([8, 8], ["16x1", "8x2", "4x4", "2x8"]),
        ([8, 3], ["11x1", "5x2", "2x4", "1x8"]),
    ],
)
def test_threads_double_from_one_per_core_to_one_worker_per_node(cores, found):
    assert [str(placement) for placement in candidates([node(n) for n in cores])] == found


@pytest.mark.parametrize(
    ("cores", "used"),
    [(16, [(LEFT, 8), (RIGHT, 8)]), (9, [(LEFT, 8), (RIGHT, 1)]), (8, [(LEFT, 8)]), (3, [(LEFT, 3)])],
)
def test_a_quota_is_spent_on_as_few_nodes_as_possible(cores, used):
    assert within_quota([LEFT, RIGHT], cores) == used


def test_the_largest_node_is_used_first():
    assert within_quota([frozenset({0}), frozenset({1, 2})], 2) == [(frozenset({1, 2}), 2)]


def test_throughput_and_latency_each_look_at_their_own_figure():
    fast, slow = Measured(images_per_s=100.0, image_s=0.04), Measured(images_per_s=200.0, image_s=0.1)
    assert better("latency", fast, slow)
    assert not better("latency", slow, fast)
    assert better("throughput", slow, fast)
    assert not better("throughput", fast, slow)


@pytest.mark.parametrize("profile", ["throughput", "latency"])
def test_what_is_better_by_no_more_than_noise_changes_nothing(profile):
    champion = Measured(images_per_s=100.0, image_s=0.100)
    assert not better(profile, Measured(109.0, 0.092), champion)
    assert better(profile, Measured(112.0, 0.090), champion)


def test_on_one_node_nobody_is_kept_anywhere():
    assert homes(Placement(4, 2), [node(8)]) == [None] * 4


def test_workers_are_dealt_out_over_the_nodes_by_the_room_that_is_left():
    nodes = [Node(LEFT, 8), Node(RIGHT, 8)]
    assert homes(Placement(4, 4), nodes) == [LEFT, RIGHT, LEFT, RIGHT]
    assert homes(Placement(2, 1), nodes) == [LEFT, RIGHT]
    assert homes(Placement(3, 2), [Node(LEFT, 6), Node(RIGHT, 2)]) == [LEFT, LEFT, LEFT]


def test_a_worker_that_no_node_has_room_for_may_run_anywhere():
    nodes = [Node(LEFT, 8), Node(RIGHT, 8)]
    assert homes(Placement(1, 16), nodes) == [None]
    assert homes(Placement(3, 8), nodes) == [LEFT, RIGHT, None]
