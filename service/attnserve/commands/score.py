"""`attnserve score`: pictures by the thousand to Parquet, by a server or in this process; restartable.

Owns the flags, what is printed, and the exit codes.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attnserve.commands import connecting
from attnserve.commands.classify import count
from attnserve.errors import ConfigError

if TYPE_CHECKING:
    from attnserve.scoring.rows import Tally
    from attnserve.scoring.run import Options, Summary
    from attnserve.scoring.verify import Verified

WRONG_USAGE = 2  # as argparse ends
TOO_MANY_ERRORS = 3
NOT_WHOLE = 4
STOPPED = 5
TERMINATED = 128 + signal.SIGTERM
HUNG_UP = 128 + signal.SIGHUP
_BAR = 40  # characters of the longest line of a histogram
_MOST_LABELS = 20  # classes that are shown; --json has all


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the flags; imports nothing heavy."""
    parser.epilog = (
        f"exit codes: 0 every row is written, with an error in place of the scores of a broken picture; "
        f"{TOO_MANY_ERRORS} more errors than --max-errors; {NOT_WHOLE} --verify found the output not whole; "
        f"{STOPPED} the server was away for too long, the input's folder is gone, or a picture kills the workers: the "
        f"same command goes on where this one stopped, as it does after {TERMINATED} (SIGTERM), {HUNG_UP} (SIGHUP) "
        f"and 130 (Ctrl-C); 1 the input, the model or the output cannot be used, or nobody reads what is printed; 2 "
        f"wrong usage"
    )
    parser.add_argument("input", nargs="?", metavar="INPUT",
                        help="a folder, a glob, a manifest (.csv, .jsonl or .parquet with a column uri), tar shards,"
                             " Parquet with pictures in it, a URL of any of these (s3://, gs://, ...), or - for a list"
                             " on stdin")  # fmt: skip
    parser.add_argument("--output", metavar="DIR", help="folder or URL for the Parquet shards")
    parser.add_argument("--model", metavar="MODEL")
    parser.add_argument("--version", default="", metavar="V", help="default: the newest")
    parser.add_argument("--target", metavar="HOST:PORT", help="have a running server score them")
    parser.add_argument("--model-repository", metavar="DIR", help="score them here, without a server")
    parser.add_argument("--top-k", type=count, default=5, metavar="K",
                        help="best classes listed in each row (default: %(default)s)")  # fmt: skip
    parser.add_argument("--no-full-probabilities", action="store_true",
                        help="leave out the probabilities of all classes")  # fmt: skip
    parser.add_argument("--maps", default="", metavar="SOURCES",
                        help="columns of maps, separated by commas: attention/SITE, gradcam/LAYER")  # fmt: skip
    parser.add_argument("--map-form", choices=("png", "float16"), default="png",
                        help="heatmaps as PNG files, or the raw maps (default: %(default)s)")  # fmt: skip
    parser.add_argument("--shard-rows", type=count, default=10_000, metavar="N",
                        help="rows of a shard, the most that an interrupted run loses (%(default)s)")  # fmt: skip
    parser.add_argument("--shard-index", type=count, metavar="I",
                        help="with --shard-count: which share of the shards is this run's (default:"
                             " JOB_COMPLETION_INDEX, which Kubernetes sets, else 0)")  # fmt: skip
    parser.add_argument("--shard-count", type=count, default=1, metavar="N", help="runs that share one output")
    parser.add_argument("--engine", choices=("local", "ray"), default="local",
                        help="processes of this machine, or actors of Ray (default: %(default)s)")  # fmt: skip
    parser.add_argument("--ray-address", default="local", metavar="A",
                        help="of the Ray cluster: local begins one here, auto finds the one that this machine is of,"
                             " HOST:PORT (default: %(default)s)")  # fmt: skip
    parser.add_argument("--workers", type=count, default=0, metavar="N",
                        help="processes (default: one per core; 2 with --target) or Ray actors (as many as there is"
                             " room for)")  # fmt: skip
    parser.add_argument("--batch-size", type=count, default=0, metavar="N",
                        help="pictures run at once (default: the model's, at most 32)")  # fmt: skip
    parser.add_argument(
        "--provider", choices=("auto", "cpu", "cuda", "tensorrt"), default="auto", help="default: %(default)s"
    )
    parser.add_argument("--priority", type=count, default=3, metavar="P",
                        help="of the requests to --target, 1 is served first (default: %(default)s)")  # fmt: skip
    parser.add_argument("--max-errors", type=count, metavar="N", help="stop once more pictures than that have failed")
    parser.add_argument("--patience-s", type=float, default=600.0, metavar="S",
                        help="how long the server may be away (default: %(default)g)")  # fmt: skip
    parser.add_argument("--max-image-bytes", type=count, default=32 << 20, metavar="N", help="default: %(default)s")
    parser.add_argument("--max-image-pixels", type=count, default=64_000_000, metavar="N", help="default: %(default)s")
    parser.add_argument("--json", action="store_true", help="print the summary as one JSON object")
    parser.add_argument("--report", metavar="FILE", help="write an HTML page about the job at its end")
    parser.add_argument("--metrics-file", metavar="FILE.prom",
                        help="write Prometheus metrics there every 10 s, in node_exporter's text format")  # fmt: skip
    parser.add_argument("--pushgateway", metavar="HOST:PORT", help="push them there every 10 s")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    parser.add_argument("--verify", metavar="DIR", help="prove an output instead: counts, digests, no duplicates")
    connecting.configure(parser)


class Terminated(BaseException):
    """SIGTERM or SIGHUP came: what is being written is given up, as with Ctrl-C.

    Attributes:
        code: To exit with.
    """

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def _ending() -> list[signal.Signals]:
    """The signals that end a run; `nohup` has the hang-up ignored, which stays so."""
    return [each for each in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(each) != signal.SIG_IGN]


def run(args: argparse.Namespace) -> int:
    """Score, or verify; returns the exit code."""
    # Nothing is written yet.
    before = {each: signal.signal(each, lambda number, _: os._exit(128 + number)) for each in _ending()}
    try:
        return _run(args)
    except Terminated as ended:
        _warn("terminated; the same command goes on from here")
        return ended.code
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


@contextmanager
def _tidily_terminated() -> Iterator[None]:
    """Raises `Terminated` in the block at the first SIGTERM or SIGHUP; later ones do not disturb the tidying up.

    Not for a block that imports: the start of a module in C turns any exception into an `ImportError`.
    """

    def stop(number: int, _: object) -> None:
        for each in ending:
            signal.signal(each, signal.SIG_IGN)
        raise Terminated(128 + number)

    ending = _ending()
    for each in ending:
        signal.signal(each, stop)
    yield


def _run(args: argparse.Namespace) -> int:
    if args.verify is not None:
        return _verify(args)
    if missing := [flag for flag, value in (("INPUT", args.input), ("--output", args.output), ("--model", args.model))
                   if not value]:  # fmt: skip
        _warn(f"needs {', '.join(missing)}")
        return WRONG_USAGE
    return _score(args, _options(args))


def _options(args: argparse.Namespace) -> Options:
    from attnserve.scoring.run import Options

    return Options(
        input=args.input,
        output=args.output,
        model=args.model,
        version=args.version,
        target=args.target,
        tls=connecting.tls_of(args),
        token=connecting.token_of(args, os.environ if args.target else {}),
        model_repository=Path(args.model_repository) if args.model_repository else None,
        top_k=args.top_k,
        full_probabilities=not args.no_full_probabilities,
        maps=[each for each in args.maps.split(",") if each],
        map_form=args.map_form,
        shard_rows=args.shard_rows,
        shard_index=_shard_index(args, os.environ),
        shard_count=args.shard_count,
        engine=args.engine,
        ray_address=args.ray_address,
        workers=args.workers,
        batch_size=args.batch_size,
        provider=args.provider,
        priority=args.priority,
        max_errors=args.max_errors,
        patience_s=args.patience_s,
        max_image_bytes=args.max_image_bytes,
        max_image_pixels=args.max_image_pixels,
    )


def _score(args: argparse.Namespace, options: Options) -> int:
    """Score with everything that listens; prints what came of it."""
    from attnserve.client import ClientError
    from attnserve.scoring.items import InputGone
    from attnserve.scoring.job_metrics import Publisher
    from attnserve.scoring.run import TooManyErrors, run
    from attnserve.scoring.workers import WorkerDied

    if isinstance(sys.stdin, io.TextIOWrapper):  # not in tests; a name may be any bytes
        sys.stdin.reconfigure(errors="surrogateescape", newline="\n")
    report = _report(args)
    so_far: list[Summary] = []  # the one summary, once there is one
    publisher = Publisher(
        Path(args.metrics_file) if args.metrics_file else None, args.pushgateway, options.shard_index, _warn
    )

    def watch(summary: Summary) -> None:
        so_far[:] = [summary]
        publisher.watch(summary)

    try:
        with _tidily_terminated(), publisher:
            summary = run(options, quiet=args.quiet, stdin=sys.stdin, watch=watch)
    except (TooManyErrors, ClientError, InputGone, WorkerDied) as error:
        is_limit = isinstance(error, TooManyErrors)
        _warn(f"{error}" if is_limit else f"{error}; the same command goes on from here")
        _write_report(report, so_far, options, str(error))
        return TOO_MANY_ERRORS if is_limit else STOPPED
    _write_report(report, so_far, options)  # before whoever reads the summary may have seen enough of it
    if args.json:
        print(json.dumps(_object(summary)))
    else:
        _print(summary, args.output)
    return 0


def _warn(message: str) -> None:
    print(f"attnserve score: {message}", file=sys.stderr)


def _report(args: argparse.Namespace) -> Path | None:
    """Where the report goes; refused now rather than when hours of work are done."""
    if args.report is None:
        return None
    path = Path(args.report)
    there = next(each for each in (path.absolute(), *path.absolute().parents) if each.exists())
    if not os.access(there, os.W_OK) or there.is_dir() == path.exists():
        raise ConfigError(f"--report: {path} cannot be written")
    return path


def _write_report(path: Path | None, so_far: list[Summary], options: Options, stopped: str = "") -> None:
    from attnserve.scoring.report import page

    if path is not None and so_far:
        date = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page(so_far[0], options, date, stopped), encoding="utf-8")


def _shard_index(args: argparse.Namespace, environment: Mapping[str, str]) -> int:
    if args.shard_index is not None:
        return int(args.shard_index)
    text = environment.get("JOB_COMPLETION_INDEX", "0") if args.shard_count > 1 else "0"
    if not text.isdecimal():
        raise ConfigError(f"JOB_COMPLETION_INDEX must be a whole number, got {text!r}")
    return int(text)


def _verify(args: argparse.Namespace) -> int:
    from attnserve.scoring.store import store_of
    from attnserve.scoring.verify import verify

    found: Verified = verify(store_of(args.verify))
    if args.json:
        print(json.dumps({"rows": found.tally.rows, "errors": found.tally.errors, "problems": found.problems}))
    else:
        for problem in found.problems:
            print(problem)
        rows = f"{found.tally.rows} of {found.job.count} rows are there once and as they were written"
        print(f"{args.verify}: {rows}, {found.tally.errors} of them with an error")
    return NOT_WHOLE if found.problems else 0


def _object(summary: Summary) -> dict[str, Any]:
    tally, settings = summary.tally, summary.job.settings
    return {
        "model": settings.model,
        "version": settings.version,
        "pictures": tally.rows,
        "of": summary.job.count,
        "scored": summary.scored,
        "skipped": summary.skipped,
        "errors": tally.errors,
        "seconds": round(summary.seconds, 3),
        "pictures_per_s": round(summary.pictures_per_s, 3),
        "read_bytes": tally.read_bytes,
        "labels": dict(tally.labels.most_common()),
        "confidences": tally.confidences,
        "causes": dict(tally.causes.most_common()),
        "slowest": [{"id": name, "reading_s": round(seconds, 6)} for seconds, name in tally.slowest],
    }


def _print(summary: Summary, output: str) -> None:
    from attnserve.canvas import printable

    tally, settings = summary.tally, summary.job.settings
    shards = f"{summary.job.shards} shard{'s' * (summary.job.shards != 1)}"
    print(f"{settings.model} version {settings.version}: {tally.rows} of {summary.job.count} pictures in {output}, "
          f"{shards}")  # fmt: skip
    rate = f", {summary.pictures_per_s:.1f}/s" if summary.scored else ""
    before = f"; {summary.skipped} had been before" if summary.skipped else ""
    print(f"{summary.scored} scored in {summary.seconds:.1f} s{rate}{before}; {tally.errors} failed")
    if tally.labels:
        most = max(tally.labels.values())
        width = max(len(label) for label, _ in tally.labels.most_common(_MOST_LABELS))
        print("\npredicted class")
        for label, number in tally.labels.most_common(_MOST_LABELS):
            print(f"  {label:<{width}}  {number:>9}  {'#' * -(-_BAR * number // most)}")
        _print_confidences(tally)
    print()
    if tally.slowest:
        seconds, name = tally.slowest[0]
        print(printable(f"slowest to read: {name}, {1000 * seconds:.0f} ms"))
    for cause, number in tally.causes.most_common():
        example, error = tally.examples[cause]
        print(printable(f"{number} failed: {error} ({example}{', for one' if number > 1 else ''})"))


def _print_confidences(tally: Tally) -> None:
    most = max(tally.confidences)
    step = 1 / len(tally.confidences)
    print("\nprobability of the predicted class")
    for at, number in enumerate(tally.confidences):
        if number:
            print(f"  {at * step:.2f} to {(at + 1) * step:.2f}  {number:>9}  {'#' * -(-_BAR * number // most)}")
