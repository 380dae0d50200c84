"""What the server does when more is asked of it than it can do: an open loop of requests, each with a deadline.

    python tests/bench/overload.py [--loads 0.5,0.8,1,2,5,10] [--engine-ms 80] [--deadline-ms 1000] [--seconds 10]
    python tests/bench/overload.py --engine-ms 0 --deadline-ms 100     # the small net itself
    python tests/bench/overload.py --clients 24 --images 8 --deadline-ms 2000    # many clients with large requests

Requests come at random times (a Poisson process) at multiples of the capacity, whether or not earlier ones were
answered. With `--engine-ms` every image takes that long (asleep, so that the generator has the machine for itself) on
two workers, about what a ResNet-50 with CBAM takes on one core; 0 leaves the engine as it is, and then the generator,
which shares the machine, sets the limit: the offered load is what really was sent. Goodput counts answers that came
within their deadline and within the run.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path

import grpc
import numpy as np

from attnserve.v1 import attention_pb2 as pb
from harness.processes import cpu_s

ROOT = Path(__file__).parents[2]
MODEL = "fashion-mnist-cbam"
METHOD = "/attnserve.v1.AttentionService/Classify"
WORKERS = 2


@dataclass
class Row:
    """One offered load."""

    load: float
    offered_per_s: float
    goodput_per_s: float
    p50_ms: float
    p99_ms: float
    refused: float
    expired: float
    late: float
    server_cpu_us_per_request: float


@dataclass
class Seen:
    """What became of the requests of one run."""

    codes: Counter[str] = field(default_factory=Counter)
    latencies: list[float] = field(default_factory=list)  # seconds, of the answered ones
    late: int = 0
    good: int = 0  # in time, and before the run was over


async def offer(target: str, rate: float, args: argparse.Namespace, payload: bytes) -> tuple[Seen, int]:
    """Send requests of clients at random; returns what came of them, and how many were sent."""
    seconds, deadline_s = args.seconds, args.deadline_ms / 1e3
    seen, tasks, random = Seen(), set(), np.random.default_rng(0)
    async with grpc.aio.insecure_channel(target) as channel:
        call = channel.unary_unary(METHOD)

        async def one() -> None:
            started = time.perf_counter()
            try:
                await call(payload, timeout=deadline_s, metadata=[("x-client-id", f"{random.integers(args.clients)}")])
            except grpc.aio.AioRpcError as error:
                seen.codes[error.code().name] += 1
                return
            took = time.perf_counter() - started
            seen.codes["OK"] += 1
            seen.latencies.append(took)
            seen.late += took > deadline_s
            seen.good += took <= deadline_s and started + took <= start + seconds

        await channel.channel_ready()
        start, due, sent = time.perf_counter(), 0.0, 0
        while due < seconds:
            due += random.exponential(1 / rate)
            if (wait := start + due - time.perf_counter()) > 0:
                await asyncio.sleep(wait)
            elif sent % 16 == 0:
                await asyncio.sleep(0)  # behind: let answers in
            task = asyncio.ensure_future(one())
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            sent += 1
            if time.perf_counter() - start > seconds:
                break
        if tasks:
            await asyncio.wait(tasks)
    return seen, sent


def measure(target: str, pid: int, load: float, capacity: float, args: argparse.Namespace, payload: bytes) -> Row:
    """One row of the table."""
    before = cpu_s(pid)
    seen, sent = asyncio.run(offer(target, load * capacity, args, payload))
    cpu = cpu_s(pid) - before
    p50, p99 = np.percentile(seen.latencies or [0.0], [50, 99]) * 1e3
    strange = set(seen.codes) - {"OK", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED"}
    if strange:
        raise SystemExit(f"unexpected answers: {seen.codes}")
    return Row(
        load,
        sent / args.seconds,
        seen.good / args.seconds,
        p50,
        p99,
        seen.codes["RESOURCE_EXHAUSTED"] / sent,
        seen.codes["DEADLINE_EXCEEDED"] / sent,
        seen.late / sent,
        1e6 * cpu / sent,
    )


def capacity_of(target: str, args: argparse.Namespace, payload: bytes) -> float:
    """Requests per second of a closed loop that always keeps enough of them in the house."""

    async def run() -> float:
        async with grpc.aio.insecure_channel(target) as channel:
            call = channel.unary_unary(METHOD)
            end, done = time.perf_counter() + min(args.seconds, 4), 0

            async def loop() -> None:
                nonlocal done
                while time.perf_counter() < end:
                    await call(payload, timeout=60)
                    done += 1

            started = time.perf_counter()
            await asyncio.gather(*(loop() for _ in range(32)))
            return done / (time.perf_counter() - started)

    return asyncio.run(run())


def serve(engine_ms: float, transport: str) -> None:
    """The server, its engine slowed down; runs until it is told to stop."""
    from attnserve import engines
    from attnserve.config import ServeConfig
    from attnserve.server import serve as run
    from attnserve.session import OnnxBackend

    class Slow(OnnxBackend):
        """Takes its time, asleep; its warm-up must see that."""

        def __init__(self, *args):  # type: ignore[no-untyped-def]
            super().__init__(*args)
            self._clock = time.perf_counter

        def run(self, images, outputs):  # type: ignore[no-untyped-def]
            time.sleep(engine_ms / 1e3 * len(images))
            return super().run(images, outputs)

    if engine_ms:
        engines.OnnxBackend = Slow  # type: ignore[misc]
    local = "127.0.0.1:0"
    repository = str(ROOT / "model_repo")
    config = ServeConfig(
        model_repository=repository,
        grpc_address=local,
        http_address=local,
        transport=transport,
        model_control_mode="explicit",
        load_models=MODEL,
        workers=WORKERS if engine_ms else 0,
        log_level="error",
    )
    sys.exit(run(config))


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loads", default="0.5,0.8,1,2,5,10")
    parser.add_argument("--engine-ms", type=float, default=80.0)
    parser.add_argument("--deadline-ms", type=float, default=1000.0)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--transport", default="grpcio")
    parser.add_argument("--clients", type=int, default=1)
    parser.add_argument("--images", type=int, default=1, help="of one request")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(args.engine_ms, args.transport)
    pixels = pb.RawImage(pixels=bytes(28 * 28 * 3), height=28, width=28)
    payload = pb.ClassifyRequest(model=MODEL, images=[pb.Image(raw=pixels)] * args.images, top_k=1).SerializeToString()
    command = [sys.executable, __file__, "--serve", "--engine-ms", str(args.engine_ms), "--transport", args.transport]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        target = json.loads(server.stdout.readline())["grpc"]
        try:
            capacity = (
                WORKERS * 1e3 / args.engine_ms / args.images if args.engine_ms else capacity_of(target, args, payload)
            )
            print(f"capacity {capacity:.1f} requests/s of {args.images} images, {args.clients} clients, "
                  f"deadline {args.deadline_ms:g} ms")  # fmt: skip
            print(
                "| load | offered/s | goodput/s | p50 ms | p99 ms | refused | expired | late | server CPU us/request |"
            )
            print("|---|---|---|---|---|---|---|---|---|")
            rows = []
            for load in map(float, args.loads.split(",")):
                row = measure(target, server.pid, load, capacity, args, payload)
                rows.append(row)
                print(
                    f"| {load:g} | {row.offered_per_s:.1f} | {row.goodput_per_s:.1f} | {row.p50_ms:.0f} |"
                    f" {row.p99_ms:.0f} | {row.refused:.1%} | {row.expired:.1%} | {row.late:.1%} |"
                    f" {row.server_cpu_us_per_request:.0f} |",
                    flush=True,
                )
        finally:
            server.terminate()
    if args.json:
        report = {"capacity_per_s": capacity, "deadline_ms": args.deadline_ms, "rows": [asdict(row) for row in rows]}
        args.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
