"""The GPU benchmark's command line, on a CPU and a committed model: that it runs, not what it says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_gpu_benchmark_reports_every_load_in_json_and_markdown(tmp_path):
    files = {name: tmp_path / f"report.{name}" for name in ("json", "markdown")}
    command = [sys.executable, str(ROOT / "tests/bench/gpu.py"), "--provider", "cpu", "--quick", "--processes", "1"]
    command += ["--repository", str(ROOT / "model_repo"), "--models", "fashion-mnist-bam"]
    command += [argument for name, file in files.items() for argument in (f"--{name}", str(file))]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert files["markdown"].read_text() == run.stdout
    found = json.loads(files["json"].read_text())
    assert (found["quick"], found["provider"]) == (True, "cpu")
    assert "quick, not to be kept" in run.stdout
    assert [(row["way"], row["batch"]) for row in found["ceilings"]] == [("plain", 1), ("plain", 8)]
    forms = [(row["images/request"], row["form"]) for row in found["served"]]
    assert forms == [(images, form) for form in ("raw", "jpeg") for images in (1, 8, 32)]
    assert [(row["images/request"], row["load"]) for row in found["paced"]] == [
        (images, share) for images in (1, 8) for share in (0.5, 0.8, 0.95)
    ]
    assert [row["explain"] for row in found["explained"]] == [False, True]
    for row in (*found["served"], *found["paced"], *found["explained"]):
        assert row["images/s"] > 0
        assert 0 < row["p50 ms"] <= row["p95 ms"] <= row["p99 ms"]
    for row in found["served"]:
        assert abs(row["share"] * row["ceiling"] - row["images/s"]) < 1e-6 * row["images/s"]
    assert found["plans"] == {"fashion-mnist-bam": "CPUExecutionProvider"}
