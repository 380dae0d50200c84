"""How the cores of a CPU are dealt out to a model: workers, threads that share one run, memory nodes. Pure choices.

Many workers of one thread give the most pictures per second while all are busy; threads that share a run give the
first answer sooner. Where between the two the best lies depends on the model and on the caches, so it is measured (see
`cpu_engine`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from attnserve.errors import ConfigError

AUTO, THROUGHPUT, LATENCY = "auto", "throughput", "latency"
WORTH_IT = 1.1
"""What measures less than that much better is noise, and the placement before it stays."""


class Placement(NamedTuple):
    """So many workers, each run of theirs shared by so many threads; written 4x2."""

    workers: int
    threads: int

    def __str__(self) -> str:
        return f"{self.workers}x{self.threads}"


class CpuOptions(NamedTuple):
    """What the configuration says of CPUs.

    Attributes:
        placement: What `parsed` takes.
        openvino_precision: `f32` or `bf16`.
    """

    placement: str = AUTO
    openvino_precision: str = "f32"


class Node(NamedTuple):
    """A memory node's cores.

    Attributes:
        cpus: Their numbers, those that this process may run on.
        cores: How many of them the cgroup's quota leaves.
    """

    cpus: frozenset[int]
    cores: int


class Measured(NamedTuple):
    """What a placement did: pictures per second with all workers busy, seconds for one picture with one busy."""

    images_per_s: float
    image_s: float

    def or_better(self, other: Measured) -> Measured:
        """The better of each figure: what else runs on the machine only makes them worse."""
        return Measured(max(self.images_per_s, other.images_per_s), min(self.image_s, other.image_s))


def parsed(text: str) -> Placement | None:
    """The placement of `WORKERSxTHREADS`; None for the words that leave it open. Raises `ConfigError`."""
    if text in (AUTO, THROUGHPUT, LATENCY):
        return None
    match = re.fullmatch(r"([1-9][0-9]{0,3})x([1-9][0-9]{0,3})", text)
    if not match:
        raise ConfigError(f"placement must be {AUTO}, {THROUGHPUT}, {LATENCY} or WORKERSxTHREADS (4x2), got {text!r}")
    return Placement(int(match[1]), int(match[2]))


def within_quota(nodes: Sequence[frozenset[int]], cores: int) -> list[Node]:
    """The nodes to use when the quota leaves `cores` of their cores: as few as possible, the largest first."""
    used = []
    for cpus in sorted(nodes, key=lambda cpus: (-len(cpus), min(cpus, default=0))):
        if cores > 0:
            used.append(Node(cpus, min(cores, len(cpus))))
            cores -= len(cpus)
    return used


def candidates(nodes: Sequence[Node]) -> list[Placement]:
    """From one worker per core to one per node, by doubling the threads; no run is shared across nodes."""
    most = max(node.cores for node in nodes)
    counts = sorted({*(1 << power for power in range(most.bit_length())), most})
    return [Placement(sum(node.cores // threads for node in nodes), threads) for threads in counts]


def better(profile: str, challenger: Measured, champion: Measured) -> bool:
    """Whether the challenger is better by more than noise, at what the profile is about."""
    if profile == LATENCY:
        return challenger.image_s * WORTH_IT < champion.image_s
    return challenger.images_per_s > champion.images_per_s * WORTH_IT


def homes(placement: Placement, nodes: Sequence[Node]) -> list[frozenset[int] | None]:
    """The CPUs that each worker stays on, so that its memory is near; None where there is one node or no room.

    Each next worker goes to the node with most cores left.
    """
    if len(nodes) < 2:
        return [None] * placement.workers
    left = [node.cores for node in nodes]
    found: list[frozenset[int] | None] = []
    for _ in range(placement.workers):
        roomiest = max(range(len(nodes)), key=lambda index: left[index])
        fits = left[roomiest] >= placement.threads
        found.append(nodes[roomiest].cpus if fits else None)
        left[roomiest] -= placement.threads if fits else 0
    return found
