"""Many requests of every kind against one server: does its memory grow, do files stay open?

    python tests/bench/soak.py [--requests 100000] [--callers 8] [--json FILE]

Pictures as pixels and as files, one or several, with and without maps and explanations, over single calls and over
streams, to two models; every answer is checked against the first one for the same picture. The resident memory and the
open files are sampled fifty times; the slope is a least-squares line over the second half, when all caches are full.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import threading
import time
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from attnserve.client import Classification, Client, Explain, MapStyle

ROOT = Path(__file__).parents[2]
MODELS = ("fashion-mnist-cbam", "fashion-mnist-bam")
WAYS: tuple[dict[str, Any], ...] = (
    {},
    {"attention": "summary"},
    {},
    {"explain": Explain()},
    {},
    {"explain": Explain(layers=["layer3"], top_k=2), "maps": MapStyle("overlay")},
    {"attention": "full"},
)
"""What requests ask for, in turn."""
SAMPLES = 50


def resident_mib(pid: int) -> float:
    """Resident memory of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def open_files(pid: int) -> int:
    """Open file descriptors of a process."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def pictures() -> list[np.ndarray | bytes]:
    """Views, larger pixels, PNG and JPEG files."""
    with np.load(ROOT / "tests/data/fashion_mnist_test_1000.npz") as data:
        grey = data["images"][:40]
    views: list[np.ndarray | bytes] = []
    for number, image in enumerate(grey):
        rgb = np.repeat(image[..., None], 3, 2)
        large = Image.fromarray(rgb).resize((150, 100))
        file = io.BytesIO()
        large.save(file, "PNG" if number % 2 else "JPEG")
        views.append((rgb, rgb, np.asarray(large), file.getvalue())[number % 4])
    return views


class Soak:
    """Callers that share a number of requests."""

    def __init__(self, target: str, requests: int) -> None:
        self.target = target
        self.left = requests
        self.wrong: list[str] = []
        self._pictures = pictures()
        self._first: dict[tuple[str, int], float] = {}
        self._lock = threading.Lock()

    def take(self, count: int) -> int:
        """So many of the requests that are left, or fewer."""
        with self._lock:
            count = min(count, self.left)
            self.left -= count
            return count

    def run(self, seed: int) -> None:
        """Ask until none are left."""
        with Client(self.target, timeout_s=60) as client:
            for turn in cycle(range(seed, seed + 120)):
                model, asked = MODELS[turn % 2], WAYS[turn % len(WAYS)]
                count = self.take(50 if turn % 5 == 0 else 1)
                if not count:
                    return
                if count > 1:
                    chosen = [index % len(self._pictures) for index in range(turn, turn + count)]
                    images = (self._pictures[index] for index in chosen)
                    outcomes = client.classify_stream(images, model=model, timeout_s=120, **asked)
                else:
                    chosen = [index % len(self._pictures) for index in range(turn, turn + 1 + turn % 7)]
                    outcomes = client.classify([self._pictures[i] for i in chosen], model=model, **asked)
                for index, outcome in zip(chosen, outcomes, strict=True):
                    self.check(model, index, outcome)

    def check(self, model: str, index: int, outcome: object) -> None:
        """The same picture has the same answer as ever."""
        if not isinstance(outcome, Classification):
            self.wrong.append(str(outcome))
            return
        probability = outcome.predictions[0].probability
        if abs(self._first.setdefault((model, index), probability) - probability) > 1e-5:
            self.wrong.append(f"{model} picture {index}: {probability} instead of {self._first[model, index]}")


def main() -> None:
    """Print the samples' summary; exit 1 where an answer was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--callers", type=int, default=8)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    command = [sys.executable, "-m", "attnserve", "serve", "--model-repository", str(ROOT / "model_repo"),
               "--grpc-address", "127.0.0.1:0", "--http-address", "127.0.0.1:0", "--log-level", "error"]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        soak = Soak(json.loads(server.stdout.readline())["grpc"], args.requests)
        callers = [threading.Thread(target=soak.run, args=(seed,)) for seed in range(args.callers)]
        started, samples = time.monotonic(), []
        for caller in callers:
            caller.start()
        for step in islice(range(args.requests, -1, -max(1, args.requests // SAMPLES)), 1, None):
            while soak.left > step and any(caller.is_alive() for caller in callers):
                time.sleep(0.05)
            samples.append((args.requests - soak.left, resident_mib(server.pid), open_files(server.pid)))
        for caller in callers:
            caller.join()
        seconds = time.monotonic() - started
        server.terminate()
    done, memory, files = map(np.array, zip(*samples, strict=True))
    half = len(samples) // 2
    slope = 1000 * np.polyfit(done[half:], memory[half:], 1)[0]
    print(f"{args.requests} requests in {seconds:.0f} s, {len(soak.wrong)} wrong, exit code {server.returncode}")
    print(f"resident MiB: {memory[0]:.1f} first, {memory[half]:.1f} at half time, {memory[-1]:.1f} last")
    print(f"slope over the second half: {1024 * slope:+.0f} KiB per 1,000 requests")
    print(f"open files: {files.min()} to {files.max()}")
    if args.json:
        args.json.write_text(json.dumps({"samples": samples, "wrong": soak.wrong, "seconds": seconds}) + "\n")
    sys.exit(bool(soak.wrong) or server.returncode)


if __name__ == "__main__":
    main()
