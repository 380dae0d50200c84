"""Folders of real pictures, and the command `attnserve score` in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
MODEL = "fashion-mnist-cbam"
REPOSITORY = ROOT / "model_repo"


@pytest.fixture(scope="session")
def make_photos(test_set) -> Callable[..., Path]:
    """Writes so many pictures of the test set as PNG files; every `broken`th is none."""

    def make(folder: Path, count: int, broken: int = 0) -> Path:
        images, _ = test_set
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(count):
            path = folder / f"{number:05d}.png"
            Image.fromarray(images[number % len(images)]).save(path, compress_level=1)
            if broken and number % broken == broken - 1:
                path.write_bytes(path.read_bytes()[:100])  # of 213 or more: at 200 some still decode
        return folder

    return make


@pytest.fixture(scope="session")
def photos(make_photos, tmp_path_factory) -> Path:
    """203 pictures, two of them broken."""
    return make_photos(tmp_path_factory.mktemp("photos") / "in", 203, broken=100)


def score_command(*arguments: Any) -> list[str]:
    return [sys.executable, "-m", "attnserve", "score", *map(str, arguments)]


@pytest.fixture(scope="session")
def score() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs the command to its end."""

    def run(*arguments: Any, **options: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.run(score_command(*arguments), capture_output=True, text=True, timeout=300, **options)

    return run


@pytest.fixture(scope="session")
def embedded() -> list[str]:
    """Arguments that have the pictures scored in the command's own processes, eight at a time."""
    return ["--model", MODEL, "--model-repository", str(REPOSITORY), "--batch-size", "8", "--workers", "2"]


@pytest.fixture(scope="session")
def rows_of() -> Callable[[Path], pa.Table]:
    """All rows of an output, by the shards' names."""

    def read(output: Path) -> pa.Table:
        return pa.concat_tables(pq.read_table(path) for path in sorted(output.glob("*.parquet")))

    return read


@pytest.fixture(scope="session")
def summary_of() -> Callable[[subprocess.CompletedProcess[str]], dict[str, Any]]:
    def read(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return read
