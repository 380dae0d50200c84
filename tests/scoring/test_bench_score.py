"""The arithmetic of the benchmark of batch scoring."""

from __future__ import annotations

from score import DECODE, INFER, LOOPS, SCORE, Cost, shown

START = Cost(2.0, 1.5)


def test_shares_are_of_what_decoding_and_inference_take_together():
    slow, one_thread = LOOPS
    rounds = {
        SCORE: [(Cost(0.001, 0.002), START), (Cost(0.002, 0.004), START), (Cost(0.0005, 0.00125), START)],
        DECODE: [(Cost(0.0002, 0.0004), START)] * 3,
        INFER: [(Cost(0.0003, 0.0006), START)] * 3,
        slow: [(Cost(0.002, 0.003), START)] * 3,
        one_thread: [(Cost(0.001, 0.004), START)] * 3,
    }
    lines = shown(rounds, 2).splitlines()
    assert "| attnserve score | 1000 | 2.000 | 2.0 | 1.5 |" in lines
    assert lines[-4:] == [
        "ceiling of both on 2 cores: 2000 pictures/s",
        "share of the ceiling: 50.0% by CPU time, 50.0% by the clock",
        "against the DataLoader loop: 2.00 times as fast, 1.50 by CPU time",
        "against the DataLoader loop, one thread: 1.00 times as fast, 2.00 by CPU time",
    ]


def test_a_picture_costs_what_many_take_more_than_few():
    assert (Cost(12.0, 20.0) - Cost(2.0, 4.0)).by(4) == Cost(2.5, 4.0)
