"""Explanations of classes: graphs of their own, loaded when first asked for, each with a queue and workers of its own.

A graph's two inputs wait, batch and split together as the fields of one record per row (a structured array), so that
the scheduler needs to know nothing of them. A request's layers are run one after the other.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attnserve.card import LAST, Explanation
from attnserve.contract import Call, Entry, Outputs
from attnserve.errors import AttnserveError, ConfigError, Internal, Unavailable
from attnserve.guard import guarded
from attnserve.postprocess import top_k
from attnserve.scheduler import Estimate, Scheduler

log = logging.getLogger(__name__)

FEATURES = "features"
"""The output of model.onnx that the graph of the last layer takes."""

CLASS_INDEX = "class_index"
_PROBABILITIES = "probabilities"

RETRY_S = 10.0
"""After a graph could not be loaded: a shortage passes, and a file that is wrong may be put right."""

Load = Callable[[], Scheduler]
"""Loads one layer's graph and starts its workers; blocks. Raises `ConfigError` where it cannot be run."""


@dataclass(frozen=True)
class Wish:
    """What one request wants explained.

    Attributes:
        layers: Of the model's card.
        method: One of each layer's methods.
        classes: Class indices, the same for every image; empty for the most probable ones of each.
        top_k: How many of the most probable ones.
        height, width: Of the model's view in pixels.
    """

    layers: tuple[Explanation, ...]
    method: str
    classes: tuple[int, ...]
    top_k: int
    height: int
    width: int

    @property
    def rows_per_image(self) -> int:
        """Rows that one image adds to each layer's queue."""
        return len(self.classes) or self.top_k

    @property
    def outputs(self) -> tuple[str, ...]:
        """What model.onnx must give."""
        features = (FEATURES,) if any(layer.layer == LAST for layer in self.layers) else ()
        return (_PROBABILITIES, *features)

    @property
    def bytes_per_image(self) -> int:
        """The largest of the arrays that one image becomes on the way."""
        return self.rows_per_image * max(self._record(layer).itemsize for layer in self.layers)

    def classes_of(self, probabilities: NDArray[np.float32]) -> NDArray[np.int64]:
        """(N, K) probabilities -> (N, classes) the classes to explain, the most probable first or as asked for."""
        if self.classes:
            return np.tile(np.array(self.classes, np.int64), (len(probabilities), 1))
        return np.array([top_k(row, self.top_k) for row in probabilities], np.int64)

    def rows(
        self, layer: Explanation, images: NDArray[np.uint8], outputs: Outputs, classes: NDArray[np.int64]
    ) -> NDArray[Any]:
        """(N * classes,) records of the layer's inputs, image by image."""
        source = outputs[FEATURES] if layer.layer == LAST else images
        rows = np.empty(classes.size, self._record(layer))
        name = FEATURES if layer.layer == LAST else "images"
        rows[name] = source if classes.shape[1] == 1 else np.repeat(source, classes.shape[1], axis=0)
        rows[CLASS_INDEX] = classes.reshape(-1)
        return rows

    def _record(self, layer: Explanation) -> np.dtype[Any]:
        return record_of(layer, self.height, self.width)


def record_of(layer: Explanation, height: int, width: int) -> np.dtype[Any]:
    """One row of a layer's graph, for views of height x width: its inputs by their names."""
    source: tuple[str, Any, tuple[int, ...]] = (
        (FEATURES, np.float32, (layer.channels, layer.height, layer.width))
        if layer.layer == LAST
        else ("images", np.uint8, (height, width, 3))
    )
    return np.dtype([source, (CLASS_INDEX, np.int64)])


@dataclass(frozen=True)
class Explained:
    """One layer's maps.

    Attributes:
        classes: (N, classes) int64, which class each map explains.
        maps: (N, classes, h, w) float32, at least 0.
    """

    layer: Explanation
    method: str
    classes: NDArray[np.int64]
    maps: NDArray[np.float32]


OnExplained = Callable[[list[Explained]], None]


class Explainers:
    """The explaining graphs of one model version. Used on the calls' inboxes, but for `close`.

    Several inboxes may use it at once: what calls share here is changed and read by single operations on dicts.

    Args:
        layers: Those of the card, and how each is loaded: on a thread of its own, when it is asked for first.
    """

    def __init__(
        self,
        layers: Sequence[tuple[Explanation, Load]] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._layers = {layer.layer: _Layer(layer, load, clock) for layer, load in layers}
        self._clock = clock
        self._promised: dict[str, dict[Call, int]] = {layer.layer: {} for layer, _ in layers}
        """By layer: the rows of calls that were admitted and are not in its queue yet."""

    def estimate(self, wish: Wish, client: str, level: int, images: int) -> Estimate:
        """What the wish would meet for so many images, as far as its layers are loaded: they follow each other."""
        rows = images * wish.rows_per_image
        found = []
        for layer in wish.layers:
            scheduler = self._layers[layer.layer].scheduler
            if scheduler is not None:
                found.append(scheduler.estimate(client, level, rows + self._to_come(layer.layer, client, rows)))
        return Estimate(sum(each.wait_s for each in found), sum(each.run_s for each in found))

    def promise(self, wish: Wish, images: int, call: Call) -> None:
        """A call was admitted whose wish will be explained: until then others are to expect it."""
        for layer in wish.layers:
            self._promised[layer.layer][call] = images * wish.rows_per_image
        call.at_end(partial(self._release, wish, call))

    def _release(self, wish: Wish, call: Call) -> None:
        for layer in wish.layers:
            self._promised[layer.layer].pop(call, None)

    def _to_come(self, layer: str, client: str, rows: int) -> int:
        """Promised rows that go before the last of so many new ones: of another client at most as many as of theirs."""
        promised: dict[str, int] = {}
        for call, count in list(self._promised[layer].items()):
            promised[call.client] = promised.get(call.client, 0) + count
        own = promised.pop(client, 0)
        return own + min(sum(promised.values()), len(promised) * (own + rows))

    def explain(
        self, wish: Wish, images: NDArray[np.uint8], outputs: Outputs, call: Call, on_explained: OnExplained
    ) -> None:
        """Fulfil a wish for images (N, H, W, 3) of which model.onnx gave the outputs; on the call's inbox.

        Calls back once, there, unless the call fails before.
        """
        classes = wish.classes_of(outputs[_PROBABILITIES])
        found: list[Explained] = []
        began = self._clock()

        def next_layer() -> None:
            if len(found) == len(wish.layers):
                call.timings.explain_s = self._clock() - began
                on_explained(found)
                return
            self._layers[wish.layers[len(found)].layer].when_loaded(call, submit)

        def submit(scheduler: Scheduler) -> None:
            entry = Entry(
                images=wish.rows(wish.layers[len(found)], images, outputs, classes),
                outputs=(wish.method,),
                deadline=call.deadline,
                inbox=call.inbox,
                on_finished=partial(guarded, call, finished),
                client=call.client,
                level=call.level,
                cancelled=call.cancelled,
            )
            self._promised[wish.layers[len(found)].layer].pop(call, None)
            scheduler.submit(entry)
            call.when_cancelled(partial(scheduler.cancel, entry))

        def finished(entry: Entry) -> None:
            if entry.result is None:
                raise entry.error or Internal("the explanation failed")
            maps = entry.result[wish.method]
            layer = wish.layers[len(found)]
            found.append(Explained(layer, wish.method, classes, maps.reshape(*classes.shape, *maps.shape[1:])))
            next_layer()

        next_layer()

    def close(self) -> None:
        """Stop every layer's workers; what waits for them fails with `Unavailable`."""
        for layer in self._layers.values():
            layer.close()


class _Layer:
    """One layer's graph: not loaded, being loaded with calls that wait for it, loaded, or refused for a while."""

    def __init__(self, layer: Explanation, load: Load, clock: Callable[[], float]) -> None:
        self._layer = layer
        self._load = load
        self._clock = clock
        self._lock = threading.Lock()
        self._waiting: list[tuple[Call, Callable[[Scheduler], None]]] = []
        self._loading = False
        self._closed = False
        self._reason = f"explain.layers: {layer.layer!r} cannot be loaded; see the server's log"
        self._refused_until = -math.inf
        self.scheduler: Scheduler | None = None

    def when_loaded(self, call: Call, step: Callable[[Scheduler], None]) -> None:
        """Go on with `step(scheduler)`: at once, or on the call's inbox after the graph is loaded. Never blocks.

        Raises `Unavailable` where it cannot be loaded, and so does the call that waited for that.
        """
        with self._lock:
            if self._closed:
                raise Unavailable("the model is being unloaded")
            if self._clock() < self._refused_until:
                raise Unavailable(self._reason)
            if self.scheduler is None:
                if not self._loading:  # started while the lock is held: a thread that does not start leaves no trace
                    threading.Thread(target=self._open, name=f"explain-{self._layer.layer}", daemon=True).start()
                    self._loading = True
                self._waiting.append((call, step))
                return
        step(self.scheduler)

    def close(self) -> None:
        """Stop the workers; a graph that is being loaded is closed once it is."""
        with self._lock:
            self._closed = True
            scheduler = self.scheduler
        if scheduler is not None:
            scheduler.close()

    def _open(self) -> None:
        scheduler, error = self._opened()
        with self._lock:
            self._loading = False
            waiting, self._waiting = self._waiting, []
            if not self._closed:
                self.scheduler = scheduler
                scheduler = None
        if scheduler is not None:
            scheduler.close()
        for call, step in waiting:
            job = partial(self.when_loaded, call, step) if error is None else partial(call.fail, error)
            try:
                call.inbox.post([partial(guarded, call, job)])
            except Exception:  # a transport that is gone must not take the others' answers with it
                log.exception("an inbox refused a call that waited for an explaining graph")

    def _opened(self) -> tuple[Scheduler | None, AttnserveError | None]:
        """The scheduler, or what those who wait are told."""
        try:
            return self._load(), None
        except ConfigError as error:
            log.error("%s", error)
        except Exception:  # onnxruntime raises many unrelated types, and no call may wait for ever
            log.exception("the explaining graph of %s cannot be loaded", self._layer.layer)
        self._refused_until = self._clock() + RETRY_S
        return None, Unavailable(self._reason)
