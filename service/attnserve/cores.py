"""How many CPU cores this process may use, and by which memory: affinity and cgroup quota, not the host's count."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Set
from pathlib import Path


def available_cores(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Whole cores, rounded up from the cgroup's CPU quota (v2 `cpu.max`, else v1 `cpu.cfs_quota_us`); at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota_v2(cgroup) or _quota_v1(cgroup / "cpu")
    return max(1, min(cores, math.ceil(quota))) if quota else cores


def _quota_v2(folder: Path) -> float | None:
    try:
        quota, period = (folder / "cpu.max").read_text().split()
        return int(quota) / int(period)
    except (OSError, ValueError):  # no such file, or "max"
        return None


def _quota_v1(folder: Path) -> float | None:
    try:
        quota = int((folder / "cpu.cfs_quota_us").read_text())
        period = int((folder / "cpu.cfs_period_us").read_text())
    except (OSError, ValueError):
        return None
    return quota / period if quota > 0 else None


def memory_nodes(
    folder: Path = Path("/sys/devices/system/node"), usable: Set[int] | None = None
) -> list[frozenset[int]]:
    """The usable CPUs of each memory (NUMA) node that has some; one node of all of them where none is told of.

    Args:
        folder: Of the kernel, with `node0/cpulist` and so on.
        usable: CPUs that this process may run on; None asks the kernel.
    """
    if usable is None:
        usable = set(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    nodes = []
    for path in sorted(folder.glob("node[0-9]*/cpulist")):
        with contextlib.suppress(OSError, ValueError):
            nodes.append(_cpus(path.read_text()) & usable)
    found = [node for node in nodes if node]
    return found if frozenset().union(*found) == usable else [frozenset(usable)]


def _cpus(text: str) -> frozenset[int]:
    """The numbers of a list like `0-3,8`; empty for a node without CPUs."""
    numbers: set[int] = set()
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        numbers.update(range(int(first), int(last or first) + 1))
    return frozenset(numbers)
