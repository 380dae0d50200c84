"""The demo works, as `make demo` runs it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parents[2]


def test_the_demo_classifies_draws_measures_and_stops_cleanly():
    demo = [sys.executable, str(ROOT / "deploy/demo/run.py")]
    run = subprocess.run(demo, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[-1] == "demo: ok, 10 pictures x 2 models, overlays in demo-output/"
    overlays = list((ROOT / "demo-output").rglob("*.attention.png"))
    assert len(overlays) == 20
    for overlay in overlays:
        with Image.open(overlay) as picture:
            assert min(picture.size) > 400
            picture.verify()
