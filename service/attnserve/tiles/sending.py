"""Every tile to the server and one outcome back, in calls of bounded length; refused tiles are sent again.

Owns the calls and the waits; what the outcomes mean is `classify`'s.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attnserve.client import Classification, Client, ClientError, Retry
from attnserve.client.retry import Attempts, may_pass
from attnserve.tiles.grid import Grid
from attnserve.tiles.source import Source

TILES_PER_CALL = 1024
"""Many times what is in flight, so that the ends of calls cost little; few enough for a deadline to mean something."""

LONGEST_CALL_S = 86_400.0  # gRPC's clock overflows far above

_IN_FLIGHT = 64
_IN_FLIGHT_BYTES = 1 << 25  # of pixels, which are there about three times: as an array, a message and its bytes

PATIENT = Retry(max_attempts=10)
"""Rides out a server that is full or restarts for 20 s, and as long as it likes while some tiles are answered."""


class Sender:
    """The tiles of one picture, sent to one model.

    Args:
        options: Of `Client.classify_stream`: what is asked about each tile.
        retry: How often in a row a call may bring no tile further. None: at once the error.
        timeout_s: Seconds that a tile may take, on average of a call.
        sleep: Called with the seconds to wait.
    """

    def __init__(
        self,
        client: Client,
        source: Source,
        grid: Grid,
        options: dict[str, Any],
        *,
        retry: Retry | None = PATIENT,
        timeout_s: float = 10.0,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self._client = client
        self._options = options
        self._pixels = _Tiles(source, grid)
        self._retry = retry
        self._timeout_s = timeout_s
        self._sleep = sleep
        bytes_per_tile = 3 * grid.tile_height * grid.tile_width
        self._in_flight = max(1, min(_IN_FLIGHT, _IN_FLIGHT_BYTES // bytes_per_tile))

    def outcomes(self, tiles: Sequence[int]) -> Iterator[tuple[int, Classification | ClientError]]:
        """Each tile once, with its answer or an error that is its own; not always in order. Blocks.

        Raises `ClientError` where trying again does not help, or no more; `OSError` where the picture cannot be read.
        """
        for first in range(0, len(tiles), TILES_PER_CALL):
            waiting = tiles[first : first + TILES_PER_CALL]
            attempts = self._attempts()
            while waiting:
                refused: list[int] = []
                for tile, outcome in self._call(waiting):
                    if isinstance(outcome, ClientError) and may_pass(outcome):
                        refused.append(tile)
                        refusal = outcome
                    else:
                        yield tile, outcome
                if 0 < len(refused) < len(waiting):
                    attempts = self._attempts()
                if refused:
                    self._sleep(attempts.failed(refusal, 0.0))
                waiting = refused

    def _attempts(self) -> Attempts:
        return Attempts(self._retry, math.inf, random.random)

    def _call(self, tiles: Sequence[int]) -> Iterator[tuple[int, Classification | ClientError]]:
        """One call; every tile has its outcome. After a refusal no more are sent: it is the outcome of the rest."""
        refusal: ClientError | None = None

        def pixels() -> Iterator[NDArray[np.uint8]]:
            for tile in tiles:
                if refusal is not None:
                    return
                yield self._pixels[tile]

        answered = 0
        timeout_s = min(self._timeout_s * len(tiles), LONGEST_CALL_S)
        stream = self._client.classify_stream(
            pixels(), **self._options, timeout_s=timeout_s, max_in_flight=self._in_flight
        )
        try:
            for outcome in stream:
                if isinstance(outcome, ClientError) and may_pass(outcome):
                    refusal = outcome
                yield tiles[answered], outcome
                answered += 1
        except ClientError as error:  # of the call as a whole
            if not may_pass(error):
                raise
            refusal = error
        if refusal is not None:
            for tile in tiles[answered:]:
                yield tile, refusal


class _Tiles:
    """Pixels of tiles by their number. Keeps one strip, for tiles of a row follow each other."""

    def __init__(self, source: Source, grid: Grid) -> None:
        self._source, self._grid = source, grid
        self._row = -1
        self._strip: NDArray[np.uint8] = np.empty((0, 0, 3), np.uint8)

    def __getitem__(self, tile: int) -> NDArray[np.uint8]:
        row, column = self._grid.place(tile)
        if row != self._row:
            top = self._grid.tops[row]
            self._strip = self._source.strip(top, top + self._grid.tile_height)
            self._row = row
        left = self._grid.lefts[column]
        return self._strip[:, left : left + self._grid.tile_width]
