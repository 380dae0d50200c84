"""Where tiles lie, and maps of tiles made into one, against loops over pixels."""

from __future__ import annotations

import numpy as np
import pytest

from attnserve.preprocess import CropBox
from attnserve.tiles.grid import Grid
from attnserve.tiles.stitch import StitchedMap, Stitcher

PLENTY = 1 << 30


def test_the_last_tiles_are_moved_back_to_the_edge():
    grid = Grid.over(100, 70, 32, 20)
    assert grid.tops == (0, 20, 40, 60, 68)
    assert grid.lefts == (0, 20, 38)
    assert (grid.tiles, grid.place(0), grid.place(4), grid.place(14)) == (15, (0, 0), (1, 1), (4, 2))


def test_a_picture_of_whole_tiles_has_no_tile_more():
    assert Grid.over(64, 96, 32, 32).lefts == (0, 32, 64)
    assert Grid.over(64, 96, 32, 16).tops == (0, 16, 32)


def test_a_side_below_the_tile_is_one_tile_of_that_length():
    grid = Grid.over(20, 70, 32, 32)
    assert (grid.tile_height, grid.tile_width, grid.tops, grid.lefts) == (20, 32, (0,), (0, 32, 38))
    assert Grid.over(20, 30, 32, 8).tiles == 1


@pytest.mark.parametrize(("tile", "stride", "message"), [(0, 1, "tile"), (8, 0, "stride"), (8, 9, "left out")])
def test_tiles_that_are_none_or_leave_gaps_are_refused(tile, stride, message):
    with pytest.raises(ValueError, match=message):
        Grid.over(100, 100, tile, stride)


def random_maps(grid: Grid, shape: tuple[int, int, int]) -> dict[tuple[int, int], np.ndarray]:
    generator = np.random.default_rng(7)
    return {grid.place(tile): generator.random(shape, np.float32) for tile in range(grid.tiles)}


def stitched(grid, maps, cell, view=None, missing=(), max_bytes=PLENTY) -> StitchedMap:
    view = view or CropBox(0, 0, grid.tile_width, grid.tile_height)
    stitcher = Stitcher(grid, view, next(iter(maps.values())).shape, cell, max_bytes)
    for place, values in maps.items():
        if place not in missing:
            stitcher.add(*place, values)
    return stitcher.result(missing)


def by_loops(grid, maps, cell, view=None, missing=()) -> np.ndarray:
    """Pixel by pixel: every tile's sample at the pixel, then the mean of all samples in a cell."""
    view = view or CropBox(0, 0, grid.tile_width, grid.tile_height)
    count, height, width = next(iter(maps.values())).shape
    sample_height, sample_width = (view.bottom - view.top) / height, (view.right - view.left) / width
    rows, columns = -(-grid.height // cell[0]), -(-grid.width // cell[1])
    total, number = np.zeros((count, rows, columns)), np.zeros((rows, columns))
    for (row, column), values in maps.items():
        if (row, column) in missing:
            continue
        for y in range(int(view.top), int(view.bottom)):
            for x in range(int(view.left), int(view.right)):
                sample = values[:, int((y - view.top) / sample_height), int((x - view.left) / sample_width)]
                at = (grid.tops[row] + y) // cell[0], (grid.lefts[column] + x) // cell[1]
                total[(slice(None), *at)] += sample
                number[at] += 1
    with np.errstate(invalid="ignore"):
        return total / number


@pytest.mark.parametrize(
    ("size", "tile", "stride", "shape", "cell"),
    [
        ((48, 64), 16, 16, (1, 4, 4), (4, 4)),  # side by side
        ((48, 64), 16, 4, (1, 4, 4), (4, 4)),  # overlaps that coincide
        ((48, 64), 16, 6, (1, 4, 4), (4, 4)),  # overlaps that do not
        ((50, 61), 16, 8, (1, 4, 4), (4, 4)),  # sides that are no multiples
        ((50, 61), 16, 8, (3, 1, 1), (8, 8)),  # a number per class and tile
        ((50, 61), 16, 7, (3, 1, 1), (7, 7)),
        ((10, 61), 16, 16, (2, 2, 4), (5, 4)),  # tiles that are not square
        ((9, 12), 16, 3, (2, 3, 4), (3, 3)),  # one tile
        ((50, 61), 16, 1, (1, 2, 2), (8, 8)),
    ],
)
def test_a_stitched_map_is_the_mean_of_all_samples_in_each_cell(size, tile, stride, shape, cell):
    grid = Grid.over(*size, tile, stride)
    maps = random_maps(grid, shape)
    made = stitched(grid, maps, cell)
    np.testing.assert_allclose(made.values, by_loops(grid, maps, cell), rtol=2e-6, atol=1e-6)
    assert (made.values.dtype, made.cell_height, made.cell_width) == (np.float32, *cell)


def test_without_overlaps_the_maps_themselves_are_put_side_by_side():
    grid = Grid.over(32, 48, 16, 16)
    maps = random_maps(grid, (1, 4, 4))
    made = stitched(grid, maps, (4.0, 4.0))
    rows = [np.concatenate([maps[row, column][0] for column in range(3)], axis=1) for row in range(2)]
    np.testing.assert_array_equal(made.values[0], np.concatenate(rows))


def test_maps_of_fractional_pixels_end_with_the_picture():
    grid = Grid.over(96, 96, 32, 32)
    made = stitched(grid, random_maps(grid, (1, 7, 7)), (32 / 7, 32 / 7))
    assert made.values.shape == (1, 21, 21)
    assert np.isfinite(made.values).all()
    assert (made.box.right, made.box.bottom) == (pytest.approx(96), pytest.approx(96))


def test_a_missing_tile_leaves_the_mean_of_the_others_and_nan_where_there_are_none():
    grid = Grid.over(40, 40, 16, 8)
    maps = random_maps(grid, (2, 2, 2))
    missing = {(0, 0), (2, 1), (2, 2)}
    made = stitched(grid, maps, (8, 8), missing=missing)
    expected = by_loops(grid, maps, (8, 8), missing=missing)
    assert np.isnan(expected[:, 0, 0]).all()
    np.testing.assert_allclose(made.values, expected, rtol=2e-6, atol=1e-6)


def test_pixels_that_no_view_reaches_are_nan():
    grid, view = Grid.over(48, 48, 16, 16), CropBox(4, 4, 12, 12)
    maps = random_maps(grid, (1, 2, 2))
    made = stitched(grid, maps, (4, 4), view=view)
    expected = by_loops(grid, maps, (4, 4), view=view)
    np.testing.assert_array_equal(np.isnan(made.values), np.isnan(expected))
    np.testing.assert_allclose(made.values, expected, rtol=2e-6)


def test_cells_grow_by_a_whole_factor_where_the_map_would_be_too_large():
    grid = Grid.over(480, 640, 16, 16)
    maps = random_maps(grid, (1, 8, 8))
    made = stitched(grid, maps, (2, 2), max_bytes=4 * 80 * 60)
    assert (made.values.shape, made.cell_height) == ((1, 60, 80), 8)
    np.testing.assert_allclose(made.values, by_loops(grid, maps, (8, 8)), rtol=2e-6, atol=1e-6)
    assert stitched(grid, maps, (2, 2), max_bytes=1).values.shape == (1, 1, 1)
