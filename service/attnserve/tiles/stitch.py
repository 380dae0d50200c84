"""Maps of tiles made into one map of the picture: overlaps are averaged. Pure functions of numpy and of the grid."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from attnserve.preprocess import CropBox
from attnserve.tiles.grid import Grid

_NOTHING = 1e-6  # of a cell: less is rounding, not coverage


@dataclass(frozen=True)
class StitchedMap:
    """A map over the whole picture.

    Attributes:
        values: (rows, columns) float32, or (K, rows, columns) for one map per class. Cell (i, j) shows the pixels from
            (i * cell_height, j * cell_width) on; those of the last row and column may reach over the edge. NaN where
            no tile was answered or no tile's view reaches.
        cell_height, cell_width: Pixels of the picture per cell.
    """

    values: NDArray[np.float32]
    cell_height: float
    cell_width: float

    @property
    def box(self) -> CropBox:
        """What the values cover, in pixels of the picture; may reach over its right and lower edge."""
        rows, columns = self.values.shape[-2:]
        return CropBox(0.0, 0.0, columns * self.cell_width, rows * self.cell_height)


class Stitcher:
    """Averages the maps of one kind on a raster over the picture.

    A sample of a tile's map is taken to hold all over its share of the tile's view. A cell's value is the mean of what
    lies in it, by area: where samples and cells coincide, the plain mean of all tiles there. How much a tile counts in
    a cell is known beforehand, so that one float32 per cell is all that is kept.

    Args:
        view: The part of a tile that its maps cover, in pixels of the tile; the same for every tile.
        shape: Of a tile's maps, (maps, h, w).
        cell: Height and width in pixels; more, by a whole factor, where the values would take over `max_bytes`.
    """

    def __init__(
        self, grid: Grid, view: CropBox, shape: tuple[int, int, int], cell: tuple[float, float], max_bytes: int
    ) -> None:
        maps, height, width = shape
        factor = 1
        while maps * _cells(grid.height, cell[0] * factor) * _cells(grid.width, cell[1] * factor) * 4 > max_bytes:
            if cell[0] * factor >= grid.height and cell[1] * factor >= grid.width:
                break  # one cell: there is nothing to save
            factor += 1
        self._cell = (cell[0] * factor, cell[1] * factor)
        self._rows = _Axis(grid.height, self._cell[0], grid.tops, (view.top, view.bottom), height)
        self._columns = _Axis(grid.width, self._cell[1], grid.lefts, (view.left, view.right), width)
        self._values = np.zeros((maps, self._rows.cells, self._columns.cells), np.float32)

    def add(self, row: int, column: int, values: NDArray[np.float32]) -> None:
        """Enter the maps (maps, h, w) of the tile at this row and column of the grid, once."""
        rows, down = self._rows.share(row)
        columns, along = self._columns.share(column)
        self._values[:, rows, columns] += down @ values @ along.T

    def result(self, missing: Iterable[tuple[int, int]] = ()) -> StitchedMap:
        """The mean over every tile but those `missing`, by row and column, which were not entered.

        (maps, rows, columns). Ends the stitching: the values are not copied.
        """
        reached = np.outer(self._rows.reached, self._columns.reached).astype(np.float32)  # (rows, columns)
        for row, column in missing:
            rows, down = self._rows.share(row)
            columns, along = self._columns.share(column)
            reached[rows, columns] -= np.outer(down.sum(1), along.sum(1))
        for values in self._values:
            values[reached < _NOTHING] = np.nan
            np.divide(values, reached, out=values, where=reached >= _NOTHING)
        return StitchedMap(self._values, *self._cell)


class _Axis:
    """One side of the raster: how much of each cell's mean each sample of each tile makes up."""

    def __init__(self, size: int, cell: float, starts: Sequence[int], view: tuple[float, float], samples: int) -> None:
        self.cells = _cells(size, cell)
        overlaps = [_overlaps(start, view, samples, cell, self.cells) for start in starts]
        total = np.zeros(self.cells)
        for cells, pixels in overlaps:
            total[cells] += pixels.sum(1)
        self.reached = total > _NOTHING * cell
        whole = np.where(self.reached, total, 1.0)[:, None]
        self._shares = [(cells, (pixels / whole[cells]).astype(np.float32)) for cells, pixels in overlaps]

    def share(self, start: int) -> tuple[slice, NDArray[np.float32]]:
        """The cells that a tile reaches, and (cells, samples) the share of each sample in them."""
        return self._shares[start]


def _cells(size: int, cell: float) -> int:
    return max(1, math.ceil(size / cell - _NOTHING))


def _overlaps(
    start: int, view: tuple[float, float], samples: int, cell: float, cells: int
) -> tuple[slice, NDArray[np.float64]]:
    """The cells that a tile reaches, and (cells, samples) how many pixels of each sample lie in each."""
    edges = start + np.linspace(view[0], view[1], samples + 1)
    reached = slice(int(edges[0] / cell + _NOTHING), min(cells, math.ceil(edges[-1] / cell - _NOTHING)))
    lower = np.arange(reached.start, reached.stop)[:, None] * cell
    pixels = np.minimum(lower + cell, edges[1:]) - np.maximum(lower, edges[:-1])
    return reached, np.maximum(pixels, 0.0)
