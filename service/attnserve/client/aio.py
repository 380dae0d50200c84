"""The asyncio client: the same methods and results as the blocking one, on the caller's event loop."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Iterable, Iterator, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Self

import grpc

from attnserve.client import errors
from attnserve.client.aio_stream import Stream, off_loop
from attnserve.client.calls import (
    CHANNEL_OPTIONS,
    DEFAULT_RETRY,
    DEFAULT_TIMEOUT_S,
    Terms,
    answers,
    check_window,
    from_statuses,
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


class AsyncClient:
    """`Client` for asyncio: a connection to one server, an async context manager, made and used in one event loop.

    Deadlines, retries, hedging, errors and arguments are those of `Client`. Cancelling the task that waits for a call
    cancels the call. Files are read in a thread; anything else that is done for a call is short.
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
        sleep: Callable[[float], Awaitable[object]] | None = None,
        random: Callable[[], float] = random.random,
    ) -> None:
        asyncio.get_running_loop()  # without one, gRPC would choose a loop that nobody runs
        self._terms = Terms(timeout_s, retry, hedge_after_s, client_id, token)
        self._closed = asyncio.Event()
        self._clock = clock
        self._sleep = sleep or self._nap
        self._random = random
        if tls is None:
            self._channel = grpc.aio.insecure_channel(with_port(target), CHANNEL_OPTIONS)
        else:
            options = [*CHANNEL_OPTIONS, *tls.channel_options()]
            self._channel = grpc.aio.secure_channel(with_port(target), tls.credentials(), options)
        self._stub: Any = attention_pb2_grpc.AttentionServiceStub(self._channel)  # type: ignore[no-untyped-call]

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection; calls under way, and later ones, fail with CANCELLED."""
        self._closed.set()
        await self._channel.close()

    async def classify(
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
        """As `Client.classify`."""
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
        request = await off_loop(partial(pack, images), images)
        return answers(await self._call(self._stub.Classify, request, timeout_s, self._hedged), expected=len(images))

    async def classify_stream(
        self,
        images: Iterable[Picture] | AsyncIterable[Picture],
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
    ) -> AsyncGenerator[Classification | ClientError, None]:
        """As `Client.classify_stream`: one outcome per picture, in order; nothing is tried again.

        `images` is read by a task of its own, so that an outcome never waits for the next picture, and as far ahead as
        `Client` does. An ordinary iterable is read in the event loop: it must not block. What `images` raises is raised
        here, after the outcomes of the pictures before it. Whoever leaves the stream early closes it
        (`contextlib.aclosing`), or the call lasts until the generator is collected.
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
        with self._translated():
            call = self._stub.ClassifyStream(timeout=self._terms.timeout_of(timeout_s), metadata=self._terms.metadata)
            stream = Stream(images, pack, call, max_in_flight)
            try:
                while (outcome := await stream.next()) is not None:
                    yield outcome
            finally:
                await stream.close()

    async def models(self, *, timeout_s: float | None = None) -> list[ModelStatus]:
        """As `Client.models`."""
        return from_statuses(await self._call(self._stub.ListModels, pb.ListModelsRequest(), timeout_s))

    async def model(self, name: str, version: str = "", *, timeout_s: float | None = None) -> ModelInfo:
        """As `Client.model`."""
        request = pb.GetModelRequest(name=name, version=version)
        return from_model(await self._call(self._stub.GetModel, request, timeout_s))

    async def _call(
        self,
        rpc: Any,
        request: Any,
        timeout_s: float | None,
        first_attempt: Callable[[Any, Any, Attempts], Awaitable[Any]] | None = None,
    ) -> Any:
        """The reply to a request that may be sent more than once."""
        attempts = self._terms.attempts(timeout_s, self._clock(), self._random)
        attempt = first_attempt or self._attempt
        while True:
            try:
                return await attempt(rpc, request, attempts)
            except ClientError as error:
                wait_s = attempts.failed(error, self._clock())
            await self._sleep(wait_s)
            attempt = self._attempt

    async def _hedged(self, rpc: Any, request: Any, attempts: Attempts) -> Any:
        """An attempt, and a second beside it where it is slow; a failure that may pass leaves it to the other."""
        if self._terms.hedge_after_s is None:
            return await self._attempt(rpc, request, attempts)
        tasks = {asyncio.create_task(self._attempt(rpc, request, attempts))}
        try:
            over, _ = await asyncio.wait(tasks, timeout=self._terms.hedge_after_s)
            if over:
                return await over.pop()
            tasks.add(asyncio.create_task(self._attempt(rpc, request, attempts)))
            over, under_way = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            first = over.pop()
            (second,) = over | under_way
            try:
                return await first
            except ClientError as error:
                if not may_pass(error):
                    raise
            return await second
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _attempt(self, rpc: Any, request: Any, attempts: Attempts) -> Any:
        with self._translated():
            return await rpc(request, timeout=attempts.remaining_s(self._clock()), metadata=self._terms.metadata)

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        """Raises gRPC's failures as ours. gRPC cancels those who wait when the channel is closed: to them it is one."""
        if self._closed.is_set():
            raise errors.closed()
        try:
            yield
        except grpc.RpcError as error:
            raise errors.from_call(error, closing=self._closed.is_set()) from None
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if not self._closed.is_set() or (task is not None and task.cancelling()):
                raise
            raise errors.closed() from None

    async def _nap(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._closed.wait(), seconds)
