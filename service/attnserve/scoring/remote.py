"""Scores pictures by a running server: one stream for each chunk, and again what the server could not answer yet.

Owns patience: what is the picture's fault becomes its error, what is the server's is asked again until it is there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attnserve.card import GRADCAM
from attnserve.client import Classification, Client, ClientError, Explain, MapStyle, ModelInfo, Tls
from attnserve.errors import ConfigError
from attnserve.scoring.inputs import Reader
from attnserve.scoring.items import Item, Unreadable
from attnserve.scoring.job import Settings
from attnserve.scoring.rows import Scored

CLIENT_ID = "attnserve-score"
PRIORITY = 3  # the last of a model's classes, unless its config.pbtxt says otherwise
_STREAM_S = 600.0  # for one chunk's stream, which the server may let wait behind everybody else
_IN_FLIGHT = 64
_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 5.0
_TRANSIENT = ("UNAVAILABLE", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED", "CANCELLED", "ABORTED")
_STRANGE = ("INTERNAL", "UNKNOWN")
_MOST_STRANGE = 3  # answers to one picture: a server that fails over it again will fail again


@dataclass(frozen=True)
class Remote:
    """How to score by a server; picklable.

    Attributes:
        target: HOST:PORT.
        classes: Number of the model's labels.
        readers: Threads that read pictures.
        max_image_bytes: A larger file is not sent.
        priority: Of every request.
        patience_s: How long nothing at all may be answered before the job stops.
        tls, token: See `Client`; the files must be where the work is done.
    """

    target: str
    settings: Settings
    classes: int
    readers: int
    max_image_bytes: int
    priority: int = PRIORITY
    patience_s: float = 600.0
    tls: Tls | None = None
    token: str | None = field(default=None, repr=False)

    def open(self) -> RemoteScorer:
        """Connect. Raises `ConfigError` where the server's model is another."""
        return RemoteScorer(self)


def check_maps(settings: Settings, info: ModelInfo) -> None:
    """Raise `ConfigError` for a source of maps that the model does not have."""
    known = [f"attention/{site.name}" for site in info.sites if site.has_spatial]
    known += [f"{GRADCAM}/{layer.layer}" for layer in info.explain_layers if GRADCAM in layer.methods]
    if unknown := [source for source in settings.maps if source not in known]:
        raise ConfigError(f"--maps: unknown {unknown[0]!r}; {info.name} has {', '.join(known) or 'none'}")


@dataclass
class _Asked:
    """One picture of a chunk."""

    data: bytes
    reading_s: float
    strange: int = 0
    answer: Classification | None = None
    error: str | None = None


@dataclass
class _Patience:
    """When to stop waiting for a server that does not answer."""

    limit_s: float
    clock: Callable[[], float]
    pause_s: float = _PAUSE_S
    since: float = field(init=False)

    def __post_init__(self) -> None:
        self.since = self.clock()

    def answered(self) -> None:
        self.since, self.pause_s = self.clock(), _PAUSE_S

    def next_pause(self, error: ClientError | None) -> float:
        """Seconds to wait; raises `error` where that has gone on for too long."""
        if self.clock() - self.since > self.limit_s:
            raise error or ClientError("UNAVAILABLE", "the server answers nothing")
        pause_s, self.pause_s = self.pause_s, min(2 * self.pause_s, _LONGEST_PAUSE_S)
        return max(pause_s, min(error.retry_after_s or 0.0 if error else 0.0, _LONGEST_PAUSE_S))


class RemoteScorer:
    """A connection. One thread at a time may call it."""

    def __init__(
        self, how: Remote, clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], object] = time.sleep
    ) -> None:
        self._how = how
        self._clock = clock
        self._sleep = sleep
        self._client = Client(how.target, client_id=CLIENT_ID, tls=how.tls, token=how.token)
        self._reader = Reader(max_bytes=how.max_image_bytes)
        self._threads = ThreadPoolExecutor(how.readers, thread_name_prefix="read")
        self._sites = [each.removeprefix("attention/") for each in how.settings.maps if each.startswith("attention/")]
        self._layers = [each.removeprefix("gradcam/") for each in how.settings.maps if each.startswith("gradcam/")]
        self._is_known = False  # that the server's model is the right one

    def close(self) -> None:
        """Let go of threads, files and the connection."""
        self._threads.shutdown(cancel_futures=True)
        self._reader.close()
        self._client.close()

    def score(self, items: Sequence[Item]) -> Scored:
        """Read some items and have them scored; blocks, also while the server is away.

        Raises `ClientError` once that has lasted too long or for what is wrong with the whole job, `ConfigError` where
        the server's model is another by now.
        """
        began = self._clock()
        asked = list(self._threads.map(self._read, items))
        patience = _Patience(self._how.patience_s, self._clock)
        while waiting := [each for each in asked if each.answer is None and each.error is None]:
            error = self._ask(waiting, patience)
            if any(each.answer is None and each.error is None for each in waiting):
                self._sleep(patience.next_pause(error))
        answers = [each.answer for each in asked if each.answer is not None]
        scored = Scored([each.error for each in asked], self._probabilities(answers))
        scored.maps = {source: [self._map(answer, source) for answer in answers] for source in self._how.settings.maps}
        scored.reading_s, scored.read_bytes = [each.reading_s for each in asked], sum(len(each.data) for each in asked)
        scored.seconds = self._clock() - began
        return scored

    def _read(self, item: Item) -> _Asked:
        began = self._clock()
        try:
            return _Asked(self._reader.read(item), self._clock() - began)
        except Unreadable as error:
            return _Asked(b"", self._clock() - began, error=f"cannot be read: {error}")

    def _ask(self, waiting: Sequence[_Asked], patience: _Patience) -> ClientError | None:
        """One stream of what waits; returns why some of it still does."""
        settings = self._how.settings
        drawn = settings.map_form == "png"
        last: ClientError | None = None
        try:
            self._check_model()
            outcomes = self._client.classify_stream(
                [each.data for each in waiting],
                model=settings.model,
                version=settings.version,
                top_k=0,
                attention="summary" if self._sites else "none",
                sites=self._sites,
                explain=Explain(self._layers) if self._layers else None,
                maps=MapStyle("heatmap") if drawn and settings.maps else MapStyle(),
                priority=self._how.priority,
                timeout_s=_STREAM_S,
                max_in_flight=_IN_FLIGHT,
            )
            for each, outcome in zip(waiting, outcomes, strict=True):
                if isinstance(outcome, Classification):
                    each.answer = outcome
                    patience.answered()
                else:
                    last = self._failed(each, outcome) or last
        except ClientError as error:
            if error.code not in _TRANSIENT:
                raise
            if error.code == "RESOURCE_EXHAUSTED" and error.retry_after_s is None:
                return self._ask_singly(waiting, error, patience)
            self._is_known = False  # whoever answers next may be another server
            last = error
        return last

    def _ask_singly(self, waiting: Sequence[_Asked], error: ClientError, patience: _Patience) -> ClientError | None:
        """After a stream that ended over a message larger than the server takes: find it, for it stays so."""
        left = [each for each in waiting if each.answer is None and each.error is None]
        if len(waiting) == 1:
            waiting[0].error = error.message
            return None
        failed = [self._ask([each], patience) for each in left]
        return next((each for each in failed if each is not None), None)

    def _failed(self, each: _Asked, error: ClientError) -> ClientError | None:
        """Note one picture's failure; returns it where the picture is to be asked for again."""
        if error.code == "INVALID_ARGUMENT":
            if error.message.startswith(("priority", "attention", "explain", "maps")):
                raise ConfigError(error.message)
            each.error = error.message.removeprefix("images[0]: ")
            return None
        if error.code in _STRANGE:
            each.strange += 1
            if each.strange == _MOST_STRANGE:
                each.error = f"the server failed {_MOST_STRANGE} times: {error.message}"
                return None
        elif error.code not in _TRANSIENT or (error.code == "RESOURCE_EXHAUSTED" and error.retry_after_s is None):
            raise error
        return error

    def _check_model(self) -> None:
        """That the server runs the job's very model; asked anew after each lost connection."""
        if self._is_known:
            return
        settings = self._how.settings
        info = self._client.model(settings.model, settings.version)
        if info.card_digest != settings.card_digest:
            raise ConfigError(
                f"--target: the server's {info.name} {info.version} is not the model of this job any more"
            )
        self._is_known = True

    def _probabilities(self, answers: Sequence[Classification]) -> NDArray[np.float32]:
        rows = np.zeros((len(answers), self._how.classes), np.float32)
        for row, answer in zip(rows, answers, strict=True):
            for each in answer.predictions:
                row[each.index] = each.probability
        return rows

    def _map(self, answer: Classification, source: str) -> Any:
        name = source.partition("/")[2]
        if source.startswith("attention/"):
            found = next(each.combined or each.spatial for each in answer.attention if each.site == name)
        else:
            found = next(each.map for each in answer.explanations if each.layer == name)
        assert found is not None
        if self._how.settings.map_form == "png":
            return found.png
        assert found.values is not None
        return found.values.astype(np.float16)
