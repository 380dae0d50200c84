"""What is tested is the wheel, not the tree."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest

import attnserve

ROOT = Path(__file__).parents[2]
TREE = ROOT / "service" / "attnserve"


@pytest.fixture(scope="module")
def installed() -> Path:
    folder = Path(attnserve.__file__).parent
    if folder == TREE:
        pytest.skip("an editable install is under test; make test installs the wheel")
    return folder


def sources(folder: Path) -> dict[str, bytes]:
    paths = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc")
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def test_the_tests_run_against_an_installed_wheel_that_equals_the_tree(installed):
    assert sources(installed) == sources(TREE)


@pytest.mark.usefixtures("installed")
def test_the_wheel_holds_the_package_its_types_and_nothing_else():
    files = [str(path) for path in importlib.metadata.files("attnserve")]
    top = {path.split("/")[0] for path in files if not path.startswith("..")}
    assert {name for name in top if not name.endswith(".dist-info")} == {"attnserve"}
    assert "attnserve/py.typed" in files


def test_importing_the_package_imports_nothing_heavy():
    heavy = ("torch", "onnxruntime", "grpc", "numpy", "PIL")
    code = f"import sys, attnserve, attnserve.cli; print([name for name in {heavy!r} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
