"""What the commands share: their options, and the way from cells to written results."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from .ceiling import Ceiling
from .cells import LARGE, TRANSPORTS, Cell, chosen
from .entries import entry
from .events import WrongAnswer
from .results import PACKAGES, Results, machine
from .session import CeilingOf, Contender, measure_model
from .table import tables, write

HERE = Path(__file__).parents[1]
LONGER = 3
"""Times as long as a small network's runs are those of the large one, which does a dozen images a second and core."""

BUSY = 0.5
"""Load average of a machine that has other things to do than to be measured."""


def options(description: str | None) -> argparse.ArgumentParser:
    """The options that every command has."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--cells", nargs="+", default=[], metavar="PATTERN", help="measure those alone, see --list")
    made.add_argument("--list", action="store_true", help="print the cells' names and stop")
    made.add_argument("--quick", action="store_true", help="three short pairs of few cells; writes nothing by itself")
    made.add_argument("--transports", default=",".join(TRANSPORTS), help="attnserve's (default: all)")
    made.add_argument("--pairs", type=int, help="of every cell (default: 7, with --quick 3)")
    made.add_argument("--seconds", type=float, help="of a run of the small network (default: 1, with --quick 0.5)")
    made.add_argument("--folder", type=Path, help="where the results go (default: tests/bench)")
    return made


def run(
    name: str,
    argv: Sequence[str],
    args: argparse.Namespace,
    cells: Sequence[Cell],
    contenders: Iterable[Contender],
    packages: Sequence[str] = PACKAGES,
    ceiling_of: CeilingOf = Ceiling,
) -> int:
    """Measure the cells that were chosen and write NAME.json and RESULTS.md; returns the exit code."""
    cells = chosen(cells, args.cells)
    if args.list or not cells:
        print("\n".join(cell.name for cell in cells) or "no such cell")
        return 0 if cells else 2
    if (busy := os.getloadavg()[0]) > BUSY:
        print(f"load average {busy:.1f}: shares of CPU time will do, times will not", file=sys.stderr)
    pairs, seconds = (3, 0.5) if args.quick else (7, 1.0)
    where = ["--folder", str(args.folder)]
    command = shlex.join([f"tests/bench/{name}", *(word for word in argv if word not in where)])
    results = Results(command, machine(packages), [], {}, {}, args.pairs or pairs)
    for model in dict.fromkeys(cell.model for cell in cells):
        asked = [cell for cell in cells if cell.model == model]
        each = (args.seconds or seconds) * (LONGER if model == LARGE else 1)
        try:
            measure_model(entry(model), asked, contenders, each, results, ceiling_of)
        except WrongAnswer as error:
            print(f"nothing is written: {error}", file=sys.stderr)
            return 1
    print(tables(results.rows))
    if args.folder or not args.quick:
        folder = args.folder or HERE
        folder.mkdir(parents=True, exist_ok=True)
        results.write(folder / f"{Path(name).stem}.json")
        print(f"\nwritten: {write(folder)}")
    return 0
