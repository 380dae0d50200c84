"""What the warm-up measures: the engine, and not what else the machine does meanwhile."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from attnserve.served_graph import warm_up
from attnserve.session import OnnxBackend

MODEL = Path(__file__).parents[2] / "model_repo/fashion-mnist-bam/1/model.onnx"


class Interrupted(OnnxBackend):
    """Whatever it runs, others have the core for a while."""

    def run(self, images, outputs):
        time.sleep(0.05)
        return super().run(images, outputs)


def test_a_run_of_one_thread_is_measured_by_the_time_that_it_had_a_core():
    assert max(Interrupted(MODEL).warm_up([1, 2]).values()) < 0.05
    assert min(Interrupted(MODEL, threads=2).warm_up([1, 2]).values()) >= 0.05


def test_every_output_is_warmed_and_only_the_probabilities_are_timed_after_that(clock):
    ran = []

    def run(images, outputs):
        ran.append((len(images), tuple(outputs)))
        clock.advance(0.01 * len(images) * len(outputs))
        return {}

    seconds = warm_up(run, ["probabilities", "features"], (2, 3), [1, 4], clock)
    assert seconds == {1: pytest.approx(0.01), 4: pytest.approx(0.04)}
    assert ran[:2] == [(1, ("probabilities", "features")), (1, ("probabilities",))]
    assert np.unique([count for count, _ in ran]).tolist() == [1, 4]
