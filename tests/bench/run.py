"""Throughput and latency of the server beside the ceiling of raw ONNX Runtime, interleaved in one run.

    python tests/bench/run.py [--model M] [--pairs 7] [--seconds 2] [--json FILE]

Each pair runs the ceiling (one session, one thread per core, batches of 32) and then the server under one load, so that
noise of the machine hits both. The load generator shares the machine's cores: the wall-clock share is what is left of
them, the CPU share (ONNX Runtime's CPU per image / the server's CPU per image) is the steadier figure. Every answer is
checked; an error ends the run.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from attnserve.client import Client
from attnserve.cores import available_cores

ROOT = Path(__file__).parents[2]
LOADS = [(1, 1), (1, 4), (1, 16), (8, 4), (32, 4)]
"""(images per request, concurrent callers)"""

TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass
class Row:
    """Medians over the pairs of one load."""

    images_per_request: int
    concurrency: int
    images_per_s: float
    ceiling_images_per_s: float
    wall_share: float
    cpu_share: float
    server_cpu_us_per_image: float
    p50_ms: float
    p95_ms: float
    p99_ms: float


def for_seconds(seconds: float, threads: int, work: Callable[[int], int]) -> tuple[float, list[float]]:
    """Call `work(thread)` over and over; images per second and the latency of each call in ms."""
    images = [0] * threads
    latencies: list[list[float]] = [[] for _ in range(threads)]
    end = time.perf_counter() + seconds

    def loop(index: int) -> None:
        while (started := time.perf_counter()) < end:
            images[index] += work(index)
            latencies[index].append((time.perf_counter() - started) * 1e3)

    started = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(loop, range(threads)))  # raises what a thread raised
    return sum(images) / (time.perf_counter() - started), [value for one in latencies for value in one]


def cpu_s(pid: int) -> float:
    """CPU seconds of a process, user and system."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


def measure(model: str, target: str, pid: int, images: int, concurrency: int, pairs: int, seconds: float) -> Row:
    """One load, `pairs` times beside the ceiling."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    path = ROOT / "model_repo" / model / "1" / "model.onnx"
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    height, width = session.get_inputs()[0].shape[1:3]
    batch: NDArray[np.uint8] = np.random.default_rng(0).integers(0, 256, (32, height, width, 3), np.uint8)

    def raw(_: int) -> int:
        return len(session.run(["probabilities"], {"images": batch})[0])

    clients = [Client(target) for _ in range(concurrency)]
    pictures = list(batch[:images])

    def served(index: int) -> int:
        return len(clients[index].classify(pictures, model=model, top_k=1))

    figures, latencies = [], []
    for_seconds(0.5, concurrency, served)
    for _ in range(pairs):
        before = time.process_time()
        ceiling, calls = for_seconds(seconds, available_cores(), raw)
        ceiling_cpu = (time.process_time() - before) / (32 * len(calls))
        before = cpu_s(pid)
        rate, calls = for_seconds(seconds, concurrency, served)
        server_cpu = (cpu_s(pid) - before) / (images * len(calls))
        figures.append((rate, ceiling, rate / ceiling, ceiling_cpu / server_cpu, server_cpu * 1e6))
        latencies += calls
    for client in clients:
        client.close()
    p50, p95, p99 = np.percentile(latencies, [50, 95, 99])
    rate, ceiling, wall_share, cpu_share, cpu_us = map(median, zip(*figures, strict=True))
    return Row(images, concurrency, rate, ceiling, wall_share, cpu_share, cpu_us, p50, p95, p99)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="fashion-mnist-cbam")
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    command = [sys.executable, "-m", "attnserve", "serve", "--model-repository", str(ROOT / "model_repo"),
               "--grpc-address", "127.0.0.1:0", "--http-address", "127.0.0.1:0"]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        assert server.stdout is not None
        target = json.loads(server.stdout.readline())["grpc"]
        try:
            rows = [measure(args.model, target, server.pid, *load, args.pairs, args.seconds) for load in LOADS]
        finally:
            server.terminate()
    machine = {
        "machine": platform.processor() or platform.machine(),
        "cores": available_cores(),
        "load average": os.getloadavg()[0],
        **{name: version(name) for name in ("attnserve", "onnxruntime", "grpcio", "numpy")},
    }
    report(args.model, rows, machine)
    if args.json:
        args.json.write_text(json.dumps({"model": args.model, "machine": machine, "rows": [asdict(r) for r in rows]}))
    return 0


def report(model: str, rows: list[Row], machine: dict[str, object]) -> None:
    """A Markdown table."""
    print(f"{model}; " + ", ".join(f"{name} {value}" for name, value in machine.items()) + "\n")
    columns = ("images/request", "callers", "images/s", "ceiling", "wall share", "CPU share", "server CPU us/image",
               "p50 ms", "p95 ms", "p99 ms")  # fmt: skip
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    for row in rows:
        shown = (row.images_per_request, row.concurrency, f"{row.images_per_s:.0f}", f"{row.ceiling_images_per_s:.0f}",
                 f"{row.wall_share:.2f}", f"{row.cpu_share:.2f}", f"{row.server_cpu_us_per_image:.0f}",
                 f"{row.p50_ms:.2f}", f"{row.p95_ms:.2f}", f"{row.p99_ms:.2f}")  # fmt: skip
        print(f"| {' | '.join(map(str, shown))} |")


if __name__ == "__main__":
    sys.exit(main())
