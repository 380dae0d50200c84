"""`attnserve classify`: pictures to a running server; predictions to the terminal, maps and explanations to files.

Owns the flags, the two ways to print and the exit code; what is to be explained is `explaining`'s, what the files hold
`attnserve.map_files`'.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from attnserve.commands import classify_tiles, connecting, explaining
from attnserve.commands.connecting import connected, model_of, reason
from attnserve.errors import ConfigError

if TYPE_CHECKING:
    from attnserve.client import Classification, Client, ClientError, ModelInfo, Timings
    from attnserve.map_files import MapFiles

LONGEST_S = 86_400  # for one picture; gRPC's clock overflows far above
EXPLANATIONS = Path("explanations")  # where figures go when --explain has no --maps
PICTURES_IN_FLIGHT = 32
"""Enough to fill a batch on the server; few enough that maps of large pictures do not fill this side's memory."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the flags; imports nothing heavy."""
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="a JPEG, PNG or WebP file")
    parser.add_argument("--server", default="localhost:8001", metavar="HOST:PORT", help="default: %(default)s")
    parser.add_argument("--model", metavar="MODEL", help="default: the only model on the server")
    parser.add_argument("--version", default="", metavar="V", help="default: the newest that is ready")
    parser.add_argument("--top-k", type=count, default=5, metavar="K", help="0 for all classes (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON object for each picture and line")
    parser.add_argument("--maps", type=Path, metavar="DIR",
                        help=f"save each picture's maps in DIR (with --explain: {EXPLANATIONS})")  # fmt: skip
    parser.add_argument("--format", choices=("png", "svg", "npy"),
                        help="of the maps: figures, or the arrays as the network gave them (default: png)")  # fmt: skip
    explaining.configure(parser)
    parser.add_argument("--timeout-s", type=seconds, default=10.0, metavar="S",
                        help="seconds that a picture or tile may take, on average (default: %(default)s)")  # fmt: skip
    classify_tiles.configure(parser)
    connecting.configure(parser)


def count(text: str) -> int:
    """A flag's whole number; never negative."""
    if not (text.isascii() and text.isdecimal()):
        raise argparse.ArgumentTypeError(f"must be a whole number, not negative, got {text!r}")
    return int(text)


def seconds(text: str) -> float:
    """A flag's time for one picture, in seconds."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number <= LONGEST_S:
        raise argparse.ArgumentTypeError(f"must be seconds, above 0 and at most {LONGEST_S}, got {text!r}")
    return number


def run(args: argparse.Namespace) -> int:
    """Classify every picture; 1 if any failed."""
    from attnserve.client import ClientError
    from attnserve.map_files import MapFiles

    classify_tiles.check(args)
    if args.format and not (args.maps or args.explain):
        raise ConfigError("--format says how maps are saved: it needs --maps or --explain")
    with connected(args, args.timeout_s) as client:
        info = model_of(client, args)
        explain = explaining.wish(args, info)
        sites = explaining.sites(args, info)
        folder = args.maps or (EXPLANATIONS if explain else None)
        if args.tile is not None:
            return classify_tiles.run(client, info, args, explain, sites, folder)
        if args.maps and not sites and not explain:
            raise ConfigError(f"--maps: {info.name} has no attention sites")
        maps = MapFiles(folder, args.format or "png", args.top_k) if folder else None
        report: _Report = _JsonLines(info) if args.json else _Table(args.images, info)
        failed = 0
        found = outcomes(
            client,
            list(map(Path, args.images)),
            args.timeout_s,
            model=info.name,
            version=info.version,
            top_k=0 if explain else args.top_k,  # every explained class has its probability in the figure
            attention="summary" if folder and sites else "none",
            sites=sites,
            explain=explain,
        )
        for index, (image, outcome) in enumerate(zip(args.images, found, strict=True)):
            if isinstance(outcome, ClientError):
                failed += 1
                report.failed(image, outcome)
                continue
            report.answered(image, replace(outcome, predictions=outcome.predictions[: args.top_k or None]))
            if maps and not _saved(maps, image, index, outcome):
                failed += 1
    report.finish()
    if maps and maps.written:
        print(f"{len(maps.written)} files written to {folder}: {maps.written[0].name} ...", file=report.notes)
    return 1 if failed else 0


def outcomes(
    client: Client, images: Sequence[Path], timeout_s: float, **asked: Any
) -> Iterator[Classification | ClientError]:
    """Every picture's outcome; once the call as a whole has failed, its error is every later picture's.

    `timeout_s` is for one picture, on average; `asked` as of `Client.classify_stream`.
    """
    from attnserve.client import ClientError

    stream = client.classify_stream(
        images, timeout_s=timeout_s * len(images), max_in_flight=PICTURES_IN_FLIGHT, **asked
    )
    broken: ClientError | None = None
    for _ in images:
        try:
            yield broken or next(stream)
        except ClientError as error:
            broken = error
            yield error


def _saved(maps: MapFiles, image: str, index: int, answer: Classification) -> bool:
    try:
        maps.save(Path(image), index, answer)
    except OSError as error:
        print(f"attnserve classify: {image}: --maps: {error}", file=sys.stderr)
        return False
    return True


class _Report(Protocol):
    """Where results go; `notes` is the stream for what is not a result."""

    notes: TextIO

    def answered(self, image: str, answer: Classification) -> None: ...

    def failed(self, image: str, error: ClientError) -> None: ...

    def finish(self) -> None: ...


class _JsonLines:
    """One object for each picture and line; nothing else on stdout."""

    def __init__(self, info: ModelInfo) -> None:
        self.notes = sys.stderr
        self._info = info

    def answered(self, image: str, answer: Classification) -> None:
        predictions = [
            {"label": each.label, "index": each.index, "probability": each.probability} for each in answer.predictions
        ]
        self._print(image, predictions, None)

    def failed(self, image: str, error: ClientError) -> None:
        self._print(image, [], reason(error))

    def finish(self) -> None:
        pass

    def _print(self, image: str, predictions: list[dict[str, Any]], error: str | None) -> None:
        line = {
            "image": image,
            "model": self._info.name,
            "version": self._info.version,
            "predictions": predictions,
            "error": error,
        }
        print(json.dumps(line), flush=True)


class _Table:
    """Columns for people; pictures that failed go to stderr."""

    def __init__(self, images: Sequence[str], info: ModelInfo) -> None:
        self.notes = sys.stdout
        self._pictures = len(images)
        self._image_width = max(map(len, ("image", *images)))
        self._label_width = max(map(len, ("label", *info.labels)))
        self._timings: list[Timings] = []
        print(f"{info.name} version {info.version}, {info.execution_provider}")
        self._row("image", "rank", "label", "probability")

    def answered(self, image: str, answer: Classification) -> None:
        for rank, each in enumerate(answer.predictions, start=1):
            self._row(image if rank == 1 else "", str(rank), each.label, f"{each.probability:.4f}")
        self._timings.append(answer.timings)

    def failed(self, image: str, error: ClientError) -> None:
        print(f"attnserve classify: {image}: {reason(error)}", file=sys.stderr)

    def finish(self) -> None:
        line = f"{len(self._timings)} of {self._pictures} pictures answered"
        if self._timings:
            means = (
                f"decode {mean(each.decode_ms for each in self._timings):.2f} ms",
                f"queue {mean(each.queue_ms for each in self._timings):.2f} ms",
                f"infer {mean(each.infer_ms for each in self._timings):.2f} ms",
            )
            line += f"; mean time in the server: {', '.join(means)}"
        print(line)

    def _row(self, image: str, rank: str, label: str, probability: str) -> None:
        image = "".join(each if each.isprintable() else "?" for each in image)  # a name must not steer the terminal
        print(f"{image:<{self._image_width}}  {rank:>4}  {label:<{self._label_width}}  {probability:>11}".rstrip())
