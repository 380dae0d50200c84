"""One way through: admission, decoding, queue, inference, and back to the handler on the transport's thread.

Shared by every RPC that classifies; knows no wire format.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from attnserve import drift, model_config
from attnserve.admission import Admission
from attnserve.contract import Call, Entry, Listener, Outputs
from attnserve.decode import Picture
from attnserve.decode_pool import DecodePool, Source
from attnserve.errors import SHORTEST_RETRY_S, AttnserveError, Internal, InvalidArgument, Overloaded
from attnserve.explain import Explained, Wish
from attnserve.guard import guarded
from attnserve.logs import call_fields
from attnserve.models import Model
from attnserve.picture_pool import PicturePool, PictureWork

log = logging.getLogger(__name__)

Finish = Callable[[Outputs], object]
"""Turns a result into the reply message, or a `PictureWork` of it; runs on the transport's thread."""

FinishPictures = Callable[[list[Picture], Outputs, list[Explained]], object]
"""Likewise, from the decoded pictures, the result, and the layers by which classes were explained, if any."""


class Pipeline:
    """Takes a call's pictures through the house. Its methods are called on the call's inbox thread and never block."""

    def __init__(
        self,
        admission: Admission,
        decode_pool: DecodePool,
        listener: Listener,
        drawing: PicturePool,
        *,
        default_timeout_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._admission = admission
        self._decode_pool = decode_pool
        self._listener = listener
        self._drawing = drawing
        self._default_timeout_s = default_timeout_s
        self._clock = clock

    def run_sources(
        self,
        model: Model,
        sources: Sequence[Source],
        outputs: Sequence[str],
        call: Call,
        finish: FinishPictures,
        *,
        wish: Wish | None = None,
        draws: bool = False,
    ) -> None:
        """Decode pictures, run them, explain them, reply with `finish(pictures, result, explained)`.

        Args:
            wish: What is to be explained; its `outputs` must be among the outputs.
            draws: Whether `finish` returns a `PictureWork`, whose wait is foreseen.

        Raises `InvalidArgument` where they could never be taken on, `Overloaded` or `Unavailable`.
        """
        preprocessing = model.files.card.preprocessing
        views = self._decode_pool.views_at_once(sources, preprocessing)
        view_bytes = 3 * preprocessing.height * preprocessing.width
        size_bytes = sum(max(_size_bytes(source), view_bytes) for source in sources) + call.reply_bytes
        size_bytes += wish.bytes_per_image * len(sources) if wish else 0
        self._admit(model, len(sources), size_bytes, call, decoding=views is None, wish=wish, draws=draws)
        decoding_since = self._clock()

        def decoded(pictures: list[Picture], error: AttnserveError | None) -> None:
            call.timings.decode_s = self._clock() - decoding_since
            if error is not None:
                self._count_drop(model, error, len(sources))
                call.fail(error)
                return
            images = [picture.pixels for picture in pictures]
            batch = images[0][np.newaxis] if len(images) == 1 else np.stack(images)  # (N, H, W, 3)
            done = partial(self._explain, model, call, batch, partial(finish, pictures), wish)
            self._queue(model, batch, outputs, call, done)

        if views is not None:
            decoded(views, None)
        else:
            self._decode_pool.submit(sources, preprocessing, call, partial(guarded, call, decoded))

    def run_images(
        self, model: Model, images: NDArray[np.uint8], outputs: Sequence[str], call: Call, finish: Finish
    ) -> None:
        """Run views (N, H, W, 3) as they are and reply with `finish(result)`. Raises as `run_sources` does."""
        self._admit(model, len(images), images.nbytes + call.reply_bytes, call)
        self._queue(
            model, images, outputs, call, lambda result: self._conclude(model, call, result, partial(finish, result))
        )

    def _admit(
        self,
        model: Model,
        images: int,
        size_bytes: int,
        call: Call,
        *,
        decoding: bool = False,
        wish: Wish | None = None,
        draws: bool = False,
    ) -> None:
        call.images = images
        config = model.files.config
        call.level = call.level or model_config.default_level_of(config)
        if call.level > model.scheduler.levels:
            raise InvalidArgument(f"priority: must be within 1..{model.scheduler.levels}, got {call.level}")
        limits = config.dynamic_batching.default_queue_policy
        timeout_s = limits.default_timeout_microseconds / 1e6 or math.inf
        if math.isinf(call.deadline):
            timeout_s = min(timeout_s, self._default_timeout_s)
        call.deadline = min(call.deadline, call.started_at + timeout_s)
        wait_s, run_s = model.scheduler.estimate(call.client, call.level, images)
        if decoding:  # the slower of the two is what a request waits for
            wait_s = max(wait_s, self._decode_pool.predicted_wait_s(call.client, call.level, images))
        if wish is not None:
            explaining = model.explainers.estimate(wish, call.client, call.level, images)
            wait_s, run_s = wait_s + explaining.wait_s, run_s + explaining.run_s
        if draws:
            wait_s = max(wait_s, self._drawing.predicted_wait_s(call.client, call.level, images))
        slack_s = call.deadline - self._clock()
        most = _most_queued(model)
        if images > most:  # it would not fit into an empty queue either
            raise InvalidArgument(
                f"images: the model takes at most {most} in one request (max_queue_size), got {images}"
            )
        try:
            if model.scheduler.queued_images + images > most:
                raise Overloaded("the model's queue is full", retry_after_s=max(wait_s, SHORTEST_RETRY_S))
            call.grant.check_images()
            self._admission.admit(call.client, images, size_bytes, wait_s, run_s, slack_s)
        except AttnserveError as error:
            self._count_drop(model, error, images)
            raise
        call.at_end(partial(self._admission.release, call.client, images, size_bytes))
        call.grant.spend_images(images)
        if wish is not None:
            model.explainers.promise(wish, images, call)

    def _queue(
        self,
        model: Model,
        images: NDArray[np.uint8],
        outputs: Sequence[str],
        call: Call,
        done: Callable[[Outputs], None],
    ) -> None:
        entry = Entry(
            images=images,
            outputs=tuple(outputs),
            deadline=call.deadline,
            inbox=call.inbox,
            on_finished=partial(guarded, call, partial(self._finished, model, call, done)),
            client=call.client,
            level=call.level,
            cancelled=call.cancelled,
        )
        try:
            model.scheduler.submit(entry, _most_queued(model))  # others may have come while this one was decoded
        except AttnserveError as error:
            self._count_drop(model, error, len(images))
            raise
        call.when_cancelled(partial(model.scheduler.cancel, entry))

    def _count_drop(self, model: Model, error: AttnserveError, images: int) -> None:
        if error.drop_reason:
            self._listener.dropped(model.key, error.drop_reason, images)

    def _finished(self, model: Model, call: Call, done: Callable[[Outputs], None], entry: Entry) -> None:
        call.timings.queue_s = entry.timings.queue_s
        call.timings.infer_s = entry.timings.infer_s
        if entry.result is None:
            call.fail(entry.error or Internal("inference failed"))
            return
        probabilities = entry.result.get("probabilities")
        if probabilities is not None and not np.logical_and.reduce(np.isfinite(probabilities), axis=None):
            log.error("model %s version %s: probabilities that are not finite", *model.key, extra=call_fields(call))
            call.fail(Internal("the model's probabilities for this picture are not finite"))
            return
        done(entry.result)

    def _explain(
        self,
        model: Model,
        call: Call,
        images: NDArray[np.uint8],
        finish: Callable[[Outputs, list[Explained]], object],
        wish: Wish | None,
        result: Outputs,
    ) -> None:
        if wish is None:
            self._conclude(model, call, result, partial(finish, result, []))
            return

        def explained(found: list[Explained]) -> None:
            self._conclude(model, call, result, partial(finish, result, found))

        model.explainers.explain(wish, images, result, call, explained)

    def _conclude(self, model: Model, call: Call, result: Outputs, make: Callable[[], object]) -> None:
        """Make the message, here or where there is time to draw it, and reply."""
        began = self._clock()
        made = make()
        if not isinstance(made, PictureWork):
            self._reply(model, call, result, began, made)
            return

        def drawn(message: object, error: AttnserveError | None) -> None:
            if error is None:
                self._reply(model, call, result, began, message)
            else:
                self._count_drop(model, error, call.images)
                call.fail(error)

        self._drawing.submit(made, call, partial(guarded, call, drawn))

    def _reply(self, model: Model, call: Call, result: Outputs, began: float, message: object) -> None:
        probabilities = result.get("probabilities")
        if probabilities is not None:
            call.confidences = drift.confidences(probabilities)
        call.entropies = drift.entropies(model.files.card.sites, result)
        call.timings.postprocess_s = self._clock() - began
        call.reply(message)


def _most_queued(model: Model) -> float:
    """Images that may wait for the model, by its config.pbtxt."""
    return model.files.config.dynamic_batching.default_queue_policy.max_queue_size or math.inf


def _size_bytes(source: Source) -> int:
    return len(source) if isinstance(source, bytes) else source.nbytes
