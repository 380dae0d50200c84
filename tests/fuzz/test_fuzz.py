"""Broken input draws a documented error: no other exception, no hang, no growth."""

from __future__ import annotations

import faulthandler
import os
import random
import time
from pathlib import Path

import mutate
import pytest
import targets

# Python's own about a text's escapes, which protobuf's parser calls forth; a warning in a server too, and no error.
pytestmark = pytest.mark.filterwarnings("ignore:invalid .*escape sequence:DeprecationWarning")

TARGETS = targets.targets()
LONGEST_S = 60.0  # of one case; far above any that a loaded machine makes of milliseconds
MOST_GROWTH = 64 << 20  # bytes, after the first tenth of the cases


def resident() -> int:
    """Bytes of memory that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def fuzz(name: str, cases: int, tmp_path: Path) -> None:
    target = TARGETS[name]
    refused, began = 0, time.monotonic()
    for case in range(-len(target.seeds), cases):
        if case == cases // 10:
            before, files = resident(), open_files()
        data = mutate.mutated(random.Random(f"{name}:{case}"), target.seeds) if case >= 0 else target.seeds[case]
        faulthandler.dump_traceback_later(LONGEST_S, exit=True)
        try:
            target.read(data)
        except Exception as error:
            if not isinstance(error, targets.REFUSALS) or isinstance(error, targets.DEFECTS):
                (tmp_path / f"{name}-{case}").write_bytes(data)
                pytest.fail(f"{name}, case {case}, kept as {tmp_path / f'{name}-{case}'}: {error!r}")
            refused += 1
        finally:
            faulthandler.cancel_dump_traceback_later()
    growth = resident() - before
    took = time.monotonic() - began
    print(f"{name}: {cases} cases, {refused} refused, {took:.1f} s, memory {growth / 2**20:+.1f} MiB", flush=True)
    assert 0 < refused < cases
    assert growth < MOST_GROWTH
    assert open_files() <= files


@pytest.mark.parametrize("name", TARGETS)
def test_broken_input_draws_a_documented_error(name, tmp_path):
    fuzz(name, 1000, tmp_path)


@pytest.mark.full
@pytest.mark.parametrize("name", TARGETS)
def test_a_hundred_thousand_broken_inputs_draw_documented_errors(name, tmp_path):
    fuzz(name, int(os.environ.get("FUZZ_CASES", 10_000 if name == "config" else 40_000)), tmp_path)
