"""What batch scoring costs beside the ceiling and a plain PyTorch DataLoader loop, interleaved in one run.

    python tests/bench/score.py [--pictures FOLDER|TAR] [--model NAME] [--size WxH] [--count N] [--rounds 5]
                                [--workers W] [--batch-size B] [--json FILE]

Without `--pictures` they are those of the committed test set. `--model resnet50-cbam` is a ResNet-50 with CBAM in every
block at 224 px and random weights, exported once (a minute); the pictures are then written anew as JPEG files of
500 x 375 unless `--size` says otherwise.

Each round runs everybody twice, with many pictures and with few: the difference is what pictures cost, the rest is
start-up (processes, imports, models), which a job pays once. Times are medians over the rounds, and shares and ratios
medians of those of each round. On a CPU decoding and inference share the cores, so the ceiling is not the slower of the
two but cores / (CPU of decoding + CPU of inference) pictures a second. The share of the CPU time says the same without
the noise of other programs: what decoding and inference alone take, of what scoring takes with all its processes.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
from PIL import Image

from attnserve.cores import available_cores
from attnserve.scoring.items import is_picture
from harness.cells import LARGE
from harness.entries import ROOT, Entry, entry

RIVALS = Path(__file__).with_name("score_rivals.py")
CHUNK_BATCHES = 8  # of scoring; with a chunk for each worker all of them start
PHOTO = "500x375"
SCORE, DECODE, INFER = "attnserve score", "decoding alone", "inference alone"
LOOPS = {"DataLoader loop": 0, "DataLoader loop, one thread": 1}


@dataclass(frozen=True)
class Cost:
    """Seconds of one run, or of one picture."""

    wall: float
    cpu: float

    def __sub__(self, other: Cost) -> Cost:
        return Cost(self.wall - other.wall, self.cpu - other.cpu)

    def by(self, number: int) -> Cost:
        """Divided."""
        return Cost(self.wall / number, self.cpu / number)


def run(command: Sequence[str]) -> Cost:
    """A command to its end, with the CPU time of all its processes."""
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, command
    return Cost(time.perf_counter() - began, usage.ru_utime + usage.ru_stime)


@dataclass(frozen=True)
class Bench:
    """Everybody on the same pictures."""

    model: Entry
    workers: int
    batch_size: int

    def command(self, who: str, listed: Path, folder: str) -> list[str]:
        """Who is to take the list."""
        sizes = ["--workers", str(self.workers), "--batch-size", str(self.batch_size)]
        if who == SCORE:
            return [sys.executable, "-m", "attnserve", "score", str(listed), "--output", folder, "--quiet",
                    "--model", self.model.name, "--model-repository", str(self.model.repository),
                    "--provider", "cpu", *sizes]  # fmt: skip
        rival = {DECODE: "decode", INFER: "infer"}.get(who, "loop")
        threads = ["--threads", str(LOOPS[who])] if who in LOOPS else []
        plain = listed.with_suffix(".txt")
        return [sys.executable, str(RIVALS), rival, str(self.model.file.parent), str(plain), *sizes, *threads]

    def measure(self, who: str, many: Path, few: Path, more: int) -> tuple[Cost, Cost]:
        """Of one picture, and of a start with a few."""
        with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
            start = run(self.command(who, few, one))
            return (run(self.command(who, many, other)) - start).by(more), start


def write_list(folder: Path, name: str, paths: Sequence[Path], count: int) -> Path:
    """So many pictures, the same again and again if need be, as a manifest and as plain lines."""
    lines = [str(path) for path in itertools.islice(itertools.cycle(paths), count)]
    (folder / f"{name}.txt").write_text("\n".join(lines) + "\n")
    manifest = folder / f"{name}.jsonl"
    manifest.write_text("".join(json.dumps({"uri": line}) + "\n" for line in lines))
    return manifest


def pictures(source: Path | None, size: str | None, folder: Path) -> list[Path]:
    """The files; those of a tar file, of the test set and of another size are written anew."""
    if source is None:
        with np.load(ROOT / "tests/data/fashion_mnist_test_1000.npz") as data:
            for number, image in enumerate(data["images"]):
                Image.fromarray(image).save(folder / f"{number:05d}.png")
        source = folder
    elif source.is_file():
        with tarfile.open(source) as archive:
            archive.extractall(folder, filter="data")
        source = folder
    found = sorted(path for path in source.rglob("*") if is_picture(path.name))
    if size is None:
        return found
    width, height = map(int, size.split("x"))
    (folder / "sized").mkdir()
    written = []
    for number, path in enumerate(found[:500]):
        written.append(folder / "sized" / f"{number:05d}.jpg")
        with Image.open(path) as image:
            image.convert("RGB").resize((width, height)).save(written[-1], quality=90)
    return written


def shown(rounds: dict[str, list[tuple[Cost, Cost]]], cores: int) -> str:
    """The tables."""
    lines = ["| | pictures/s | CPU ms a picture | start-up s | start-up CPU s |", "|---|---|---|---|---|"]
    for who, each in rounds.items():
        rate, cpu = median(1 / cost.wall for cost, _ in each), median(1e3 * cost.cpu for cost, _ in each)
        start, start_cpu = median(start.wall for _, start in each), median(start.cpu for _, start in each)
        lines.append(f"| {who} | {rate:.0f} | {cpu:.3f} | {start:.1f} | {start_cpu:.1f} |")
    alone = [a.cpu + b.cpu for (a, _), (b, _) in zip(rounds[DECODE], rounds[INFER], strict=True)]
    mine = [cost for cost, _ in rounds[SCORE]]
    lines += ["", f"ceiling of both on {cores} cores: {median(cores / cpu for cpu in alone):.0f} pictures/s"]
    by_cpu = median(cpu / cost.cpu for cpu, cost in zip(alone, mine, strict=True))
    by_wall = median(cpu / cores / cost.wall for cpu, cost in zip(alone, mine, strict=True))
    lines.append(f"share of the ceiling: {by_cpu:.1%} by CPU time, {by_wall:.1%} by the clock")
    for who in LOOPS:
        pairs = [(theirs, my) for (theirs, _), my in zip(rounds[who], mine, strict=True)]
        lines.append(f"against the {who}: {median(a.wall / b.wall for a, b in pairs):.2f} times as fast, "
                     f"{median(a.cpu / b.cpu for a, b in pairs):.2f} by CPU time")  # fmt: skip
    return "\n".join(lines)


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=Path)
    parser.add_argument("--model", default="fashion-mnist-cbam")
    parser.add_argument("--size", metavar="WxH", help="of the JPEG files that are written (default: as they are)")
    parser.add_argument("--count", type=int, help="pictures of a long run (default: 8000; of the ResNet-50 256)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=available_cores())
    parser.add_argument("--batch-size", type=int, help="default: 32; of the ResNet-50 8")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    large = args.model == LARGE
    model = entry(LARGE) if large else Entry(ROOT / "model_repo", args.model)
    batch_size = args.batch_size or (8 if large else 32)
    bench, few = Bench(model, args.workers, batch_size), args.workers * batch_size * CHUNK_BATCHES
    more = args.count or (256 if large else 8000)
    names = [SCORE, DECODE, INFER, *LOOPS]
    rounds: dict[str, list[tuple[Cost, Cost]]] = {who: [] for who in names}
    with tempfile.TemporaryDirectory() as folder:
        paths = pictures(args.pictures, args.size or (PHOTO if large else None), Path(folder))
        lists = [write_list(Path(folder), name, paths, count) for name, count in (("many", few + more), ("few", few))]
        for turn in range(args.rounds):
            for who in names if turn % 2 else reversed(names):
                rounds[who].append(bench.measure(who, *lists, more))
    print(f"{model.name}, {len(paths)} files, {few + more} pictures, {args.workers} workers, batches of {batch_size}, "
          f"{args.rounds} rounds, load average {os.getloadavg()[0]:.1f}\n")  # fmt: skip
    print(shown(rounds, min(args.workers, available_cores())))
    if args.json:
        found = {who: [[vars(cost), vars(start)] for cost, start in each] for who, each in rounds.items()}
        args.json.write_text(json.dumps(found, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
