"""What was found, as Markdown: RESULTS.md from all results that lie in a folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from .plot import plot
from .results import Results, Row

SECTIONS = {
    "run": "attnserve beside raw ONNX Runtime",
    "compare": "attnserve beside other servers",
    "gpu": "attnserve on a GPU",
}
"""By the name of the JSON file."""

INTRODUCTION = """# Benchmarks

Written by the commands named below; not edited by hand. **CPU share** is the figure to look at: ONNX Runtime's CPU time
per image (one thread alone, its best batch, in the same minute) divided by the server's. The load generator runs on the
same cores, so **wall share**, images per second beside ONNX Runtime alone on all cores, is what is left of them. Every
answer was checked against `session.run`; one error ends a run. Medians of interleaved pairs; latencies of all requests,
in ms.

`p50 - raw` is beside ONNX Runtime alone with one image. `all cores` is ONNX Runtime's CPU time per image while all
cores run it: they share caches and memory, so no server that uses all of them can do with less. Memory (RSS) is of all
processes of a server. A request is a unary Classify, a message of ClassifyStream, or ModelInfer of the Open Inference
Protocol (`infer`), with pixels of the view's size or JPEG files (of 28 x 28 for the small network, 500 x 375 for the
large one); so many are on their way at once.
"""

_COLUMNS: dict[str, Callable[[Row], str]] = {
    "request": lambda row: f"{row.cell.form} {row.cell.picture}",
    "images": lambda row: str(row.cell.images),
    "at once": lambda row: str(row.cell.concurrency),
    "server": lambda row: row.server,
    "CPU share": lambda row: f"**{row.figures.cpu_share:.1%}**",
    "wall share": lambda row: f"{row.figures.wall_share:.0%}",
    "images/s": lambda row: f"{row.figures.images_per_s:.{0 if row.figures.images_per_s > 100 else 1}f}",
    "ceiling": lambda row: f"{row.figures.ceiling_images_per_s:.{0 if row.figures.ceiling_images_per_s > 100 else 1}f}",
    "p50 ms": lambda row: f"{row.figures.p50_ms:.2f}",
    "p95": lambda row: f"{row.figures.p95_ms:.2f}",
    "p99": lambda row: f"{row.figures.p99_ms:.2f}",
    "p50 - raw": lambda row: (
        "" if row.figures.raw_p50_ms is None else f"{row.figures.p50_ms - row.figures.raw_p50_ms:+.2f}"
    ),
    "CPU us/request": lambda row: f"{row.figures.server_us_per_request:.0f}",
    "us/image": lambda row: f"{row.figures.server_us_per_image:.0f}",
    "ORT us/image": lambda row: f"{row.figures.ort_us_per_image:.0f}",
    "all cores": lambda row: f"{row.figures.busy_ort_us_per_image:.0f}",
    "RSS MiB": lambda row: f"{row.figures.rss_mib:.0f}",
    "generator us/request": lambda row: f"{row.figures.generator_us_per_request:.0f}",
}


def tables(rows: list[Row]) -> str:
    """One table per model."""
    models = dict.fromkeys(row.cell.model for row in rows)
    return "\n".join(f"### {model}\n\n{_table([row for row in rows if row.cell.model == model])}\n" for model in models)


def _table(rows: list[Row]) -> str:
    lines = [list(_COLUMNS), ["---"] * len(_COLUMNS), *([show(row) for show in _COLUMNS.values()] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write(folder: Path) -> Path:
    """Write RESULTS.md and the plots from the JSON files of that folder; returns its path."""
    parts = [INTRODUCTION]
    for name, title in SECTIONS.items():
        source = folder / f"{name}.json"
        if source.exists():
            results = Results.read(source)
            drawn = folder / f"{name}.png"
            parts.append(_section(title, results, drawn.name if plot(results, drawn) else ""))
    file = folder / "RESULTS.md"
    file.write_text("\n".join(parts))
    return file


def _section(title: str, results: Results, picture: str) -> str:
    facts = ", ".join(f"{name} {value}" for name, value in results.machine.items())
    batches = ", ".join(f"{batch} for {model}" for model, batch in results.batches.items())
    skipped = "".join(f"\n* Not measured: {name}: {why}" for name, why in results.skipped.items())
    shown = f"\n![Share of the ceiling by requests at once]({picture})\n" if picture else ""
    return (
        f"## {title}\n\n`{results.command}`; {results.pairs} pairs per row; the ceiling's best batch is {batches}.\n\n"
        f"{facts}.\n{skipped}\n{shown}\n{tables(results.rows)}"
    )
