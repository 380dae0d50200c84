"""Pictures larger than what a model sees: cut into tiles, classified by a server, stitched into maps of the whole.

A user of `attnserve.client`; knows no server module. Import the names from here. Reading order: `grid` (where tiles
lie), `stitch` (maps of tiles to one map), `source` (pictures by the strip), `result` (what comes out), `sending`
(every tile answered once), `classify` (the whole), and `files` (what is left of it on disk).
"""

from __future__ import annotations

from attnserve.tiles.classify import classify_tiles
from attnserve.tiles.grid import Grid
from attnserve.tiles.result import TiledExplanation, TiledResult, TileFailure
from attnserve.tiles.source import Source, open_picture
from attnserve.tiles.stitch import StitchedMap

__all__ = [
    "Grid",
    "Source",
    "StitchedMap",
    "TileFailure",
    "TiledExplanation",
    "TiledResult",
    "classify_tiles",
    "open_picture",
]
