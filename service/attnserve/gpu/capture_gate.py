"""Keeps CUDA work of other threads away while one thread captures a CUDA graph; knows no ONNX Runtime.

ONNX Runtime captures in CUDA's global mode: whatever another thread of the process allocates, copies or waits for
meanwhile fails and spoils the capture, even on another session or for another model. So one gate stands for the whole
process, and all GPU work goes through it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class CaptureGate:
    """Many may work at once, or one may capture; who captures goes first. Neither form may be entered twice."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._working = 0
        self._capturing = False
        self._waiting = 0

    @contextmanager
    def shared(self) -> Iterator[None]:
        """For ordinary work; waits while anybody captures or waits for that."""
        with self._changed:
            while self._capturing or self._waiting:
                self._changed.wait()
            self._working += 1
        try:
            yield
        finally:
            with self._changed:
                self._working -= 1
                if not self._working and self._waiting:
                    self._changed.notify_all()

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """For a capture; waits until all others are done."""
        with self._changed:
            self._waiting += 1
            while self._capturing or self._working:
                self._changed.wait()
            self._waiting -= 1
            self._capturing = True
        try:
            yield
        finally:
            with self._changed:
                self._capturing = False
                self._changed.notify_all()


GATE = CaptureGate()
"""The process's: CUDA's capture mode is a state of the process, so several gates would guard nothing."""
