"""What every engine demands of a model file, and how it is warmed up; knows no engine."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attnserve.contract import Outputs
from attnserve.errors import ConfigError

INPUT = "images"
_TIMED_RUNS = 3
_SHORT_S = 0.2  # a longer first run says enough, and a start that takes minutes helps nobody


def image_size(path: Path, inputs: Sequence[tuple[str, str, Sequence[Any]]]) -> tuple[int, int]:
    """Height and width that a graph takes.

    Args:
        path: For messages.
        inputs: Name, ONNX type and shape of each; a free axis is anything but an integer.

    Raises:
        ConfigError: It takes something else than one batch of pictures.
    """
    if [(name, kind) for name, kind, _ in inputs] != [(INPUT, "tensor(uint8)")]:
        found = ", ".join(f"{name} {kind}" for name, kind, _ in inputs)
        raise ConfigError(f"{path}: needs exactly one input {INPUT!r} tensor(uint8), found {found}")
    shape = list(inputs[0][2])
    if len(shape) != 4 or shape[3] != 3 or not all(isinstance(n, int) for n in shape[1:]) or isinstance(shape[0], int):
        raise ConfigError(f"{path}: {INPUT!r} must be (batch, height, width, 3) with a free batch, found {shape}")
    return shape[1], shape[2]


def warm_up_sizes(max_batch_size: int) -> list[int]:
    """1, 2, 4, ... and `max_batch_size` itself."""
    sizes = [1 << power for power in range(max_batch_size.bit_length()) if 1 << power < max_batch_size]
    return [*sizes, max_batch_size]


def warm_up(
    run: Callable[[NDArray[np.uint8], Sequence[str]], Outputs],
    outputs: Sequence[str],
    size: tuple[int, int],
    batch_sizes: Sequence[int],
    clock: Callable[[], float] = time.perf_counter,
) -> dict[int, float]:
    """Run at each batch size; returns the seconds that `probabilities` take at each.

    The first run of a size, every output asked for, allocates; where it was short others are timed after it.

    Args:
        run: The engine.
        outputs: Of the graph.
        size: Height and width of its pictures.
        clock: That of the calling thread's CPU time, where all the work is that thread's: what else the machine does at
            the start would choose the size of batches for as long as the model is served.
    """

    def timed(images: NDArray[np.uint8], wanted: Sequence[str]) -> float:
        started = clock()
        run(images, wanted)
        return clock() - started

    seconds: dict[int, float] = {}
    for count in batch_sizes:
        images = np.zeros((count, *size, 3), np.uint8)
        seconds[count] = timed(images, outputs)
        for _ in range(_TIMED_RUNS if seconds[count] < _SHORT_S else 0):
            seconds[count] = min(seconds[count], timed(images, ["probabilities"]))
    return seconds
