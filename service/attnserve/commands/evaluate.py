"""`attnserve evaluate`: how good a served model is on labelled pictures, and how faithful its maps are.

Owns the flags, the choice of the pictures, the order of the work, the table and the card's entry; the measures are
`attnserve.measure`'s and `attnserve.faithfulness`'.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attnserve.commands import connecting
from attnserve.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from attnserve.card import Card
    from attnserve.client import Client, ModelInfo
    from attnserve.datasets import Dataset, Pictures
    from attnserve.faithfulness.study import Protocol, Study
    from attnserve.served import ServedModel

    Things = list[NDArray[np.bool_] | None]

PICTURES_AT_ONCE = 2  # one is perturbed while the server answers for the other
MOST_REFUSED = 0.2  # of the pictures; with more, the data set is not one of things before a plain wall
PROGRESS_S = 5.0
LONGEST_IN_SECONDS = 120  # told to a person; longer times in minutes
MOST_BROKEN = 10  # files named


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the flags; imports nothing heavy."""
    parser.set_defaults(parser=parser)
    parser.add_argument("dataset", metavar="DATASET",
                        help="`fashion-mnist`, or a folder with a sub-folder per class: the test part of what the model"
                        " was trained on, all pictures of another folder")  # fmt: skip
    parser.add_argument("--data-dir", type=Path, metavar="DIR", help="folder of the Fashion-MNIST idx files")
    parser.add_argument("--server", default="localhost:8001", metavar="HOST:PORT", help="default: %(default)s")
    parser.add_argument("--model", metavar="MODEL", help="default: the only model on the server")
    parser.add_argument("--version", default="", metavar="V", help="default: the newest that is ready")
    parser.add_argument("--limit", type=_positive, metavar="N", help="at most N of the pictures, evenly spaced")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--timeout-s", type=_positive, default=60, metavar="S", help="of a request (default: %(default)s)"
    )
    group = parser.add_argument_group("faithfulness of the maps")
    group.add_argument("--faithfulness", action="store_true", help="measure the maps too")
    group.add_argument("--layer", type=_names, metavar="L[,L2]", help="Grad-CAM's (default: all that the model has)")
    group.add_argument("--sites", type=_names, metavar="S[,S2]",
                       help="attention modules (default: the last of each stage)")  # fmt: skip
    group.add_argument("--foreground", action="store_true",
                       help="of pictures of one thing before a plain wall: how much of a map lies on it")  # fmt: skip
    group.add_argument("--steps", type=_positive, default=20, metavar="N",
                       help="of the deletion and insertion curves (default: %(default)s)")  # fmt: skip
    group.add_argument("--seed", type=int, default=0, metavar="N", help="of all that is drawn (default: %(default)s)")
    group.add_argument("--write-card", type=Path, metavar="FILE", help="the model.json that gets the figures")
    connecting.configure(parser)


def _positive(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"must be a whole number above 0, got {text!r}")
    return int(text)


def _names(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(filter(None, (each.strip() for each in text.split(",")))))
    if not names:
        raise argparse.ArgumentTypeError(f"must be names with commas between them, got {text!r}")
    return names


def run(args: argparse.Namespace) -> int:
    """Measure, print, and write the card where one is named; 1 if a file could not be read."""
    given = [flag for flag in ("layer", "sites", "foreground", "write_card") if getattr(args, flag)]
    if given and not args.faithfulness:
        raise ConfigError(f"--{given[0].replace('_', '-')}: needs --faithfulness")
    with connecting.connected(args, args.timeout_s) as client:
        info = connecting.model_of(client, args)
        card = _card_of(args.write_card, info) if args.write_card else None
        result = _measured(args, client, info)
    if args.json:
        print(json.dumps(result))
    else:
        _print(result)
    if card:
        _write_card(args.write_card, card, _entry(args, result))
        print(f"{args.write_card}: figures written", file=sys.stderr)
    return 1 if result["broken"] else 0


def _measured(args: argparse.Namespace, client: Client, info: ModelInfo) -> dict[str, Any]:
    from attnserve.datasets import Pictures
    from attnserve.measure import expected_calibration_error, spaced

    served = _served(args, client, info)
    dataset = _dataset(args, info)
    _say_broken(dataset)
    chosen = spaced(len(dataset.test), args.limit or len(dataset.test))
    pictures = Pictures(dataset.test.images[chosen], dataset.test.labels[chosen])
    things: Things = _things(pictures) if args.foreground else [None] * len(pictures)
    protocol = _protocol(args, info)
    shares = served.probabilities(pictures.images)
    result = {
        "model": info.name,
        "version": info.version,
        "card_digest": info.card_digest,
        "dataset": dataset.name,
        "split": dataset.test_name,
        "images": len(pictures),
        "broken": len(dataset.test.broken),
        "accuracy": round(float((shares.argmax(1) == pictures.labels).mean()), 5),
        "ece": round(expected_calibration_error(shares, pictures.labels), 5),
    }
    if args.faithfulness:
        from attnserve.faithfulness.report import record

        result["faithfulness"] = record(_studies(served, pictures, things, protocol), protocol)
    return result


def _served(args: argparse.Namespace, client: Client, info: ModelInfo) -> ServedModel:
    """The model with the sources that are to be measured; says where none of them is Grad-CAM."""
    from attnserve.served import ServedModel, gradcam_layers, spatial_sites

    layers, sites = gradcam_layers(info, args.layer), spatial_sites(info, args.sites)
    if args.faithfulness:
        if not (layers or sites):
            raise ConfigError(f"--faithfulness: {info.name} gives no map to measure")
        if not layers:
            print(f"no Grad-CAM: {info.name} explains by no layer", file=sys.stderr)
    return ServedModel(client, info, layers, sites, args.timeout_s)


def _dataset(args: argparse.Namespace, info: ModelInfo) -> Dataset:
    from attnserve.card import Preprocessing
    from attnserve.datasets import held_out

    preprocessing = Preprocessing(**info.card["preprocessing"])
    record = info.card.get("training", {})
    return held_out(args.dataset, args.data_dir, record, preprocessing, info.labels, leave_out_broken=True)


def _say_broken(dataset: Dataset) -> None:
    """Names files that could not be read; raises `ConfigError` where no other is there."""
    broken = dataset.test.broken
    for line in broken[:MOST_BROKEN]:
        print(f"attnserve evaluate: {line}", file=sys.stderr)
    if len(broken) > MOST_BROKEN:
        print(f"attnserve evaluate: and {len(broken) - MOST_BROKEN} more files", file=sys.stderr)
    if not len(dataset.test):
        raise ConfigError(f"{dataset.name}: none of its {len(broken)} pictures ({dataset.test_name}) can be read")


def _protocol(args: argparse.Namespace, info: ModelInfo) -> Protocol:
    from attnserve.faithfulness.study import Protocol

    red, green, blue = info.card["preprocessing"]["mean"]
    try:
        return Protocol((red, green, blue), args.steps, args.seed)
    except ValueError as error:
        raise ConfigError(f"--steps, --seed: {error}") from error


def _things(pictures: Pictures) -> Things:
    """The thing in each picture, None where it is not before a plain wall."""
    from attnserve.faithfulness.foreground import NotPlainError, foreground

    things: Things = []
    why = ""
    for image in pictures.images:
        try:
            things.append(foreground(image))
        except NotPlainError as error:
            things.append(None)
            why = why or str(error)
    if refused := sum(thing is None for thing in things):
        line = f"--foreground: {refused} of {len(things)} pictures do not show one thing before a plain wall ({why})"
        if refused > MOST_REFUSED * len(things):
            raise ConfigError(line)
        print(f"{line}; they are left out of its share", file=sys.stderr)
    return things


def _studies(served: ServedModel, pictures: Pictures, things: Things, protocol: Protocol) -> list[Study]:
    """One per picture, in order."""
    from attnserve.faithfulness.study import Subject, studied

    def study(index: int) -> Study:
        image = pictures.images[index]
        evidence = served.evidence(image)
        subject = Subject(image, lambda images: served.probabilities(images)[:, evidence.predicted], things[index])
        return studied(subject, evidence.maps, protocol, index)

    with _workers() as workers:
        return list(_with_progress(workers.map(study, range(len(pictures))), len(pictures)))


@contextmanager
def _workers() -> Iterator[ThreadPoolExecutor]:
    """Threads whose waiting work is dropped where one of them fails or the user has seen enough."""
    workers = ThreadPoolExecutor(PICTURES_AT_ONCE)
    try:
        yield workers
    finally:
        workers.shutdown(cancel_futures=True)


def time_left(seconds: float) -> str:
    """For people: whole seconds up to two minutes, then whole minutes."""
    return f"{seconds:.0f} s" if seconds < LONGEST_IN_SECONDS else f"{seconds / 60:.0f} min"


def _with_progress(studies: Iterator[Study], total: int) -> Iterator[Study]:
    """The studies as they come, with a line on stderr now and then."""
    began = said = time.monotonic()
    for done, study in enumerate(studies, start=1):
        yield study
        now = time.monotonic()
        if done == total or now - said >= PROGRESS_S:
            said, each_s = now, (now - began) / done
            left = f", {time_left(each_s * (total - done))} left" if done < total else ""
            print(f"{done} of {total} pictures, {each_s:.2f} s each{left}", file=sys.stderr, flush=True)


def _print(result: dict[str, Any]) -> None:
    from attnserve.faithfulness.report import MEASURES

    print(f"{result['model']} version {result['version']} on {result['dataset']}, {result['split']}")
    print(f"{result['images']} pictures: accuracy {result['accuracy']:.4f}, calibration error {result['ece']:.4f}")
    if result["broken"]:
        print(f"{result['broken']} left out, for they cannot be read")
    if "faithfulness" not in result:
        return
    found = result["faithfulness"]
    means = found["baselines"]
    print(
        f"probability of the predicted class: picture {means['full']:.3f}, plain {means['plain']:.3f},"
        f" blurred {means['blurred']:.3f}"
    )
    width = max(map(len, found["sources"]))
    for measure, title in MEASURES.items():
        rows = {source: each for source, each in found["sources"].items() if measure in each}
        if rows:
            print(f"\n{title}\n  {'':<{width}}    mean  95 % interval   minus random  95 % interval")
        for source, each in rows.items():
            against = each.get("minus_random", {}).get(measure)
            line = f"  {source:<{width}}  {_shown(each[measure], '')}  {_shown(against, '+') if against else ''}"
            print(line.rstrip())
    for source, each in found["sources"].items():
        if each["empty"]:
            print(f"\n{source}: {each['empty']} maps are the same everywhere, and rank the pixels at random")


def _shown(estimate: dict[str, Any], sign: str) -> str:
    mean, low, high = (f"{estimate[name]:{sign}.3f}" for name in ("mean", "low", "high"))
    return f"{mean:>6}  {low:>6} to {high:>6}"


def _entry(args: argparse.Namespace, result: dict[str, Any]) -> dict[str, Any]:
    """The card's record of this run."""
    from attnserve.record import command_line

    names = {name: result[name] for name in ("dataset", "split")}
    return {**names, "command": command_line("evaluate", args, args.parser), **result["faithfulness"]}


def _card_of(path: Path, info: ModelInfo) -> Card:
    """The card at `path`, which must be of the files that the server runs; raises `ConfigError`."""
    from attnserve.card import Card

    try:
        card = Card.from_json(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ConfigError(f"--write-card: {path}: {error}") from error
    if card.name != info.name or card.files != info.card["files"]:
        raise ConfigError(f"--write-card: {path} is not the card of what the server runs as {info.name} {info.version}")
    return card


def _write_card(path: Path, card: Card, entry: dict[str, Any]) -> None:
    """Put the entry in place of an earlier one for the same pictures; the file, not a link to it, is replaced whole."""
    path = path.resolve()
    same = ("dataset", "split")
    others = [each for each in card.faithfulness if any(each.get(name) != entry[name] for name in same)]
    changed = dataclasses.replace(card, faithfulness=(*others, entry))
    staged = path.with_name(f".{path.name}")  # a server that looks meanwhile does not see hidden files
    staged.write_text(changed.to_json(), encoding="utf-8")
    shutil.copymode(path, staged)
    os.replace(staged, path)
