"""What a GPU can do and how much of it is served: raw ONNX Runtime, then the server under load, in one run.

    python tests/bench/gpu.py [--minutes 8] [--repository DIR] [--json FILE] [--markdown FILE]
    python tests/bench/gpu.py --export DIR          # only make the entries, on a machine that has torch
    python tests/bench/gpu.py --provider cpu --quick

The ceiling is ONNX Runtime with its input lying on the GPU already: nothing is copied and nothing decoded. The served
share is the server's images per second / the best ceiling of the same file. Load comes from processes of this machine,
which share its cores; their number is reported. Needs no network. Figures of a run without `--quick` on a quiet machine
are worth keeping; those of a CPU say only that the script works.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from attnserve.card import CARD_NAME, Card
from attnserve.cores import available_cores
from attnserve.gpu.nvml import open_nvml
from attnserve.session import choose_provider
from gpu_load import Crowd, Load, Outcome
from gpu_nets import export, nets
from gpu_raw import Best, Row, ceilings

SHARES = (0.5, 0.8, 0.95)
UNARY_CALLERS = 16
"""Of each process, with one image per request: enough for two of the largest batches to be on their way."""

PACED_CALLERS = 32
FORMS = [(1, "raw"), (8, "raw"), (32, "raw"), (1, "jpeg"), (8, "jpeg"), (32, "jpeg")]


class Busy:
    """Mean utilisation of the first GPU that NVML knows while it is entered; None without one."""

    def __init__(self) -> None:
        self._nvml = open_nvml()
        self.mean: float | None = None

    def __enter__(self) -> Busy:
        self._over = threading.Event()
        self._seen: list[float] = []
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self.mean = float(np.mean(self._seen)) if self._seen else None

    def _watch(self) -> None:
        while self._nvml is not None and not self._over.wait(0.2):
            self._seen += [gpu.busy for gpu in self._nvml.read()[:1]]


class Bench:
    """A server under load.

    Args:
        http: Of the server's metrics.
        best: The ceiling of each model that is served.
        seconds: Of each load.
        rounds: Into which a closed loop is cut, with the ceiling between them.
    """

    def __init__(self, crowd: Crowd, http: str, best: dict[str, Best], seconds: float, rounds: int) -> None:
        self._crowd = crowd
        self._http = http
        self._best = best
        self._seconds = seconds
        self._rounds = rounds
        self._busy = Busy()

    def closed(self, load: Load) -> Row:
        """As much as gets answered, and its share of the ceiling: medians of interleaved rounds."""
        rows = []
        for _ in range(self._rounds):
            ceiling = self._best[load.model].images_per_s(min(1.0, self._seconds / 4))
            row = self._row(load, self._seconds / self._rounds)
            rows.append({**row, "ceiling": ceiling, "share": row["images/s"] / ceiling})
        return sorted(rows, key=lambda row: row["share"])[len(rows) // 2]

    def open(self, load: Load) -> Row:
        """At the load's own pace."""
        return self._row(load, self._seconds)

    def _row(self, load: Load, seconds: float) -> Row:
        before = counts(self._http, load.model)
        with self._busy as busy:
            outcome: Outcome = self._crowd.drive(load, seconds)
        after = counts(self._http, load.model)
        count, images, busy_s, cpu_s = (now - then for now, then in zip(after, before, strict=True))
        return {
            "model": load.model,
            "images/request": load.images,
            "form": load.form,
            "explain": load.explain,
            "images/s": outcome.images_per_s,
            "p50 ms": outcome.percentile_ms(50),
            "p95 ms": outcome.percentile_ms(95),
            "p99 ms": outcome.percentile_ms(99),
            "images/batch": images / count,
            "ms/batch": busy_s / count * 1e3,
            "server CPU us/image": cpu_s / outcome.images * 1e6,
            "GPU busy": busy.mean,
        }


def paced(bench: Bench, load: Load, full: float, images: int) -> list[Row]:
    """p99 at shares of what a closed loop reached."""
    rows = []
    for share in SHARES:
        at = Load(load.model, images, load.form, callers=PACED_CALLERS, rate=share * full / images, size=load.size)
        rows.append({"load": share, "wanted images/s": share * full, **bench.open(at)})
    return rows


@contextmanager
def serving(repository: Path, models: list[str], args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A server of those models: what it announced. Its log goes to stderr where it fails."""
    command = [
        sys.executable,
        "-m",
        "attnserve",
        "serve",
        "--model-repository",
        str(repository),
        "--model-control-mode",
        "explicit",
        "--load-models",
        ",".join(models),
        "--provider",
        args.provider,
        "--transport",
        args.transport,
        "--transport-processes",
        str(args.transport_processes),
        "--gpu-plan",
        args.gpu_plan,
        "--gpu-tuning-s",
        str(args.gpu_tuning_s),
        "--grpc-address",
        "127.0.0.1:0",
        "--http-address",
        "127.0.0.1:0",
    ]
    with args.log.open("w+") if args.log else tempfile.TemporaryFile("w+") as log:
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True) as server:
            assert server.stdout is not None
            try:
                line = server.stdout.readline()
                if line:
                    yield json.loads(line)
            finally:
                server.terminate()
        if not line:
            log.seek(0)
            raise SystemExit(f"the server did not start:\n{log.read()}")


def counts(http: str, model: str) -> list[float]:
    """Batches that the server ran of a model so far, their images and seconds; the CPU seconds of its processes."""
    names = ("attnserve_batch_size_count", "attnserve_batch_size_sum", "attnserve_batch_duration_seconds_sum",
             "process_cpu_seconds_total")  # fmt: skip
    samples = [sample for sample in scraped(http) if sample.labels.get("model", model) == model]
    return [sum(sample.value for sample in samples if sample.name == name) for name in names]


def plans(http: str) -> dict[str, str]:
    """How each model runs, as the server's metrics say."""
    return {
        sample.labels["model"]: f"{sample.labels['execution_provider']} {sample.labels['plan']}".strip()
        for sample in scraped(http)
        if sample.name == "attnserve_model_info"
    }


def scraped(http: str) -> list[Sample]:
    """The server's metrics."""
    with urllib.request.urlopen(f"http://{http}/metrics", timeout=10) as response:
        families = text_string_to_metric_families(response.read().decode())
    return [sample for family in families for sample in family.samples]


def machine() -> Row:
    """Where and with what it ran."""
    nvml = open_nvml()
    found: Row = {"cores": available_cores(), "load average": os.getloadavg()[0],
                  "GPUs": [gpu.name for gpu in nvml.read()] if nvml else []}  # fmt: skip
    for package in ("attnserve", "onnxruntime-gpu", "onnxruntime", "grpcio", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def table(rows: list[Row], columns: list[str]) -> str:
    """Markdown."""

    def cell(value: Any) -> str:
        return "" if value is None else f"{value:.3g}" if isinstance(value, float) and value < 100 else (
            f"{value:.0f}" if isinstance(value, float) else str(value))  # fmt: skip

    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    lines += [f"| {' | '.join(cell(row.get(column)) for column in columns)} |" for row in rows]
    return "\n".join(lines)


def report(result: dict[str, Any]) -> str:
    """The run as Markdown."""
    served = ["model", "images/request", "form", "images/s", "ceiling", "share", "p50 ms", "p95 ms", "p99 ms",
              "images/batch", "ms/batch", "server CPU us/image", "GPU busy"]  # fmt: skip
    facts = ", ".join(f"{name} {value}" for name, value in result["machine"].items())
    return "\n\n".join([
        f"{facts}; {result['processes']} processes of load; provider {result['provider']}; "
        f"transport {result['transport']}"
        + ("; **quick, not to be kept**" if result["quick"] else ""),
        f"MiB used on each GPU: {result['GPU MiB']}",
        "Plans: " + "; ".join(f"{model}: {plan}" for model, plan in result["plans"].items()),
        "### Raw ONNX Runtime, input on the device",
        table(result["ceilings"], ["model", "way", "batch", "images/s"]),
        "### Served, closed loop",
        table(result["served"], served),
        "### Served at a part of that load",
        table(result["paced"], ["model", "images/request", "form", "load", "wanted images/s", "images/s", "p50 ms",
                                "p95 ms", "p99 ms", "GPU busy"]),
        "### With Grad-CAM of the best class by the last layer",
        table(result["explained"], ["model", "images/request", "explain", "images/s", "p50 ms", "p99 ms",
                                    "server CPU us/image", "GPU busy"]),
    ])  # fmt: skip


def run(args: argparse.Namespace, repository: Path, models: list[str], deadline: float) -> dict[str, Any]:
    """Measure everything; later parts share what time is left."""
    paths = {model: max((repository / model).glob("[0-9]*/model.onnx")) for model in models}
    batches = [1, 8] if args.quick else [1, 8, 32, 64]
    seconds = 0.1 if args.quick else 0.4
    measured = {model: ceilings(path, args.provider, batches, seconds) for model, path in paths.items()}
    best = {model: top for model, (_, top) in measured.items()}
    main_model = models[0]
    sizes = {m: Card.from_json((paths[m].parent / CARD_NAME).read_text()).preprocessing.height for m in models}
    processes = args.processes or max(1, available_cores() // 2)
    loads = [
        Load(main_model, images, form, size=sizes[main_model], callers=UNARY_CALLERS if images == 1 else 4)
        for images, form in FORMS
    ]
    loads += [Load(model, 8, size=sizes[model]) for model in models[1:]]
    explained = [Load(main_model, 8, explain=explain, size=sizes[main_model]) for explain in (False, True)]
    with serving(repository, models, args) as announced:
        crowd = Crowd(announced["grpc"], processes)
        parts = len(loads) + 2 * len(SHARES) + len(explained)
        spare = (deadline - time.monotonic()) / parts - 1.5  # of each: starts, pictures and the ceilings between
        long, rounds = (0.2, 1) if args.quick else (min(15.0, max(2.0, spare)), 3)
        bench = Bench(crowd, announced["http"], best, long, rounds)
        served = [bench.closed(load) for load in loads]
        slower = [
            row for load, row in zip(loads, served, strict=True) if load.form == "raw" and row["model"] == main_model
        ]
        full = {row["images/request"]: row["images/s"] for row in slower}
        result = {
            "machine": machine(),
            "provider": args.provider,
            "transport": f"{args.transport} x {args.transport_processes}",
            "quick": args.quick,
            "processes": processes,
            "plans": plans(announced["http"]),
            "GPU MiB": [gpu.used_bytes >> 20 for gpu in nvml.read()] if (nvml := open_nvml()) else [],
            "ceilings": [row for rows, _ in measured.values() for row in rows],
            "served": served,
            "paced": [row for images in (1, 8) for row in paced(bench, loads[0], full[images], images)],
            "explained": [bench.open(load) for load in explained],
        }
        crowd.close()
    return result


def main() -> int:
    """Print a Markdown report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--provider", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--minutes", type=float, default=8.0, help="for everything, the export too")
    parser.add_argument("--export", type=Path, metavar="DIR", help="make the entries there and stop")
    parser.add_argument("--repository", type=Path, help="entries to serve, instead of making some")
    parser.add_argument("--models", help="those of the repository, the main one first; default: all")
    parser.add_argument("--transport", choices=("grpcio", "native"), default="grpcio")
    parser.add_argument("--transport-processes", type=int, default=1)
    parser.add_argument("--gpu-plan", default="auto")
    parser.add_argument("--gpu-tuning-s", type=float, default=20.0)
    parser.add_argument("--processes", type=int, default=0, help="of load; 0 is half the cores")
    parser.add_argument("--quick", action="store_true", help="small networks, no worth in the figures")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--log", type=Path, help="of the server; without it only shown where the server does not start")
    args = parser.parse_args()
    deadline = time.monotonic() + 60 * args.minutes
    if not args.export:
        choose_provider(args.provider)  # loads CUDA's libraries, or says that there are none
    wanted = nets(quick=args.quick)
    if args.export:
        export(args.export, wanted, available_cores())
        return 0
    with tempfile.TemporaryDirectory() as folder:
        repository = args.repository or Path(folder)
        if args.repository is None:
            export(repository, wanted, available_cores())
        names = sorted(path.name for path in repository.iterdir() if (path / "config.pbtxt").exists())
        made = [net.name for net in wanted if net.name in names]
        result = run(args, repository, args.models.split(",") if args.models else made or names, deadline)
    text = report(result)
    print(text)
    if args.markdown:
        args.markdown.write_text(text + "\n")
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
