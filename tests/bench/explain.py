"""What evidence costs: throughput and server CPU per image by what a request asks for, interleaved in one run.

    python tests/bench/explain.py [--depth 50] [--size 224] [--rounds 5] [--images 8] [--callers 2] [--json FILE]

A ResNet of that depth with CBAM in every block and random weights is exported (`explain/last.onnx` and `layer3`) and
served; each round sends the same pictures once in each way. The figures are medians of ratios to the same round's
answers without maps. The CPU ratio is the steadier one: the load generator shares the machine's cores. The entry is
exported anew for each run, which takes a minute for a ResNet-50.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from attnserve.client import Client, Explain, MapStyle
from harness.entries import export
from harness.processes import cpu_s

WAYS: dict[str, dict[str, Any]] = {
    "no maps": {},
    "attention, summary": {"attention": "summary"},
    "attention, full": {"attention": "full"},
    "Grad-CAM, last": {"explain": Explain()},
    "Grad-CAM, last, overlay": {"explain": Explain(), "maps": MapStyle("overlay")},
    "Grad-CAM, layer3": {"explain": Explain(layers=["layer3"])},
}


def measure(target: str, pid: int, size: int, args: argparse.Namespace) -> dict[str, tuple[float, float]]:
    """Way -> medians of (images per second, server CPU seconds per image), each relative to no maps."""
    pictures = list(np.random.default_rng(0).integers(0, 256, (args.images, size, size, 3), np.uint8))
    ratios: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
    with Client(target, timeout_s=600) as client, ThreadPoolExecutor(args.callers) as pool:
        for turn in range(args.rounds + 1):
            base = (0.0, 0.0)
            for way, asked in WAYS.items():
                cpu, began = cpu_s(pid), time.perf_counter()
                calls = [pool.submit(client.classify, pictures, model="net", top_k=1, **asked)
                         for _ in range(args.callers * args.repeats)]  # fmt: skip
                answers = [answer for call in calls for answer in call.result()]
                found = (len(answers) / (time.perf_counter() - began), (cpu_s(pid) - cpu) / len(answers))
                for answer in answers:
                    assert bool(answer.attention) == ("attention" in asked)
                    assert bool(answer.explanations) == ("explain" in asked)
                base = found if not asked else base
                if turn:  # the first round loads and warms
                    ratios[way].append((found[0] / base[0], found[1] / base[1]))
    return {way: (median(r for r, _ in each), median(c for _, c in each)) for way, each in ratios.items()}


def main() -> int:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depth", type=int, default=50)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--callers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=1, help="requests of each caller in a round")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        export(Path(folder), "net", args.depth, args.size, ("layer3",))
        command = [sys.executable, "-m", "attnserve", "serve", "--model-repository", folder,
                   "--grpc-address", "127.0.0.1:0", "--http-address", "127.0.0.1:0"]  # fmt: skip
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
            assert server.stdout is not None
            try:
                target = json.loads(server.stdout.readline())["grpc"]
                found = measure(target, server.pid, args.size, args)
            finally:
                server.terminate()
    print(f"ResNet-{args.depth} with CBAM in every block, {args.size} px, {args.images} images a request, "
          f"{args.callers} callers, {args.rounds} rounds, load average {os.getloadavg()[0]:.1f}\n")  # fmt: skip
    print("| asked for | images/s | CPU per image |\n|---|---|---|")
    for way, (rate, cpu) in found.items():
        print(f"| {way} | {rate:.3f} | {cpu:.3f} |")
    if args.json:
        args.json.write_text(json.dumps(found, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
