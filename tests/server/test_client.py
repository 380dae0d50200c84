"""The Python client against a real server: asyncio, overload, a restart."""

from __future__ import annotations

import asyncio
import socket
import time

import numpy as np
import pytest

from attnserve.client import AsyncClient, Classification, ClientError, Retry

pytestmark = [pytest.mark.both_transports, pytest.mark.fronts]

MODEL = "fashion-mnist-cbam"


def best(answers: list[Classification]) -> list[tuple[int, float]]:
    return [
        (answer.predictions[0].index, pytest.approx(answer.predictions[0].probability, rel=1e-5)) for answer in answers
    ]


def test_both_clients_get_the_same_answers(server, client, pictures):
    async def scenario() -> None:
        async with AsyncClient(server.grpc) as other:
            assert await other.models() == client.models()
            assert await other.model(MODEL) == client.model(MODEL)
            (answer,) = await other.classify([pictures[0]], model=MODEL, attention="full")
            for site, expected in zip(answer.attention, truth[0].attention, strict=True):
                np.testing.assert_allclose(site.spatial.values, expected.spatial.values, rtol=1e-5)
            assert best(await other.classify(list(pictures[:20]), model=MODEL)) == best(truth)
            outcomes = [outcome async for outcome in other.classify_stream(pictures[:20], model=MODEL)]
            assert best(outcomes) == best(truth)

    truth = client.classify(list(pictures[:20]), model=MODEL, attention="full")
    asyncio.run(scenario())


def test_callers_of_a_full_server_are_all_answered_where_they_may_come_back(start_server, pictures):
    async def refused(target: str, retry: Retry | None) -> tuple[list[ClientError], int]:
        async with AsyncClient(target, timeout_s=30, retry=retry) as client:
            calls = [client.classify([picture] * 4, model=MODEL, top_k=1) for picture in pictures[:60]]
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
        return [each for each in outcomes if isinstance(each, BaseException)], len(outcomes)

    with start_server("--max-pending-images", "8") as server:
        errors, calls = asyncio.run(refused(server.grpc, None))
        assert 0 < len(errors) < calls
        assert {error.code for error in errors} == {"RESOURCE_EXHAUSTED"}
        assert asyncio.run(refused(server.grpc, Retry(max_attempts=100)))[0] == []


def test_a_call_outlives_a_restart_of_the_server(server_process, pictures):
    """One server drains, another takes its port; whoever calls all the while notices nothing but the time."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    answered: list[float] = []
    servers = []

    def start():
        servers.append(server_process("--grpc-address", address))
        return servers[-1]

    async def calls(client: AsyncClient, over: asyncio.Event) -> None:
        while not over.is_set():
            (answer,) = await client.classify([pictures[0]], model=MODEL, top_k=1)
            assert answer.predictions[0].label == "Ankle boot"
            answered.append(time.monotonic())

    async def scenario() -> None:
        over = asyncio.Event()
        retry = Retry(max_attempts=1000, base_s=0.05, max_s=0.2)
        async with AsyncClient(address, timeout_s=60, retry=retry) as client:
            first = await asyncio.to_thread(start)
            callers = asyncio.gather(*(calls(client, over) for _ in range(4)))
            while len(answered) < 20:
                await asyncio.sleep(0.01)
            assert await asyncio.to_thread(first.stop) == 0
            stopped = time.monotonic()
            second = await asyncio.to_thread(start)
            while answered[-1] < stopped and not callers.done():
                await asyncio.sleep(0.01)
            over.set()
            await callers
            assert await asyncio.to_thread(second.stop) == 0

    try:
        asyncio.run(scenario())
    finally:
        for server in servers:
            server.process.kill()  # nothing where it has stopped, as it should
