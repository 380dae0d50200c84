"""`attnserve explain-report`: a folder of pictures to a running server, and one HTML page of what the model looked at.

Owns the flags and the two passes: every picture is classified, then those of most concern are explained. What counts
and comes first is `attnserve.review`'s, the page `attnserve.report`'s.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from attnserve.commands import connecting, explaining
from attnserve.commands.classify import count, outcomes, seconds
from attnserve.commands.connecting import connected, model_of, reason
from attnserve.errors import ConfigError, InvalidArgument

if TYPE_CHECKING:
    from attnserve.client import Classification, Client, Explain, ModelInfo
    from attnserve.review import Item, Row

DEFAULT_LIMIT = 100  # pictures in detail: some 10 MB of page, which a browser and a mail still take


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the flags; imports nothing heavy."""
    parser.add_argument("folder", type=Path, metavar="DIR",
                        help="of JPEG, PNG and WebP files; a sub-folder named as a label (with _ for /) says their"
                        " class")  # fmt: skip
    parser.add_argument("--server", default="localhost:8001", metavar="HOST:PORT", help="default: %(default)s")
    parser.add_argument("--model", metavar="MODEL", help="default: the only model on the server")
    parser.add_argument("--version", default="", metavar="V", help="default: the newest that is ready")
    parser.add_argument("--output", type=Path, default=Path("report.html"), metavar="FILE", help="default: %(default)s")
    parser.add_argument("--top-k", type=count, default=explaining.BEST_CLASSES, metavar="K",
                        help="best classes of each picture that are listed and explained, and the true one where it is"
                             " another (default: %(default)s)")  # fmt: skip
    parser.add_argument("--limit", type=count, default=DEFAULT_LIMIT, metavar="N",
                        help="pictures shown with their maps, those of most concern; all are counted"
                             " (0 for all; default: %(default)s)")  # fmt: skip
    explaining.add_layer(parser)
    explaining.add_method(parser)
    parser.add_argument("--timeout-s", type=seconds, default=10.0, metavar="S",
                        help="seconds that one picture may take, on average (default: %(default)s)")  # fmt: skip
    connecting.configure(parser)


def run(args: argparse.Namespace) -> int:
    """Write the page; 1 if no picture was answered."""
    from attnserve.canvas import printable
    from attnserve.client import Explain
    from attnserve.report import Heading, closing, opening
    from attnserve.review import Summary, by_concern, items

    if not args.top_k:
        raise ConfigError("--top-k: must be at least 1")
    if args.output.is_dir() or not args.output.parent.is_dir():
        raise ConfigError(f"--output: {args.output} cannot be written: it must be a file in a folder that exists")
    with connected(args, args.timeout_s) as client:
        info = model_of(client, args)
        layers = explaining.layers(args.layer, info)
        method = explaining.method_of(args.method, layers, info)
        rows = _rows(client, info, items(args.folder, info.labels), args)
        summary, chosen = Summary.of(rows), by_concern(rows)[: args.limit or None]
        date = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
        heading = Heading(info, args.folder.resolve().name, date, layers, method, len(chosen))
        part = args.output.with_name(f"{args.output.name}.part")
        with part.open("w", encoding="utf-8") as page:
            page.write(opening(heading, summary))
            page.writelines(_explained(client, info, chosen, Explain(layers, method)))
            page.write(closing([row for row in rows if row.error]))
        os.replace(part, args.output)
    failed = f" ({summary.failed} failed: see the end of the page)" if summary.failed else ""
    known = f"; {summary.right} of {summary.labelled} right" if summary.labelled else ""
    print(
        f"{info.name} version {info.version}: {summary.answered} of {summary.pictures} pictures answered{failed}{known}"
    )
    if summary.stray:
        print(printable(summary.strays))
    print(f"{len(chosen)} shown in {args.output} ({_size(args.output.stat().st_size)})")
    return 0 if summary.answered else 1


def _size(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.1f} MB" if size_bytes >= 1e6 else f"{size_bytes / 1e3:.0f} KB"


def _rows(client: Client, info: ModelInfo, items: Sequence[Item], args: argparse.Namespace) -> list[Row]:
    """The first pass: every picture's predictions, or why there are none."""
    from attnserve.client import ClientError
    from attnserve.review import Row

    paths = [item.path for item in items]
    found = outcomes(client, paths, args.timeout_s, model=info.name, version=info.version, top_k=args.top_k)
    return [
        Row(item, error=reason(outcome)) if isinstance(outcome, ClientError) else Row(item, outcome.predictions)
        for item, outcome in zip(items, found, strict=True)
    ]


def _explained(client: Client, info: ModelInfo, rows: Sequence[Row], explain: Explain) -> Iterator[str]:
    """The second pass: each row's part of the page. A picture that fails now keeps its predictions."""
    from attnserve.client import ClientError
    from attnserve.decode import upright_rgb
    from attnserve.map_files import OWN_PICTURES
    from attnserve.report import picture

    for number, row in enumerate(rows, start=1):
        if sys.stderr.isatty():
            print(f"\rexplained {number} of {len(rows)}", end="\n" if number == len(rows) else "", file=sys.stderr)
        try:
            answer = _explanation(client, info, row, explain)
            photo = upright_rgb(row.item.path.read_bytes(), OWN_PICTURES)
        except (ClientError, InvalidArgument, OSError) as error:
            yield picture(row, None, None, str(error))
            continue
        yield picture(row, answer, photo)


def _explanation(client: Client, info: ModelInfo, row: Row, explain: Explain) -> Classification:
    """The answer with maps: of the classes that the row lists, and of the true one."""
    from attnserve.evidence import last_of_each_stage

    classes = [each.index for each in row.predictions]
    if row.item.truth is not None:
        classes.append(info.labels.index(row.item.truth))
    sites = last_of_each_stage(info.sites)
    (answer,) = client.classify(
        [row.item.path],
        model=info.name,
        version=info.version,
        top_k=0,  # the true class's probability may be anywhere
        attention="summary" if sites else "none",
        sites=sites,
        explain=replace(explain, classes=list(dict.fromkeys(classes))),
    )
    return answer
