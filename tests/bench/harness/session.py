"""A run over many cells: starts the servers of one model, measures cell by cell, skips who cannot be had."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .ceiling import Ceiling
from .cells import Cell
from .entries import Entry
from .load import Generator
from .measure import Figures, measure
from .messages import requests
from .pictures import Pictures, pictures
from .processes import Refused, Server
from .results import Results, Row

CeilingOf = Callable[[Path, NDArray[np.uint8]], Ceiling]
"""From the model's file and views of its size: `Ceiling`, or a `partial` of it with other providers or threads."""


@dataclass(frozen=True)
class Contender:
    """Who is measured.

    Attributes:
        name: In the table.
        start: The running server of a model; raises `Refused`.
        form: How it is asked where its protocol is its own; else as the cell says.
        transport: For attnserve: it is in those cells alone that have it.
    """

    name: str
    start: Callable[[Entry], AbstractContextManager[Server]]
    form: str | None = None
    transport: str | None = None

    def meets(self, cell: Cell) -> bool:
        """Whether it is measured there."""
        return self.transport is None or self.transport in cell.transports


def measure_model(
    entry: Entry,
    cells: Iterable[Cell],
    contenders: Iterable[Contender],
    seconds: float,
    results: Results,
    ceiling_of: CeilingOf = Ceiling,
) -> None:
    """Add the rows of one model's cells. Raises `WrongAnswer`."""
    cells = list(cells)
    sent = {form: pictures(entry, form) for form in dict.fromkeys(cell.picture for cell in cells)}
    ceiling = ceiling_of(entry.file, next(iter(sent.values())).views)
    results.batches[entry.name] = ceiling.batch
    with ExitStack() as stack:
        running = []
        for contender in contenders:
            try:
                running.append((contender, stack.enter_context(contender.start(entry))))
            except Refused as error:
                results.skipped[contender.name] = str(error)
                print(f"not measured: {contender.name}: {error}", file=sys.stderr)
        for cell in cells:
            meeting = [(contender, server) for contender, server in running if contender.meets(cell)]
            for name, figures in _measure_cell(
                cell, sent[cell.picture], ceiling, meeting, seconds, results.pairs
            ).items():
                results.rows.append(Row(cell, name, figures))
                print(f"{cell.name} {name}: CPU share {figures.cpu_share:.1%}, wall share {figures.wall_share:.0%}, "
                      f"p50 {figures.p50_ms:.2f} ms", file=sys.stderr)  # fmt: skip


def _measure_cell(
    cell: Cell,
    sent: Pictures,
    ceiling: Ceiling,
    running: Iterable[tuple[Contender, Server]],
    seconds: float,
    pairs: int,
) -> dict[str, Figures]:
    with ExitStack() as connected:
        asked: dict[str, tuple[Server, Generator]] = {}
        for contender, server in running:
            form = contender.form or cell.form
            generator = Generator(server.target, form, requests(form, cell.model, sent, cell.images), cell.concurrency)
            connected.callback(generator.close)
            asked[contender.name] = (server, generator)
        return measure(ceiling, asked, pairs=pairs, seconds=seconds, alone=cell.concurrency == cell.images == 1)
