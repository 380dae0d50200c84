"""The blocking client: owns the channel, the waits between attempts, and the order of a stream."""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from queue import Empty, SimpleQueue
from threading import Event
from types import TracebackType
from typing import Any, Self

import grpc

from attnserve.client import errors
from attnserve.client.calls import (
    CHANNEL_OPTIONS,
    DEFAULT_RETRY,
    DEFAULT_TIMEOUT_S,
    Pack,
    Replies,
    Terms,
    answers,
    check_window,
    from_statuses,
    packed,
    with_port,
)
from attnserve.client.errors import ClientError
from attnserve.client.messages import (
    RAW,
    AttentionLevel,
    Classification,
    Explain,
    MapStyle,
    ModelInfo,
    ModelStatus,
    Picture,
)
from attnserve.client.retry import Attempts, Retry, may_pass
from attnserve.client.security import Tls
from attnserve.client.translation import check_choices, from_model, to_request
from attnserve.v1 import attention_pb2 as pb
from attnserve.v1 import attention_pb2_grpc


class Client:
    """A connection to one server, `HOST` or `HOST:PORT`; a context manager, and safe to share between threads.

    Every call has a deadline: its own `timeout_s`, else the client's; it spans all attempts. Failures are raised as
    `ClientError`. `classify`, `models` and `model` are tried again, as `retry` says, where the server was full and said
    when to come back, or was not there; never past the deadline: where the wait would be longer than what is left, the
    last error is raised at once.

    Args:
        target: Where the server listens; a bare host gets port 8001.
        timeout_s: Deadline of a call that brings none, in seconds.
        retry: None for one attempt only.
        hedge_after_s: None, or the seconds after which a `classify` whose first attempt has no answer is sent a second
            time, once: the first success counts, and the other is cancelled. Worth its load where `target` stands for
            several servers and the time is rare, such as the 99th percentile of answers.
        client_id: Names this caller to the server, as metadata `x-client-id`: 1 to 128 printable ASCII characters.
        tls: None for plain text. Raises `ValueError` where a file of it cannot be used.
        token: Sent as metadata `authorization: Bearer TOKEN`; printable ASCII without spaces. Without `tls`, anybody on
            the way can read it.
        clock, sleep, random: Collaborators, for tests. `close` ends the default sleep.
    """

    def __init__(
        self,
        target: str,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        retry: Retry | None = DEFAULT_RETRY,
        hedge_after_s: float | None = None,
        client_id: str | None = None,
        tls: Tls | None = None,
        token: str | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] | None = None,
        random: Callable[[], float] = random.random,
    ) -> None:
        self._terms = Terms(timeout_s, retry, hedge_after_s, client_id, token)
        self._closed = Event()
        self._clock = clock
        self._sleep = sleep or self._closed.wait
        self._random = random
        if tls is None:
            self._channel = grpc.insecure_channel(with_port(target), CHANNEL_OPTIONS)
        else:
            options = [*CHANNEL_OPTIONS, *tls.channel_options()]
            self._channel = grpc.secure_channel(with_port(target), tls.credentials(), options)
        self._stub = attention_pb2_grpc.AttentionServiceStub(self._channel)  # type: ignore[no-untyped-call]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; calls under way, and later ones, fail with CANCELLED."""
        self._closed.set()
        self._channel.close()

    def classify(
        self,
        images: Sequence[Picture],
        *,
        model: str,
        version: str = "",
        top_k: int = 5,
        attention: AttentionLevel = "none",
        sites: Sequence[str] = (),
        explain: Explain | None = None,
        maps: MapStyle = RAW,
        priority: int = 0,
        timeout_s: float | None = None,
    ) -> list[Classification]:
        """Classify all `images` in one call: one answer per picture, in order; one bad picture fails the call.

        An empty `version` is the newest that is ready, `top_k` 0 is all classes, empty `sites` is all sites; without
        `explain` no class is explained; `priority` 1 is served first, 0 is the model's default. Blocks. Raises
        `ValueError` for an array of another dtype or shape, an unknown level or form, `OSError` for a file that cannot
        be read, `TypeError` for what is no picture.
        """
        request = to_request(
            images,
            model=model,
            version=version,
            top_k=top_k,
            attention=attention,
            sites=sites,
            explain=explain,
            maps=maps,
            priority=priority,
        )
        return answers(self._call(self._stub.Classify, request, timeout_s, self._hedged), expected=len(images))

    def classify_stream(
        self,
        images: Iterable[Picture],
        *,
        model: str,
        version: str = "",
        top_k: int = 5,
        attention: AttentionLevel = "none",
        sites: Sequence[str] = (),
        explain: Explain | None = None,
        maps: MapStyle = RAW,
        priority: int = 0,
        timeout_s: float | None = None,
        max_in_flight: int = 64,
    ) -> Iterator[Classification | ClientError]:
        """Classify any number of pictures over one call: one outcome per picture, in order.

        A picture that the server refuses, or that cannot be sent (INVALID_ARGUMENT, caused by the error of its file
        or array), is a `ClientError` in its place. The error is raised, and no outcome follows, only when the call as a
        whole ends early.

        Nothing is tried again: a full server's RESOURCE_EXHAUSTED is the picture's outcome, with `retry_after_s`, for
        whoever has the picture may send it again, and a later answer would hold up all that follow. A `max_in_flight`
        below the server's bound on pending pictures avoids it.

        `images` is read in the caller's thread, up to `max_in_flight` pictures ahead of the outcome being returned:
        choose 1 for a live source. `timeout_s` spans the whole stream: give it the time that all pictures need.
        """
        check_window(max_in_flight)
        check_choices(attention, maps, explain)
        pack = partial(
            to_request,
            model=model,
            version=version,
            top_k=top_k,
            attention=attention,
            sites=sites,
            explain=explain,
            maps=maps,
            priority=priority,
        )
        requests: SimpleQueue[pb.ClassifyRequest | None] = SimpleQueue()
        call = self._begun(self._stub.ClassifyStream, iter(requests.get, None), self._terms.timeout_of(timeout_s))
        try:
            yield from _in_order(images, pack, requests, call, max_in_flight)
        except grpc.RpcError as error:
            raise self._failure(error) from None
        finally:
            requests.put(None)  # lets gRPC's sending thread end, also when the caller walks away
            call.cancel()

    def models(self, *, timeout_s: float | None = None) -> list[ModelStatus]:
        """Every model version that the server knows, ready or not."""
        return from_statuses(self._call(self._stub.ListModels, pb.ListModelsRequest(), timeout_s))

    def model(self, name: str, version: str = "", *, timeout_s: float | None = None) -> ModelInfo:
        """One model version; an empty `version` is the newest that is ready."""
        return from_model(self._call(self._stub.GetModel, pb.GetModelRequest(name=name, version=version), timeout_s))

    def _call(
        self,
        rpc: Any,
        request: Any,
        timeout_s: float | None,
        first_attempt: Callable[[Any, Any, Attempts], Any] | None = None,
    ) -> Any:
        """The reply to a request that may be sent more than once."""
        attempts = self._terms.attempts(timeout_s, self._clock(), self._random)
        attempt = first_attempt or self._attempt
        while True:
            try:
                return attempt(rpc, request, attempts)
            except ClientError as error:
                wait_s = attempts.failed(error, self._clock())
            self._sleep(wait_s)
            attempt = self._attempt

    def _hedged(self, rpc: Any, request: Any, attempts: Attempts) -> Any:
        """An attempt, and a second beside it where it is slow; a failure that may pass leaves it to the other."""
        if self._terms.hedge_after_s is None:
            return self._attempt(rpc, request, attempts)
        over: SimpleQueue[Any] = SimpleQueue()
        calls = [self._sent(rpc, request, attempts, over)]
        try:
            try:
                first = over.get(timeout=self._terms.hedge_after_s)
            except Empty:
                calls.append(self._sent(rpc, request, attempts, over))
                first = over.get()
                if first.code() is not grpc.StatusCode.OK and may_pass(self._failure(first)):
                    first = over.get()
            return first.result()
        except grpc.RpcError as error:
            raise self._failure(error) from None
        finally:
            for call in calls:
                call.cancel()

    def _sent(self, rpc: Any, request: Any, attempts: Attempts, over: SimpleQueue[Any]) -> Any:
        """A call under way, which goes to `over` when it is."""
        call = self._begun(rpc.future, request, attempts.remaining_s(self._clock()))
        call.add_done_callback(over.put)
        return call

    def _attempt(self, rpc: Any, request: Any, attempts: Attempts) -> Any:
        try:
            return self._begun(rpc, request, attempts.remaining_s(self._clock()))
        except grpc.RpcError as error:
            raise self._failure(error) from None

    def _failure(self, call: Any) -> ClientError:
        return errors.from_call(call, closing=self._closed.is_set())

    def _begun(self, rpc: Any, request: Any, timeout_s: float) -> Any:
        try:
            return rpc(request, timeout=timeout_s, metadata=self._terms.metadata)
        except ValueError:  # what gRPC raises on a closed channel
            if not self._closed.is_set():
                raise
            raise errors.closed() from None


def _in_order(
    images: Iterable[Picture],
    pack: Pack,
    requests: SimpleQueue[pb.ClassifyRequest | None],
    call: Iterator[pb.ClassifyStreamResponse],
    max_in_flight: int,
) -> Iterator[Classification | ClientError]:
    """Send pictures and give outcomes in turn; a picture that cannot be sent keeps its place."""
    replies = Replies()
    waiting: deque[ClientError | None] = deque()  # None: sent, the server answers
    for image in images:
        if len(waiting) == max_in_flight:
            yield waiting.popleft() or replies.outcome(next(call, None))
        request = packed(pack, image)
        if isinstance(request, ClientError):
            waiting.append(request)
        else:
            requests.put(request)
            waiting.append(None)
    requests.put(None)
    while waiting:
        yield waiting.popleft() or replies.outcome(next(call, None))
    replies.end(next(call, None))  # reads the end of the call, so that both sides see it complete
