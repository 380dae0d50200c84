"""Ten times more asked than can be done: the server does all it can, in time, and says no to the rest at once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_goodput_under_tenfold_overload_is_that_of_the_peak_and_what_is_admitted_is_in_time(tmp_path):
    """Two workers of 80 ms an image: 25 a second, whatever comes. The long form is `make bench-overload`."""
    report = tmp_path / "report.json"
    options = ["--loads", "1,10", "--seconds", "5", "--json", str(report)]
    run = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "bench" / "overload.py"), *options],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    result = json.loads(report.read_text())
    normal, overloaded = result["rows"]
    assert overloaded["offered_per_s"] > 8 * result["capacity_per_s"]
    assert overloaded["goodput_per_s"] >= 0.9 * max(row["goodput_per_s"] for row in result["rows"])
    assert overloaded["goodput_per_s"] >= 0.7 * result["capacity_per_s"]  # the first second fills the queue
    admitted = overloaded["offered_per_s"] * (1 - overloaded["refused"])
    missed = overloaded["offered_per_s"] * (overloaded["expired"] + overloaded["late"])
    assert missed <= 0.02 * admitted
    assert overloaded["p99_ms"] <= result["deadline_ms"]
    assert normal["refused"] < 0.2
