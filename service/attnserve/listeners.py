"""A listener that does nothing, to derive from, and several listeners as one."""

from __future__ import annotations

from attnserve.contract import Call, Listener, ModelKey


class QuietListener:
    """Hears every fact and does nothing: a base for those who care for some of them."""

    def batch_started(self, model: ModelKey, rows: int, waiting: int) -> None:
        """See `Listener`."""

    def batch_finished(self, model: ModelKey, rows: int, infer_s: float) -> None:
        """See `Listener`."""

    def dropped(self, model: ModelKey, reason: str, rows: int) -> None:
        """See `Listener`."""

    def call_finished(self, call: Call) -> None:
        """See `Listener`."""


class Listeners:
    """Passes every fact on to each listener, in order."""

    def __init__(self, *listeners: Listener) -> None:
        self._listeners = listeners

    def batch_started(self, model: ModelKey, rows: int, waiting: int) -> None:
        """See `Listener`."""
        for listener in self._listeners:
            listener.batch_started(model, rows, waiting)

    def batch_finished(self, model: ModelKey, rows: int, infer_s: float) -> None:
        """See `Listener`."""
        for listener in self._listeners:
            listener.batch_finished(model, rows, infer_s)

    def dropped(self, model: ModelKey, reason: str, rows: int) -> None:
        """See `Listener`."""
        for listener in self._listeners:
            listener.dropped(model, reason, rows)

    def call_finished(self, call: Call) -> None:
        """See `Listener`."""
        for listener in self._listeners:
            listener.call_finished(call)
