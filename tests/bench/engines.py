"""A ResNet-50 with CBAM in every block on the CPU's engines, through the whole service, interleaved in one run.

    python tests/bench/engines.py [--rounds 5] [--images 8] [--callers 2] [--json FILE]

The same random weights are served in float32 and int8, by ONNX Runtime and by OpenVINO, which also computes the float32
file in bfloat16. Each round asks every server once; the figures are medians of ratios to the float32 file on ONNX
Runtime in the same round. The CPU ratio is the steadier one: the load generator shares the machine's cores. Speed only:
what int8 costs in accuracy is measured when it is exported.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from statistics import median

import numpy as np

from attnserve.client import Client
from harness.entries import Entry, export
from harness.processes import Server, attnserve

BY_OPENVINO = ("--provider", "openvino")
WAYS = {
    "ONNX Runtime, float32": ("fp32", ()),
    "ONNX Runtime, int8": ("int8", ()),
    "OpenVINO, float32": ("fp32", BY_OPENVINO),
    "OpenVINO, bfloat16": ("fp32", (*BY_OPENVINO, "--openvino-precision", "bf16")),
    "OpenVINO, int8": ("int8", BY_OPENVINO),
}


def narrow(repository: Path) -> None:
    """Beside the entry `fp32` another, `int8`, of the same graph."""
    from attnserve.card import Card, sha256_of
    from attnserve.export.precision import Precision, narrowed

    source, folder = repository / "fp32", repository / "int8"
    (folder / "1").mkdir(parents=True)
    for name in ("config.pbtxt", "labels.txt"):
        (folder / name).write_text((source / name).read_text().replace('"fp32"', '"int8"'))
    pictures = np.random.default_rng(0).integers(0, 256, (32, 224, 224, 3), np.uint8)
    (folder / "1" / "model.onnx").write_bytes(
        narrowed((source / "1" / "model.onnx").read_bytes(), Precision("int8", pictures))
    )
    card = json.loads(Card.from_json((source / "1" / "model.json").read_text()).to_json())
    card |= {"name": "int8", "precision": "int8", "explain": [],
             "files": {"model.onnx": sha256_of(folder / "1" / "model.onnx")}}  # fmt: skip
    (folder / "1" / "model.json").write_text(json.dumps(card))


def measure(servers: dict[str, Server], args: argparse.Namespace) -> dict[str, tuple[float, float, float]]:
    """Way -> medians of (images per second, that and CPU per image relative to the first way)."""
    pictures = list(np.random.default_rng(1).integers(0, 256, (args.images, 224, 224, 3), np.uint8))
    found: dict[str, list[tuple[float, float, float]]] = {way: [] for way in servers}
    with ExitStack() as stack:
        clients = {way: stack.enter_context(Client(server.target, timeout_s=600)) for way, server in servers.items()}
        pool = stack.enter_context(ThreadPoolExecutor(args.callers))
        for turn in range(args.rounds + 1):
            first = (0.0, 0.0)
            for way, server in servers.items():
                cpu, began = server.cpu_s(), time.perf_counter()
                calls = [pool.submit(clients[way].classify, pictures, model=WAYS[way][0], top_k=1)
                         for _ in range(2 * args.callers)]  # fmt: skip
                count = sum(len(call.result()) for call in calls)
                rate, each = count / (time.perf_counter() - began), (server.cpu_s() - cpu) / count
                first = (rate, each) if first == (0.0, 0.0) else first
                if turn:  # the first round warms up
                    found[way].append((rate, rate / first[0], first[1] / each))
    return {way: tuple(map(median, zip(*rows, strict=True))) for way, rows in found.items()}  # type: ignore[misc]


def main() -> int:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--callers", type=int, default=2)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        repository = Path(folder)
        export(repository, "fp32", 50, 224)
        narrow(repository)
        servers = {
            way: stack.enter_context(attnserve(Entry(repository, model), flags=flags))
            for way, (model, flags) in WAYS.items()
        }
        found = measure(servers, args)
    print(f"ResNet-50 with CBAM in every block, 224 px, {args.images} images a request, {args.callers} callers, "
          f"{args.rounds} rounds, load average {os.getloadavg()[0]:.1f}\n")  # fmt: skip
    print("| engine | images/s | throughput | pictures per CPU second |\n|---|---|---|---|")
    for way, (rate, faster, cheaper) in found.items():
        print(f"| {way} | {rate:.1f} | {faster:.2f} | {cheaper:.2f} |")
    if args.json:
        args.json.write_text(json.dumps(found, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
