"""`attnserve models`: what a running server serves, as a table."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from attnserve.commands import connecting
from attnserve.commands.connecting import connected, reaching

if TYPE_CHECKING:
    from attnserve.client import Client, ModelStatus, SiteInfo

_HEADER = ("model", "version", "ready", "classes", "view", "attention", "explains by", "provider")


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the flags; imports nothing heavy."""
    parser.add_argument("--server", default="localhost:8001", metavar="HOST:PORT", help="default: %(default)s")
    connecting.configure(parser)


def run(args: argparse.Namespace) -> int:
    """Print one row for each model version, why one is not ready, and where a ready one's newer files failed."""
    with connected(args) as client, reaching(args.server):
        statuses = client.models()
        rows = [_HEADER, *(_row(client, status) for status in statuses)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    for status in statuses:
        if status.reason:
            which = f"{status.name} version {status.version}" if status.version else status.name
            print(f"{which} is {'ready, but' if status.ready else 'not ready:'} {status.reason}")
    return 0


def _row(client: Client, status: ModelStatus) -> tuple[str, ...]:
    if not status.ready:
        return (status.name, status.version or "-", "no", *["-"] * (len(_HEADER) - 3))
    info = client.model(status.name, status.version)
    return (
        info.name,
        info.version,
        "yes",
        str(len(info.labels)),
        f"{info.view_height} x {info.view_width}",
        _attention(info.sites),
        ", ".join(each.layer for each in info.explain_layers) or "none",
        info.execution_provider,
    )


def _attention(sites: Sequence[SiteInfo]) -> str:
    """How many sites of which kind, and the first and the last by name."""
    if not sites:
        return "none"
    kinds = " and ".join(dict.fromkeys(site.kind for site in sites))
    names = sites[0].name if len(sites) == 1 else f"{sites[0].name} to {sites[-1].name}"
    return f"{len(sites)} {kinds}: {names}"
