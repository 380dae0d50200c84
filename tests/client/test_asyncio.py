"""What only the asyncio client can show; the behaviour that it shares with the blocking one is in the other files."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from google.rpc import code_pb2

from attnserve.client import AsyncClient, Classification, ClientError
from attnserve.v1 import attention_pb2 as pb


def label_of(outcome: Classification | ClientError) -> str:
    return outcome.code if isinstance(outcome, ClientError) else outcome.predictions[0].label


def test_calls_of_one_client_run_side_by_side(target: str, service: Any) -> None:
    together = threading.Barrier(3)

    def answer(request: pb.ClassifyRequest) -> pb.ClassifyResponse:
        together.wait(5)
        echo: pb.ClassifyResponse = service.echo(request)
        return echo

    async def scenario() -> list[str]:
        async with AsyncClient(target) as client:
            calls = (client.classify([name], model="fake") for name in (b"one", b"two", b"three"))
            return [label_of(answer) for (answer,) in await asyncio.gather(*calls)]

    service.answer = answer
    assert asyncio.run(scenario()) == ["one", "two", "three"]


def test_pictures_may_come_from_an_async_source(target: str) -> None:
    async def pictures() -> AsyncIterator[bytes]:
        for name in (b"one", b"bad", b"two"):
            await asyncio.sleep(0)
            yield name

    async def scenario() -> list[str]:
        async with AsyncClient(target) as client:
            return [label_of(outcome) async for outcome in client.classify_stream(pictures(), model="fake")]

    assert asyncio.run(scenario()) == ["one", "INVALID_ARGUMENT", "two"]


def test_an_outcome_does_not_wait_for_the_next_picture(target: str) -> None:
    async def scenario() -> None:
        first_known = asyncio.Event()

        async def pictures() -> AsyncIterator[bytes]:
            yield b"one"
            await first_known.wait()
            yield b"two"

        async with AsyncClient(target) as client, asyncio.timeout(5):
            outcomes = client.classify_stream(pictures(), model="fake")
            assert label_of(await anext(outcomes)) == "one"
            first_known.set()
            assert [label_of(outcome) async for outcome in outcomes] == ["two"]

    asyncio.run(scenario())


def test_a_stream_reads_pictures_only_so_far_ahead(target: str) -> None:
    drawn: list[int] = []

    def pictures() -> Iterator[bytes]:
        for index in range(10):
            drawn.append(index)
            yield b"%d" % index

    async def scenario() -> None:
        async with AsyncClient(target) as client:
            outcomes = client.classify_stream(pictures(), model="fake", max_in_flight=3)
            assert label_of(await anext(outcomes)) == "0"
            await asyncio.sleep(0.1)  # time to read more, were it free to
            assert drawn == [0, 1, 2, 3]
            assert [label_of(outcome) async for outcome in outcomes] == [str(index) for index in range(1, 10)]

    asyncio.run(scenario())


def test_a_stream_that_is_left_open_is_closed_with_its_loop_in_silence(
    target: str, service: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> Any:
        outcomes = AsyncClient(target).classify_stream(asyncio_pictures(), model="fake")
        await anext(outcomes)
        return outcomes

    async def asyncio_pictures() -> AsyncIterator[bytes]:
        yield b"one"
        await asyncio.Event().wait()

    kept = asyncio.run(scenario())
    assert service.stream_over.wait(5)
    assert "asynchronous generator" not in caplog.text
    del kept


def test_a_stream_ends_at_its_deadline_though_its_source_is_silent(target: str) -> None:
    async def silent() -> AsyncIterator[bytes]:
        yield b"one"
        await asyncio.Event().wait()

    async def scenario() -> None:
        async with AsyncClient(target) as client, asyncio.timeout(5):
            outcomes = client.classify_stream(silent(), model="fake", timeout_s=0.3)
            assert label_of(await anext(outcomes)) == "one"
            with pytest.raises(ClientError, match="DEADLINE_EXCEEDED"):
                await anext(outcomes)

    asyncio.run(scenario())


def test_what_the_source_raises_comes_after_the_outcomes_before_it(target: str, service: Any) -> None:
    def pictures() -> Iterator[bytes]:
        yield b"one"
        raise LookupError("no second picture")

    async def scenario() -> str:
        async with AsyncClient(target) as client:
            outcomes = client.classify_stream(pictures(), model="fake")
            label = label_of(await anext(outcomes))
            with pytest.raises(LookupError, match="no second picture"):
                await anext(outcomes)
            return label

    assert asyncio.run(scenario()) == "one"
    assert service.stream_over.wait(2)


def test_a_source_is_left_alone_once_its_stream_has_failed(target: str, service: Any, refusal: Any) -> None:
    def broken(requests: Iterator[pb.ClassifyRequest]) -> Iterator[pb.ClassifyStreamResponse]:
        next(requests)
        raise refusal(code_pb2.UNAVAILABLE, "draining")

    async def scenario() -> bool:
        left = asyncio.Event()

        async def pictures() -> AsyncIterator[bytes]:
            yield b"one"
            try:
                await asyncio.Event().wait()
            finally:
                left.set()

        async with AsyncClient(target) as client:
            with pytest.raises(ClientError, match="UNAVAILABLE: draining"):
                await anext(client.classify_stream(pictures(), model="fake"))
        return left.is_set()

    service.stream = broken
    assert asyncio.run(scenario())


def test_a_stream_that_the_server_ends_while_pictures_are_sent_loses_no_outcome_and_keeps_the_reason(
    target: str, service: Any, refusal: Any
) -> None:
    """Many times, for grpc.aio's own write hides the server's status about every second time."""

    def broken(requests: Iterator[pb.ClassifyRequest]) -> Iterator[pb.ClassifyStreamResponse]:
        for sequence in range(5):
            yield pb.ClassifyStreamResponse(sequence=sequence, response=service.echo(next(requests)))
        raise refusal(code_pb2.UNAVAILABLE, "draining")

    async def ending(client: AsyncClient) -> list[str]:
        pictures = [b"x" * 100_000] * 100
        seen = []
        try:
            async for outcome in client.classify_stream(pictures, model="fake", max_in_flight=20):
                seen.append(label_of(outcome))  # noqa: PERF401 - keeps what came before the end
        except ClientError as error:
            seen.append(str(error))
        return seen

    async def scenario() -> None:
        async with AsyncClient(target) as client:
            for _ in range(30):
                assert await ending(client) == ["xxxxxxxx"] * 5 + ["UNAVAILABLE: draining"]

    service.stream = broken
    asyncio.run(scenario())


def test_cancelling_who_waits_cancels_the_call_on_the_server(target: str, service: Any) -> None:
    async def scenario() -> None:
        async with AsyncClient(target) as client:
            task = asyncio.create_task(client.classify([b"cat"], model="fake"))
            await asyncio.to_thread(service.classify_begun.wait, 5)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await asyncio.to_thread(service.classify_cancelled.wait, 5)

    released = threading.Event()
    service.answer = lambda request: service.echo(request) if released.wait(10) else None
    asyncio.run(scenario())
    released.set()


def test_cancelling_who_waits_is_no_closing_even_where_both_happen(target: str, service: Any) -> None:
    async def scenario() -> None:
        client = AsyncClient(target)
        task = asyncio.create_task(client.classify([b"cat"], model="fake"))
        await asyncio.to_thread(service.classify_begun.wait, 5)
        task.cancel()
        await client.close()
        with pytest.raises(asyncio.CancelledError):
            await task

    released = threading.Event()
    service.answer = lambda request: service.echo(request) if released.wait(10) else None
    asyncio.run(scenario())
    released.set()


def test_closing_the_client_fails_what_is_under_way(target: str, service: Any, refusal: Any) -> None:
    """A call, a stream whose source is silent, and a wait between attempts."""

    async def silent() -> AsyncIterator[bytes]:
        yield b"one"
        await asyncio.Event().wait()

    def answer(request: pb.ClassifyRequest) -> pb.ClassifyResponse:
        if request.model == "full":
            raise refusal(code_pb2.RESOURCE_EXHAUSTED, "full", 30)
        if request.model == "slow":
            released.wait(10)
        echo: pb.ClassifyResponse = service.echo(request)
        return echo

    async def scenario() -> list[str]:
        client = AsyncClient(target, timeout_s=100)
        outcomes = client.classify_stream(silent(), model="fake")
        await anext(outcomes)
        calls: list[Any] = [client.classify([b"cat"], model=model) for model in ("slow", "full")]
        tasks = [asyncio.ensure_future(call) for call in [*calls, anext(outcomes)]]
        while len(service.requests) < 3:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        await client.close()
        async with asyncio.timeout(5):
            return [str(error) for error in await asyncio.gather(*tasks, return_exceptions=True)]

    released = threading.Event()
    service.answer = answer
    assert asyncio.run(scenario()) == ["CANCELLED: the client was closed"] * 3
    released.set()


def test_leaving_a_stream_early_ends_it_on_the_server(target: str, service: Any) -> None:
    async def scenario() -> None:
        async with AsyncClient(target) as client:
            async with contextlib.aclosing(client.classify_stream([b"one", b"two"], model="fake")) as outcomes:
                async for _ in outcomes:
                    break
            assert await asyncio.to_thread(service.stream_over.wait, 5)

    asyncio.run(scenario())


def test_a_client_is_made_inside_a_running_loop() -> None:
    with pytest.raises(RuntimeError, match="no running event loop"):
        AsyncClient("localhost")
