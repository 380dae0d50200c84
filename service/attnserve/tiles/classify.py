"""A large picture through a server: its predictions, and maps over the whole of it.

Owns what is asked of each tile and what is made of the answers.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from attnserve.client import Classification, Client, ClientError, Explain, ModelInfo, Retry, SpatialMap
from attnserve.preprocess import CropBox
from attnserve.tiles.grid import Grid
from attnserve.tiles.result import TiledExplanation, TiledResult, TileFailure
from attnserve.tiles.sending import PATIENT, Sender
from attnserve.tiles.source import Large, Source, open_picture
from attnserve.tiles.stitch import StitchedMap, Stitcher

_Key = TypeVar("_Key")

MOST_MAP_BYTES = 1 << 27
"""Of the values of one kind of map, by default: 5792 x 5792 cells, or 1831 x 1831 for each of ten classes."""

MOST_FAILURES = 100
"""Tiles that may fail before the picture is given up: so many are no accident of one tile."""


def classify_tiles(
    client: Client,
    picture: Large | Source,
    *,
    model: str,
    version: str = "",
    tile: int,
    stride: int | None = None,
    attention: bool = False,
    sites: Sequence[str] = (),
    explain: Explain | None = None,
    max_map_bytes: int = MOST_MAP_BYTES,
    retry: Retry | None = PATIENT,
    timeout_s: float = 10.0,
    sleep: Callable[[float], object] = time.sleep,
) -> TiledResult:
    """Classify tiles of `tile` x `tile` pixels every `stride` (`tile` unless given), and stitch the answers together.

    The last tiles of a row and a column are moved back to the edge; a side below `tile` is one tile of that length.
    Maps are averaged where tiles overlap. Blocks; memory is that of the maps, of `open_picture` and of the tiles in
    flight, at most 64 and 32 MiB of pixels, however many tiles there are.

    Tiles that a full or missing server refused are sent again, as `retry` says for calls in a row that brought no tile
    further.

    Args:
        picture: As `open_picture` takes it, or one that it has opened.
        attention: Whether the maps of `sites`, or of every site, are stitched too.
        explain: One class, or several, for all tiles: `classes`; without them the `top_k` best of the picture by mean
            probability, for which all tiles are sent a second time.
        max_map_bytes: Of the values of one kind of map; where they would take more, their cells grow by a whole factor.
        timeout_s: Seconds that a tile may take, on average of up to 1024 tiles.

    Raises:
        ClientError: No answer could be had, or `MOST_FAILURES` tiles failed.
        OSError: The picture cannot be read.
        ValueError: `tile` or `stride` is out of range, or the array is no picture.
    """
    info = client.model(model, version)
    with contextlib.ExitStack() as stack:
        source = picture if isinstance(picture, Source) else stack.enter_context(open_picture(picture))
        grid = Grid.over(source.height, source.width, tile, tile if stride is None else stride)

        def asked(**options: Any) -> _Pass:
            options |= {"model": info.name, "version": info.version}
            sender = Sender(client, source, grid, options, retry=retry, timeout_s=timeout_s, sleep=sleep)
            return _Pass(sender, grid, max_map_bytes)

        at_once = explain if explain is not None and explain.classes else None
        first = asked(top_k=0, attention="summary" if attention else "none", sites=sites, explain=at_once)
        result = first.result(info)
        if explain is None or at_once is not None:
            return result
        best = [each.index for each in result.predictions(top_k=explain.top_k or 1)]
        second = asked(top_k=1, explain=dataclasses.replace(explain, classes=best, top_k=0))
        return second.explained(result)


class _Pass:
    """One question about every tile; what becomes of the answers."""

    def __init__(self, sender: Sender, grid: Grid, max_map_bytes: int) -> None:
        self._sender, self._grid = sender, grid
        self._classes: _Maps[None] = _Maps(grid, max_map_bytes)
        self._sites: _Maps[str] = _Maps(grid, max_map_bytes)
        self._explained: _Maps[tuple[str, str, int, str]] = _Maps(grid, max_map_bytes)
        self._failures: dict[tuple[int, int], ClientError] = {}  # by row and column of the grid

    def result(self, info: ModelInfo) -> TiledResult:
        """Ask about all classes, and whatever else the options say."""
        grid, answered = self._grid, 0
        total, greatest = np.zeros(len(info.labels)), np.zeros(len(info.labels), np.float32)
        kinds: dict[str, str] = {}
        cell = (min(grid.stride, grid.tile_height), min(grid.stride, grid.tile_width))
        for place, answer in self._answers():
            probabilities = np.zeros(len(info.labels), np.float32)
            for each in answer.predictions:
                probabilities[each.index] = each.probability
            answered += 1
            total += probabilities
            np.maximum(greatest, probabilities, out=greatest)
            self._classes.add(None, place, answer.view, probabilities[:, np.newaxis, np.newaxis], cell)
            for site in answer.attention:
                shown = site.spatial if site.combined is None else site.combined
                if shown is not None:
                    kinds[site.site] = site.kind
                    self._sites.add(site.site, place, answer.view, _values(shown))
            self._add_explanations(place, answer)
        return TiledResult(
            model=info.name,
            version=info.version,
            labels=info.labels,
            grid=grid,
            mean=(total / answered).astype(np.float32),
            max=greatest,
            probabilities=self._classes.stitched(self._failures)[None],
            kinds=kinds,
            attention={site: _single(made) for site, made in self._sites.stitched(self._failures).items()},
            explanations=self._explanations(),
            failures=self._failed(),
        )

    def explained(self, result: TiledResult) -> TiledResult:
        """Ask for explanations alone, and add them to the result of another pass."""
        for place, answer in self._answers():
            self._add_explanations(place, answer)
        return dataclasses.replace(
            result, explanations=self._explanations(), failures=(*result.failures, *self._failed())
        )

    def _answers(self) -> Iterator[tuple[tuple[int, int], Classification]]:
        """Those of the tiles that have one, by row and column; raises where there are none, or too many failures."""
        for tile, outcome in self._sender.outcomes(range(self._grid.tiles)):
            place = self._grid.place(tile)
            if isinstance(outcome, Classification):
                yield place, outcome
                continue
            self._failures[place] = outcome
            if outcome.code != "INTERNAL" or len(self._failures) == min(MOST_FAILURES, self._grid.tiles):
                raise outcome  # any other code speaks of the question, which is the same for every tile

    def _add_explanations(self, place: tuple[int, int], answer: Classification) -> None:
        for each in answer.explanations:
            key = (each.layer, each.method, each.class_index, each.label)
            self._explained.add(key, place, answer.view, _values(each.map))

    def _explanations(self) -> tuple[TiledExplanation, ...]:
        stitched = self._explained.stitched(self._failures)
        return tuple(TiledExplanation(*key, map=_single(made)) for key, made in stitched.items())

    def _failed(self) -> tuple[TileFailure, ...]:
        tops, lefts = self._grid.tops, self._grid.lefts
        return tuple(TileFailure(tops[row], lefts[column], e) for (row, column), e in self._failures.items())


class _Maps(Generic[_Key]):
    """The maps of one kind, by what they show; the first answer says what they are like."""

    def __init__(self, grid: Grid, max_bytes: int) -> None:
        self._grid, self._max_bytes = grid, max_bytes
        self._stitchers: dict[_Key, Stitcher] = {}

    def add(
        self,
        key: _Key,
        place: tuple[int, int],
        view: CropBox,
        values: NDArray[np.float32],
        cell: tuple[float, float] | None = None,
    ) -> None:
        """Enter the maps (maps, h, w) of one tile, by row and column; a cell is a map's own pixel unless given."""
        maps, height, width = values.shape
        if key not in self._stitchers:
            own = ((view.bottom - view.top) / height, (view.right - view.left) / width)
            self._stitchers[key] = Stitcher(self._grid, view, (maps, height, width), cell or own, self._max_bytes)
        self._stitchers[key].add(*place, values)

    def stitched(self, missing: Collection[tuple[int, int]]) -> dict[_Key, StitchedMap]:
        return {key: stitcher.result(missing) for key, stitcher in self._stitchers.items()}


def _values(sent: SpatialMap) -> NDArray[np.float32]:
    """(1, h, w); the form `raw`, which is asked for, has them."""
    if sent.values is None:
        raise ClientError("INTERNAL", "the server sent a drawing in place of a map's values")
    return sent.values[np.newaxis]


def _single(made: StitchedMap) -> StitchedMap:
    return dataclasses.replace(made, values=made.values[0])
