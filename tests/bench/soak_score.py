"""Many rows through one scoring job: does the memory of its processes grow?

    python tests/bench/soak_score.py [--pictures 100000] [--workers 2] [--most-mib 16] [--json FILE]

The committed test set's pictures again and again, with a broken one in every hundred, listed in a manifest and scored
into shards of a hundredth. The resident memory of the coordinating process and of its workers is read when a fifth of
the shards is there, when all caches and pools are full, and when all but one are; ends with 1 where one of them grew by
more than `--most-mib`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from harness.entries import ROOT
from harness.processes import family, rss_mib

MODEL = "fashion-mnist-cbam"
SHARDS = 100
SAMPLED = {"at 20 %": 20, "at the end": SHARDS - 1}
"""Shards that are there at each moment."""


def manifest(folder: Path, count: int) -> Path:
    """So many lines; one in a hundred names a broken picture."""
    with np.load(ROOT / "tests/data/fashion_mnist_test_1000.npz") as data:
        for number, image in enumerate(data["images"]):
            Image.fromarray(image).save(folder / f"{number}.png", compress_level=1)
            if number % 100 == 99:
                (folder / f"{number}.png").write_bytes(b"broken")
    path = folder / "many.jsonl"
    path.write_text("".join(json.dumps({"uri": f"{number % 1000}.png"}) + "\n" for number in range(count)))
    return path


def sampled(job: subprocess.Popen[str], output: Path) -> dict[str, list[float]]:
    """Resident MiB at each moment, of the coordinating process and then of its children."""
    found = {}
    for moment, shards in SAMPLED.items():
        while not (output / f"shard-{shards - 1:05d}.parquet").exists():
            if job.poll() is not None:
                raise SystemExit(f"the job ended before {shards} shards were seen: too few pictures, or it failed")
            time.sleep(0.01)
        found[moment] = [rss_mib(pid) for pid in family(job.pid)]
    return found


def main() -> int:
    """Print what was resident; 1 where it grew."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--most-mib", type=float, default=16.0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "out")
        command = [sys.executable, "-m", "attnserve", "score", str(manifest(Path(folder), args.pictures)),
                   "--output", str(output), "--model", MODEL, "--model-repository", str(ROOT / "model_repo"),
                   "--workers", str(args.workers), "--shard-rows", str(-(-args.pictures // SHARDS)),
                   "--quiet", "--json"]  # fmt: skip
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as job:
            found = sampled(job, output)
            assert job.stdout is not None
            summary = json.loads(job.stdout.read())
    assert (summary["pictures"], summary["errors"]) == (args.pictures, args.pictures // 100)
    first, last = found.values()
    grown = [round(after - before, 1) for before, after in zip(first, last, strict=True)]
    for moment, sizes in found.items():
        print(f"{moment}: {', '.join(f'{size:.0f}' for size in sizes)} MiB (the job, then its other processes)")
    print(f"{args.pictures} rows in {summary['seconds']:.0f} s, {summary['pictures_per_s']:.0f}/s; grown by "
          f"{', '.join(map(str, grown))} MiB")  # fmt: skip
    if args.json:
        args.json.write_text(json.dumps({"rows": args.pictures, "mib": found, "grown_mib": grown}, indent=2) + "\n")
    return int(max(grown) > args.most_mib)


if __name__ == "__main__":
    sys.exit(main())
