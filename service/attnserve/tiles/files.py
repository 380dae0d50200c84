"""Maps of large pictures as files: figures over the picture made small, or the arrays and where they lie.

Owns the names of the files; the words and scales are `attnserve.evidence`'s, the drawing `attnserve.render`'s. Knows no
server.
"""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from attnserve.evidence import (
    ATTENTION_NOTE,
    EVIDENCE_NOTE,
    PROBABILITY_NOTE,
    Evidence,
    attention_panel,
    evidence_panels,
    header,
    percent,
)
from attnserve.map_files import MapForm, Names, folder_of_maps, safe
from attnserve.preprocess import CropBox
from attnserve.render import LARGEST_PANEL, Panel, figure, figure_svg
from attnserve.tiles.result import TiledResult
from attnserve.tiles.source import Source, reduced
from attnserve.tiles.stitch import StitchedMap

MOST_CLASSES = 8
"""Of a figure: more panels of `LARGEST_PANEL` are no picture that anybody looks at."""


class TileFiles:
    """Writes the maps of one picture after another into a folder, which is made if need be.

    Args:
        form: `png` and `svg` write `<stem>.probabilities.png` (the best classes), `<stem>.attention.png` (every site)
            and `<stem>.gradcam.png` (layers and classes), named after its method: words and scales as in
            `attnserve.evidence`, panels of at most `LARGEST_PANEL` pixels. `npy` writes float32 as in `TiledResult`:
            `<stem>.probabilities.npy`, `<stem>.<site>.spatial.npy` or, for BAM, `.combined.npy`,
            `<stem>.gradcam.<layer>.<class index>.npy`; and `<stem>.tiles.json`, which tells the pixels per cell.

    Attributes:
        written: The files written so far.
    """

    def __init__(self, folder: Path, form: MapForm) -> None:
        self._folder, self._form = folder_of_maps(folder), form
        self._names = Names()
        self.written: list[Path] = []

    def save(self, image: Path, index: int, source: Source, result: TiledResult, classes: int) -> None:
        """Write the maps of picture number `index`; figures name so many of the best classes, 0 for all.

        Probabilities are drawn of at most `MOST_CLASSES`. Raises `OSError` where a file cannot be read or written.
        """
        stem = self._names.stem(image, index)
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
        figures = {
            "probabilities": ([_probabilities(result, scale, classes)], PROBABILITY_NOTE),
            "attention": ([_attention(result, scale)], ATTENTION_NOTE),
        }
        figures |= {method: (layers, EVIDENCE_NOTE) for method, layers in _evidence(result, scale).items()}
        title, size = _title(image, result, classes), (result.grid.width, result.grid.height)
        for name, ((panels, *groups), note) in figures.items():
            if panels and self._form == "svg":
                document = figure_svg(small, title, panels, groups, [note], size)
                self._path(f"{stem}.{name}.svg").write_text(document, encoding="utf-8")
            elif panels:
                figure(small, title, panels, groups, [note], size).save(self._path(f"{stem}.{name}.png"))

    def _path(self, name: str) -> Path:
        """Where a file of this name goes; whoever asks writes it."""
        path = self._folder / safe(name)
        self.written.append(path)
        return path


def _where(result: TiledResult, cells: dict[str, list[float]]) -> dict[str, object]:
    """What the arrays alone do not say: pixels per cell (height, width) and the grid."""
    failed = [{"top": each.top, "left": each.left, "error": str(each.error)} for each in result.failures]
    labels = list(result.labels)
    return {"cells": cells, "grid": dataclasses.asdict(result.grid), "labels": labels, "failures": failed}


def _of_class(made: StitchedMap, index: int) -> StitchedMap:
    return dataclasses.replace(made, values=made.values[index])


def _probabilities(result: TiledResult, shrunk: float, classes: int) -> list[Panel]:
    return [
        Panel(
            each.label,
            *_shown(_of_class(result.probabilities, each.index), shrunk),
            ending=f" ({percent(each.probability)})",
            detail="probability",
            scale=(0.0, 1.0),
        )
        for each in result.predictions(top_k=min(classes or MOST_CLASSES, MOST_CLASSES))
    ]


def _attention(result: TiledResult, shrunk: float) -> list[Panel]:
    return [attention_panel(site, result.kinds[site], *_shown(made, shrunk)) for site, made in result.attention.items()]


def _evidence(result: TiledResult, shrunk: float) -> dict[str, list[list[Panel]]]:
    """For each method a group of panels for each layer."""
    found = [
        Evidence(each.layer, each.method, each.class_index, each.label, *_shown(each.map, shrunk))
        for each in result.explanations
    ]
    means = dict(enumerate(result.mean.tolist()))
    methods = dict.fromkeys(each.method for each in found)
    return {method: evidence_panels([each for each in found if each.method == method], means) for method in methods}


def _shown(made: StitchedMap, shrunk: float) -> tuple[NDArray[np.float32], CropBox]:
    """A map as it lies over a picture made small by `shrunk`, itself no larger; the least value where there is none."""
    lost = np.isnan(made.values)
    known = np.where(lost, made.values.min(where=~lost, initial=np.inf), made.values)  # (rows, columns)
    factor = math.ceil(max(known.shape) / LARGEST_PANEL)
    sums, count = known, np.ones_like(known)
    for axis in (0, 1):
        starts = np.arange(0, known.shape[axis], factor)
        sums, count = (np.add.reduceat(each, starts, axis) for each in (sums, count))
    rows, columns = sums.shape
    right, bottom = columns * factor * made.cell_width * shrunk, rows * factor * made.cell_height * shrunk
    return (sums / count).astype(np.float32), CropBox(0.0, 0.0, right, bottom)


def _title(image: Path, result: TiledResult, classes: int) -> str:
    grid = result.grid
    lines = header(str(image), result.predictions(top_k=classes), result.model, result.version)
    tiles = f"{len(grid.lefts)} x {len(grid.tops)} tiles of {grid.tile_width} x {grid.tile_height}"
    lines.append(f"{tiles} pixels, every {grid.stride} (width x height)")
    if result.failures:
        lines.append(f"{len(result.failures)} tiles failed: where no other lies, the least value is shown")
    return "\n".join(lines)
