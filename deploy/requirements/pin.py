"""Writes the pinned requirements of the container images, each package with the hash of the wheel that is installed.

    python deploy/requirements/pin.py

Asks pip what it would install for CPython 3.11 on Linux for x86-64, whatever runs this; installs nothing.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
BASE: list[str] = PROJECT["project"]["dependencies"]
EXTRAS: dict[str, list[str]] = PROJECT["project"]["optional-dependencies"]
SERVING = [*EXTRAS["native"], *EXTRAS["rest"], *EXTRAS["otel"], *EXTRAS["signatures"]]
IMAGES = {
    "serve-cpu": [*BASE, *EXTRAS["cpu"], *SERVING],
    "serve-cuda": [*BASE, *EXTRAS["gpu"], *SERVING],
    "score-cpu": [*BASE, *EXTRAS["cpu"], *EXTRAS["score"]],
    "build": [*PROJECT["build-system"]["requires"], "cyclonedx-bom>=7"],
}
PLATFORMS = [f"manylinux_2_{glibc}_x86_64" for glibc in (36, 35, 34, 31, 28, 27, 24, 17)] + ["manylinux2014_x86_64"]


def pinned(wanted: list[str]) -> list[str]:
    """One line for each package that pip would install."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed", "--report", "-",
               "--only-binary=:all:", "--python-version", "3.11", "--implementation", "cp", "--target", "nowhere",
               *(word for platform in PLATFORMS for word in ("--platform", platform)), *wanted]  # fmt: skip
    report = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    lines = []
    for package in report["install"]:
        name, version = package["metadata"]["name"], package["metadata"]["version"]
        digest = package["download_info"]["archive_info"]["hashes"]["sha256"]
        lines.append(f"{re.sub('[-_.]+', '-', name).lower()}=={version} --hash=sha256:{digest}")
    return sorted(lines)


def main() -> int:
    """Write a file for each image, and one for what builds them."""
    for image, wanted in IMAGES.items():
        lines = pinned(wanted)
        (HERE / f"{image}.txt").write_text("# Written by pin.py; not edited by hand.\n" + "\n".join(lines) + "\n")
        print(f"{image}: {len(lines)} packages")
    return 0


if __name__ == "__main__":
    sys.exit(main())
