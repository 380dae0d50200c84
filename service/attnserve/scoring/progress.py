"""How far a job is, on a terminal as a bar and elsewhere as a line now and then."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self, TextIO

from tqdm import tqdm

_LINE_S = 10.0


class Progress:
    """Counts pictures; a context manager.

    Args:
        total: Pictures that this run will score.
        quiet: Show nothing.
    """

    def __init__(self, total: int, *, quiet: bool = False, stream: TextIO = sys.stderr) -> None:
        terminal = stream.isatty()
        self._stream = stream
        self._lines = not quiet and not terminal
        self._began = self._said = time.monotonic()
        self._done = self._errors = 0
        self._total = total
        self._bar = tqdm(
            total=total, unit=" pictures", file=stream, disable=quiet or not terminal, dynamic_ncols=True, smoothing=0.1
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()

    def add(self, pictures: int, errors: int) -> None:
        """So many more are scored, these of them with an error."""
        self._done += pictures
        self._errors += errors
        self._bar.set_postfix_str(f"{self._errors} failed", refresh=False)
        self._bar.update(pictures)
        now = time.monotonic()
        if self._lines and (now - self._said >= _LINE_S or self._done == self._total):
            self._said, rate = now, self._done / max(now - self._began, 1e-9)
            left = (self._total - self._done) / rate
            print(
                f"{self._done} of {self._total} pictures, {self._errors} failed, {rate:.1f}/s, {left:.0f} s left",
                file=self._stream,
                flush=True,
            )
