"""Where the tiles of a picture lie. Pure; knows no pixels."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Grid:
    """Tiles of one size over a picture, numbered row by row; every pixel lies in at least one.

    Attributes:
        height, width: Of the picture in pixels.
        tile_height, tile_width: Of every tile in pixels; the picture's own where that is smaller than a tile.
        stride: Pixels between neighbouring tiles; the last of a row or column is moved back to the edge.
        tops, lefts: Where the rows and the columns of tiles begin, in pixels.
    """

    height: int
    width: int
    tile_height: int
    tile_width: int
    stride: int
    tops: tuple[int, ...]
    lefts: tuple[int, ...]

    @classmethod
    def over(cls, height: int, width: int, tile: int, stride: int) -> Grid:
        """Tiles of `tile` x `tile` pixels every `stride`; raises `ValueError` where they are none or leave gaps."""
        if tile < 1:
            raise ValueError(f"tile must be at least 1 pixel, got {tile}")
        if not 1 <= stride <= tile:
            raise ValueError(f"stride must be 1 to {tile}, the tile's side, or pixels are left out; got {stride}")
        tops, lefts = _starts(height, tile, stride), _starts(width, tile, stride)
        return cls(height, width, min(tile, height), min(tile, width), stride, tops, lefts)

    @property
    def tiles(self) -> int:
        """How many there are."""
        return len(self.tops) * len(self.lefts)

    def place(self, tile: int) -> tuple[int, int]:
        """Row and column, in tiles, of a tile by its number."""
        return divmod(tile, len(self.lefts))


def _starts(size: int, tile: int, stride: int) -> tuple[int, ...]:
    last = max(0, size - tile)
    starts = tuple(range(0, last + 1, stride))
    return starts if starts[-1] == last else (*starts, last)
