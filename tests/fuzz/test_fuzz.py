"""Broken input draws a documented error: no other exception, no crash, no hang, no growth, no burst of memory."""

from __future__ import annotations

import collections
import faulthandler
import gc
import os
import random
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

import readers
import seeds
import targets
from attnserve import memory
from attnserve.config import ServeConfig
from attnserve.decode import DecodeLimits

# Python's own about a text's escapes, which protobuf's parser calls forth; a warning in a server too, and no error.
pytestmark = pytest.mark.filterwarnings("ignore:invalid .*escape sequence:DeprecationWarning")

LONGEST_S = 60.0  # of one case; far above any that a loaded machine makes of milliseconds
MOST_CPU_S = 5.0  # of one case; what takes longer keeps others from being answered
MOST_GROWTH = 16 << 20  # bytes, after the first tenth of the cases; caches are full by then
MOST_AT_ONCE = 256 << 20  # bytes above what the process held, at any moment: what limits are there for
LEAST_BEYOND_PARSERS = 0.5  # of the cases, lest the test tries parsers only

PARSER, REFUSED, WHOLE = "stopped by a parser", "refused later", "read whole"


def held() -> int:
    """Bytes of memory that this process holds and uses: what was freed is given back first, lest it hides growth."""
    gc.collect()
    memory.give_back()
    return _status("VmRSS")


def peak() -> int:
    """The most that it held since `forget_peak`."""
    return _status("VmHWM")


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(name))


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


class Trial:
    """Feeds one reader, and counts how far its inputs came. A case that fails, crashes or hangs is left in a file."""

    def __init__(self, name: str, read: Callable[[bytes], object], folder: Path) -> None:
        self._read, self._name, self._file = read, name, folder / name
        self.counts: collections.Counter[str] = collections.Counter()
        self.longest_s, self._began = 0.0, time.monotonic()

    def feed(self, data: bytes, case: object) -> None:
        self._file.write_bytes(data)
        began = time.thread_time()
        faulthandler.dump_traceback_later(LONGEST_S, exit=True)
        try:
            self._read(data)
            self.counts[WHOLE] += 1
        except Exception as error:
            if not isinstance(error, readers.REFUSALS) or isinstance(error, readers.DEFECTS):
                where = "".join(traceback.format_exception(error)[-8:])
                pytest.fail(f"{self._name}, case {case}, kept as {self._file}:\n{where}", pytrace=False)
            self.counts[PARSER if readers.by_the_parser(error) else REFUSED] += 1
        finally:
            faulthandler.cancel_dump_traceback_later()
        self.longest_s = max(self.longest_s, time.thread_time() - began)

    def said(self, held: str) -> str:
        cases, took = self.counts.total(), time.monotonic() - self._began
        shares = ", ".join(f"{self.counts[kind] / cases:.1%} {kind}" for kind in (PARSER, REFUSED, WHOLE))
        return f"{self._name}: {cases} inputs, {shares}; {took:.0f} s, longest {self.longest_s * 1e3:.0f} ms; {held}"


def fuzz(name: str, cases: int | None, tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    target = targets.made(name, tmp_path / "target")
    cases = cases or target.cases
    trial = Trial(name, target.read, tmp_path)
    before, files, burst = held(), open_files(), 0
    forget_peak()
    for case in range(-len(target.seeds), cases):
        if case in (0, cases // 10):  # after the seeds; and when every cache is full
            burst = max(burst, peak() - before)
            before, files = held(), open_files()
            forget_peak()
        if case == 0:
            trial.counts.clear()
        trial.feed(target.case(random.Random(f"{name}:{case}")) if case >= 0 else target.seeds[case], case)
    burst = max(burst, peak() - before)
    growth = held() - before
    print(trial.said(f"memory {growth / 2**20:+.1f} MiB, at most {burst / 2**20:+.1f} MiB"), flush=True)
    assert trial.longest_s < MOST_CPU_S
    assert growth < MOST_GROWTH
    assert burst < MOST_AT_ONCE
    assert open_files() <= files
    assert trial.counts[PARSER] < (1 - LEAST_BEYOND_PARSERS) * cases
    assert trial.counts[REFUSED]
    assert trial.counts[WHOLE]


@pytest.mark.parametrize("name", targets.TARGETS)
def test_broken_input_draws_a_documented_error(name, tmp_path):
    fuzz(name, 500, tmp_path)


@pytest.mark.full
@pytest.mark.parametrize("name", targets.TARGETS)
def test_a_hundred_thousand_broken_inputs_draw_documented_errors(name, tmp_path):
    fuzz(name, int(os.environ.get("FUZZ_CASES", 0)) or None, tmp_path)


@pytest.mark.full
def test_real_pictures_whole_and_broken_are_decoded_or_refused(tmp_path):
    """Of any size and format, within the limits that a server has if nobody chooses others."""
    files = seeds.corpus()
    if not files:
        print("pictures: FUZZ_CORPUS names no folder of files; only the seeds that the test makes are used", flush=True)
        pytest.skip("FUZZ_CORPUS names no folder of files")
    limits = DecodeLimits(ServeConfig.max_image_bytes, ServeConfig.max_image_pixels)
    trial = Trial("corpus", lambda data: readers.read_picture(data, limits), tmp_path)
    before = held()
    for path in files:
        trial.feed(path.read_bytes(), path.name)
    growth = held() - before
    print(trial.said(f"memory {growth / 2**20:+.1f} MiB"), flush=True)
    assert growth < MOST_GROWTH
    assert trial.counts[WHOLE] > len(files) // 10
