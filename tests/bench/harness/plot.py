"""The share of the ceiling over the number of requests at once, one line per server."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from .cells import Cell
from .results import Results, Row

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")  # Okabe and Ito: for all eyes
SHARES = {"CPU share": "cpu_share", "wall share": "wall_share"}


def plot(results: Results, file: Path) -> bool:
    """Draw unary requests of one image of raw pixels; False, and no file, where there are not two loads of them."""
    rows = [row for row in results.rows if _is_drawn(row.cell)]
    loads = sorted({row.cell.concurrency for row in rows})
    if len(loads) < 2:
        return False
    models = list(dict.fromkeys(row.cell.model for row in rows))
    colours = dict(zip(dict.fromkeys(row.server for row in rows), COLOURS, strict=False))
    figure = Figure(figsize=(4.5 * len(models) + 0.5, 6.5), layout="constrained")
    axes = figure.subplots(len(SHARES), len(models), squeeze=False, sharex=True, sharey=True)
    for line, (share, name) in enumerate(SHARES.items()):
        for column, model in enumerate(models):
            axis = axes[line][column]
            for server, colour in colours.items():
                points = _points(rows, model, server, name)
                if points:
                    axis.plot(*zip(*points, strict=True), "o-", color=colour)
            axis.axhline(1, color="grey", linewidth=0.8)
            axis.grid(alpha=0.3)
        axes[line][0].set_ylabel(f"{share} of raw ONNX Runtime")
    for axis, model in zip(axes[0], models, strict=True):
        axis.set_title(f"{model}, one image per request", fontsize="medium")
    for axis in axes[-1]:
        axis.set_xlabel("requests at once")
    axes[0][0].set_xscale("log", base=2)
    axes[0][0].set_xticks(loads, list(map(str, loads)))
    axes[0][0].minorticks_off()
    axes[0][0].set_ylim(bottom=0)
    axes[0][0].yaxis.set_major_formatter("{x:.0%}")
    keys = [Line2D([], [], marker="o", color=colour, label=server) for server, colour in colours.items()]
    figure.legend(handles=keys, loc="outside upper center", ncols=len(keys))
    figure.savefig(file, dpi=110)
    return True


def _is_drawn(cell: Cell) -> bool:
    return cell.form != "stream" and cell.picture == "raw" and cell.images == 1


def _points(rows: list[Row], model: str, server: str, share: str) -> list[tuple[int, float]]:
    """(requests at once, share), in order."""
    chosen = (row for row in rows if (row.cell.model, row.server) == (model, server))
    return sorted((row.cell.concurrency, getattr(row.figures, share)) for row in chosen)
