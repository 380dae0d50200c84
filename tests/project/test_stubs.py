"""The committed protobuf stubs are what the .proto files say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_generating_the_stubs_anew_changes_nothing(tmp_path):
    subprocess.run([ROOT / "protos/generate.sh", sys.executable, str(tmp_path)], check=True)
    fresh = {path.relative_to(tmp_path): path.read_text() for path in tmp_path.rglob("*_pb2*")}
    committed = (ROOT / "service/attnserve").rglob("*_pb2*")
    kept = {p.relative_to(ROOT / "service"): p.read_text() for p in committed if p.suffix in (".py", ".pyi")}
    assert len(fresh) == 7
    assert fresh == kept
