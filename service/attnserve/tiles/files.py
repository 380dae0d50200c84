"""Maps of large pictures as files: figures over the picture made small, or the arrays and where they lie.

Owns the names of the files; the drawing is `attnserve.render`'s. Knows no server.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from attnserve.errors import ConfigError
from attnserve.preprocess import CropBox
from attnserve.render import LARGEST_PANEL, Panel, figure
from attnserve.tiles.result import TiledExplanation, TiledResult
from attnserve.tiles.source import Source, reduced
from attnserve.tiles.stitch import StitchedMap

MOST_CLASSES = 8
"""Of a figure: more panels of `LARGEST_PANEL` are no picture that anybody looks at."""


class TileFiles:
    """Writes the maps of one picture after another into a folder, which is made if need be.

    Args:
        form: `png` writes `<stem>.probabilities.png` (the best classes, coloured from 0 to 1), `<stem>.attention.png`
            (every site) and `<stem>.gradcam.png` (layers and classes), each named after its method: one scale of
            colours for each map, sides of at most `LARGEST_PANEL` pixels. `npy` writes float32 as in `TiledResult`:
            `<stem>.probabilities.npy`, `<stem>.<site>.spatial.npy` or, for BAM, `.combined.npy`,
            `<stem>.gradcam.<layer>.<class index>.npy`; and `<stem>.tiles.json`, which tells the pixels per cell.

    Attributes:
        written: The files written so far.
    """

    def __init__(self, folder: Path, form: Literal["png", "npy"]) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"maps: {error}") from error
        self._folder, self._form = folder, form
        self._taken: set[str] = set()
        self.written: list[Path] = []

    def save(self, image: Path, index: int, source: Source, result: TiledResult, classes: int) -> None:
        """Write the maps of picture number `index`; figures show so many of the best classes, at most `MOST_CLASSES`.

        A stem that an earlier picture had gets `-<index>` appended. Raises `OSError` where a file cannot be read or
        written.
        """
        stem = image.stem
        while stem in self._taken:
            stem = f"{stem}-{index}"
        self._taken.add(stem)
        if self._form == "npy":
            self._save_arrays(stem, result)
        else:
            self._save_figures(stem, image, reduced(source, LARGEST_PANEL), result, classes)

    def _save_arrays(self, stem: str, result: TiledResult) -> None:
        maps = {"probabilities": result.probabilities}
        for site, made in result.attention.items():
            branch = "combined" if result.kinds[site] == "bam" else "spatial"
            maps[f"{site}.{branch}"] = made
        maps |= {f"{each.method}.{each.layer}.{each.class_index}": each.map for each in result.explanations}
        cells = {}
        for name, made in maps.items():
            path = self._path(f"{stem}.{name}.npy")
            np.save(path, made.values)
            cells[path.name] = [made.cell_height, made.cell_width]
        self._path(f"{stem}.tiles.json").write_text(json.dumps(_where(result, cells), indent=1) + "\n")

    def _save_figures(self, stem: str, image: Path, small: Image.Image, result: TiledResult, classes: int) -> None:
        scale = small.width / result.grid.width
        best = result.predictions(top_k=min(classes or MOST_CLASSES, MOST_CLASSES))
        figures = {
            "probabilities": [
                _panel(each.label, _of_class(result.probabilities, each.index), scale, (0.0, 1.0)) for each in best
            ],
            "attention": [_panel(site, made, scale) for site, made in result.attention.items()],
        }
        for explanation in result.explanations:
            panels = figures.setdefault(explanation.method, [])
            panels.append(_panel(_named(explanation), explanation.map, scale))
        for name, panels in figures.items():
            if panels:
                path = self._path(f"{stem}.{name}.png")
                figure(small, _title(image, result), panels).save(path)

    def _path(self, name: str) -> Path:
        """Where a file of this name goes; whoever asks writes it."""
        path = self._folder / name.replace("/", "_")
        self.written.append(path)
        return path


def _where(result: TiledResult, cells: dict[str, list[float]]) -> dict[str, object]:
    """What the arrays alone do not say: pixels per cell (height, width) and the grid."""
    failed = [{"top": each.top, "left": each.left, "error": str(each.error)} for each in result.failures]
    labels = list(result.labels)
    return {"cells": cells, "grid": dataclasses.asdict(result.grid), "labels": labels, "failures": failed}


def _of_class(made: StitchedMap, index: int) -> StitchedMap:
    return dataclasses.replace(made, values=made.values[index])


def _named(explanation: TiledExplanation) -> str:
    return f"{explanation.label}, {explanation.layer}"


def _panel(title: str, made: StitchedMap, shrunk: float, scale: tuple[float, float] | None = None) -> Panel:
    """A map over a picture made small by `shrunk`, itself no larger; the least value stands where there is none."""
    known = np.where(np.isnan(made.values), np.nanmin(made.values), made.values)  # (rows, columns)
    factor = math.ceil(max(known.shape) / LARGEST_PANEL)
    sums, count = known, np.ones_like(known)
    for axis in (0, 1):
        starts = np.arange(0, known.shape[axis], factor)
        sums, count = (np.add.reduceat(each, starts, axis) for each in (sums, count))
    rows, columns = sums.shape
    right, bottom = columns * factor * made.cell_width * shrunk, rows * factor * made.cell_height * shrunk
    return Panel(title, (sums / count).astype(np.float32), CropBox(0.0, 0.0, right, bottom), scale=scale)


def _title(image: Path, result: TiledResult) -> str:
    grid = result.grid
    means: Sequence[str] = [f"{each.label} {each.probability:.1%}" for each in result.predictions()]
    tiles = f"{len(grid.tops)} x {len(grid.lefts)} tiles of {grid.tile_height} x {grid.tile_width}, every {grid.stride}"
    lines = [image.name, "  ·  ".join(means), f"{result.model} version {result.version}"]
    lines.append(f"{grid.height} x {grid.width} pixels, {tiles}")
    if result.failures:
        lines.append(f"{len(result.failures)} tiles failed: where no other lies, the least value is shown")
    return "\n".join(lines)
