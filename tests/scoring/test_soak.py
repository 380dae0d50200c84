"""The short form of `make soak-score`."""

from __future__ import annotations

import subprocess
import sys

from tests.scoring.conftest import ROOT


def test_no_process_of_a_job_grows_with_its_rows():
    command = [sys.executable, ROOT / "tests/bench/soak_score.py", "--pictures", "20000", "--most-mib", "4"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
