"""The demo behind `make demo`: starts a server on the committed models, classifies ten pictures, shows what it did.

Drives the product from outside, as a newcomer would: the command line, the server's ready line and `/metrics`.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import select
import shlex
import shutil
import subprocess
import sys
import time
import urllib.request
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

ROOT = Path(__file__).resolve().parents[2]
PICTURES = Path("deploy/demo/images")
OUTPUT = Path("demo-output")
MODELS = ("fashion-mnist-cbam", "fashion-mnist-bam")
LEAST_RIGHT = 8  # of the ten: the models are right nine times in ten
READY_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 40.0  # the server's own drain_timeout_s is 30


class DemoError(Exception):
    """What went wrong, for the last line."""


def main() -> int:
    """Run the demo; 0 only if everything worked."""
    os.chdir(ROOT)
    try:
        demo()
    except (DemoError, OSError) as error:
        print(f"demo: failed: {error}", file=sys.stderr)
        return 1
    return 0


def demo() -> None:
    """Serve, classify with each model, measure, stop."""
    attnserve = find_attnserve()
    pictures = sorted(map(str, PICTURES.glob("*.png")))
    OUTPUT.mkdir(exist_ok=True)
    addresses = ["--grpc-address", "127.0.0.1:0", "--http-address", "127.0.0.1:0"]
    with running([attnserve, "serve", "--model-repository", "model_repo", *addresses], OUTPUT / "server.log") as ready:
        for model in MODELS:
            right = classify(attnserve, ready["grpc"], model, pictures)
            say(f"{model}: {right} of {len(pictures)} right, judged by the file names")
            if right < LEAST_RIGHT:
                raise DemoError(
                    f"{model} was right on {right} of {len(pictures)} pictures, {LEAST_RIGHT} were expected"
                )
        show_metrics(ready["http"])
    say("\nthe server drained and stopped")
    say(f"demo: ok, {len(pictures)} pictures x {len(MODELS)} models, overlays in {OUTPUT}/")


def find_attnserve() -> str:
    """The `attnserve` beside this Python, or the one on the path; relative to the repository where it lies inside."""
    beside = Path(sys.executable).with_name("attnserve")
    found = str(beside) if beside.exists() else shutil.which("attnserve")
    if found is None:
        raise DemoError("no `attnserve` command: install the package first (`make demo` does)")
    return os.path.relpath(found) if Path(found).is_relative_to(ROOT) else found


def classify(attnserve: str, server: str, model: str, pictures: Sequence[str]) -> int:
    """Print the table and save the overlays, then ask again for JSON and count right answers."""
    folder = OUTPUT / model
    for old in folder.glob("*.attention.png"):
        old.unlink()
    options = ["--server", server, "--model", model]
    run([attnserve, "classify", *pictures, *options, "--top-k", "2", "--maps", str(folder)])
    overlays = sorted(folder.glob("*.attention.png"))
    if len(overlays) != len(pictures):
        raise DemoError(f"{len(overlays)} overlays in {folder} for {len(pictures)} pictures")
    say(f"one of the overlays: {overlays[0]}")
    lines = run([attnserve, "classify", *pictures, *options, "--top-k", "1", "--json"], capture=True).splitlines()
    return sum(is_right(json.loads(line)) for line in lines)


def is_right(answer: dict[str, Any]) -> bool:
    """Whether the best label is the one in the file name: `t-shirt-top-19.png` is a `T-shirt/top`."""
    label = answer["predictions"][0]["label"]
    return re.sub("[^a-z0-9]+", "-", label.lower()) == Path(answer["image"]).stem.rsplit("-", 1)[0]


def run(command: Sequence[str], *, capture: bool = False) -> str:
    """Echo a command in a form that can be pasted, and run it; returns its output where captured."""
    echo(command)
    done = subprocess.run(
        command, stdout=subprocess.PIPE if capture else None, text=True, env=environment(), check=False
    )
    if done.returncode:
        raise DemoError(f"`attnserve {command[1]}` exited with {done.returncode}")
    return done.stdout or ""


def echo(command: Sequence[str]) -> None:
    """Print a command, the demo's pictures as one pattern."""
    words = [shlex.quote(word) for word in command if Path(word).parent != PICTURES]
    if len(words) < len(command):
        words.insert(2, f"{PICTURES}/*.png")
    say(f"\n$ {' '.join(words)}")


def say(text: str) -> None:
    """Print now, so that lines keep their place among those of subprocesses."""
    print(text, flush=True)


def environment() -> dict[str, str]:
    """This environment, but no proxy for the loopback addresses that the demo uses."""
    hosts = ",".join(filter(None, (os.environ.get("no_proxy"), "127.0.0.1")))
    return {**os.environ, "no_proxy": hosts, "NO_PROXY": hosts}


@contextlib.contextmanager
def running(command: Sequence[str], log: Path) -> Iterator[dict[str, Any]]:
    """A server for as long as the block lasts; gives its ready line. Ends it with SIGTERM and wants exit code 0."""
    echo(command)
    with log.open("wb") as stderr:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, env=environment())
    with process:
        try:
            yield wait_ready(process, log)
            process.terminate()
            code = process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            raise DemoError(f"the server did not stop in {STOP_TIMEOUT_S:g} s{tail(log)}") from None
        finally:
            process.kill()  # does nothing where it has ended
    if code:
        raise DemoError(f"the server exited with {code}{tail(log)}")


def wait_ready(process: subprocess.Popen[bytes], log: Path) -> dict[str, Any]:
    """Wait for the one line of JSON that a server prints when it takes requests."""
    assert process.stdout is not None
    give_up_at = time.monotonic() + READY_TIMEOUT_S
    line = b""
    while not line.endswith(b"\n"):
        left_s = max(0.0, give_up_at - time.monotonic())
        if not select.select([process.stdout], [], [], left_s)[0]:
            raise DemoError(f"the server was not ready in {READY_TIMEOUT_S:g} s{tail(log)}")
        more = os.read(process.stdout.fileno(), 4096)
        if not more:
            raise DemoError(f"the server exited with {process.wait()} before it was ready{tail(log)}")
        line += more
    ready: dict[str, Any] = json.loads(line)
    say(f"ready: gRPC on {ready['grpc']}, HTTP on {ready['http']}, models {', '.join(ready['models'])}; log in {log}")
    return ready


def tail(log: Path) -> str:
    """The last lines of a log, as the end of a message."""
    lines = log.read_text(errors="replace").splitlines()[-15:]
    return "\n".join(["; its last words:", *(f"  {line}" for line in lines)]) if lines else ""


def show_metrics(http: str) -> None:
    """Print the latencies that the server measured, from its histograms."""
    url = f"http://{http}/metrics"
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with direct.open(url, timeout=10) as response:
        text = response.read().decode()
    requests = histograms(text, "attnserve_request_duration_seconds", ("model",))
    stages = histograms(text, "attnserve_stage_duration_seconds", ("model", "stage"))
    if not requests or not stages:
        raise DemoError(f"{url} has no latency histograms")
    say(f"\nlatency in the server, milliseconds, from {url} (p50 and p95 estimated from its buckets)")
    say(f"{'':32}{'count':>7}{'mean':>9}{'p50':>9}{'p95':>9}")
    for model in sorted(requests):
        say(requests[model].row(f"{model[0]} requests"))
        for key in (key for key in stages if key[0] == model[0]):
            say(stages[key].row(f"  {key[1]}"))


class Histogram:
    """A Prometheus histogram of durations, added up over the labels that were left out."""

    def __init__(self) -> None:
        self.total_s = 0.0
        self.counts: defaultdict[float, float] = defaultdict(float)  # upper bound in seconds -> cumulative count

    def row(self, name: str) -> str:
        """Name, count, mean, p50 and p95 in columns, in milliseconds."""
        count = self.counts[math.inf]
        figures_s = (self.total_s / count, self.quantile_s(0.5), self.quantile_s(0.95))
        return f"{name:32}{count:7.0f}" + "".join(f"{1e3 * seconds:9.2f}" for seconds in figures_s)

    def quantile_s(self, share: float) -> float:
        """Linear within the bucket, as Prometheus' histogram_quantile; the last bound for what lies beyond it."""
        rank = share * self.counts[math.inf]
        low_s, below = 0.0, 0.0
        for bound_s, count in sorted(self.counts.items()):
            if math.isinf(bound_s):
                break
            if count >= rank:
                return low_s + (bound_s - low_s) * (rank - below) / (count - below)
            low_s, below = bound_s, count
        return low_s


def histograms(text: str, name: str, labels: Sequence[str]) -> dict[tuple[str, ...], Histogram]:
    """The histograms of one metric by the values of these labels; only those that counted something."""
    found: defaultdict[tuple[str, ...], Histogram] = defaultdict(Histogram)
    for sample in (sample for family in text_string_to_metric_families(text) for sample in family.samples):
        if sample.name not in (f"{name}_bucket", f"{name}_sum"):
            continue
        histogram = found[tuple(sample.labels[label] for label in labels)]
        if sample.name == f"{name}_sum":
            histogram.total_s += sample.value
        else:
            histogram.counts[float(sample.labels["le"])] += sample.value
    return {key: histogram for key, histogram in found.items() if histogram.counts[math.inf]}


if __name__ == "__main__":
    sys.exit(main())
