"""What the transport holds of a request: nothing, once it has its answer, and no pictures of it while it waits."""

from __future__ import annotations

import asyncio
import gc

import grpc
import pytest

from attnserve.errors import NotFound
from attnserve.handlers.table import Method
from attnserve.listeners import QuietListener
from attnserve.transport.grpcio import GrpcioTransport
from attnserve.transport.options import ConnectionLimits
from attnserve.v1 import attention_pb2 as pb


def handle(request, call):
    """Fail at once, fail later, or answer, as the request says."""
    if request.model == "unknown":
        raise NotFound("no such model")
    if request.model == "later":
        call.inbox.post([lambda: call.fail(NotFound("gone"))])
    else:
        call.reply(pb.ClassifyResponse())


def wrap(sequence, request, reply, error):
    return pb.ClassifyStreamResponse(sequence=sequence, message=f"{request.model}: {error or reply}")


def messages() -> list[pb.ClassifyRequest]:
    """The requests that anything in this process still holds."""
    return [each for each in gc.get_objects() if type(each) is pb.ClassifyRequest]


@pytest.fixture
def no_collector():
    """Only what nothing leads to any more is freed, and at once."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("model", ["net", "unknown", "later"])
def test_a_request_that_has_its_answer_is_freed_without_the_garbage_collector(model, streamed):
    """A cycle from an error's traceback to the request once kept every refused picture until the next collection."""

    async def ask(channel) -> None:
        data = pb.ClassifyRequest(model=model).SerializeToString()
        if streamed:
            call = channel.stream_stream("/test.Service/Ask", bytes, pb.ClassifyStreamResponse.FromString)
            assert len([answer async for answer in call(iter([data, data]))]) == 2
        elif model == "net":
            await channel.unary_unary("/test.Service/Ask", bytes, bytes)(data)
        else:
            with pytest.raises(grpc.aio.AioRpcError, match="NOT_FOUND"):
                await channel.unary_unary("/test.Service/Ask", bytes, bytes)(data)

    async def serve() -> None:
        method = Method("test.Service", "Ask", pb.ClassifyRequest, handle, wrap if streamed else None)
        transport = GrpcioTransport([method], QuietListener(), limits=ConnectionLimits(1 << 20))
        port = await transport.start("127.0.0.1", 0)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            for _ in range(3):
                await ask(channel)
        await transport.drain(1, lambda: None)

    asyncio.run(serve())
    assert messages() == []


@pytest.mark.usefixtures("no_collector")
def test_a_request_is_freed_while_its_answer_is_awaited():
    """Its handler has taken from it what it needs."""
    waiting = []

    async def serve() -> int:
        method = Method("test.Service", "Ask", pb.ClassifyRequest, lambda _, call: waiting.append(call))
        transport = GrpcioTransport([method], QuietListener(), limits=ConnectionLimits(1 << 20))
        port = await transport.start("127.0.0.1", 0)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            answer = channel.unary_unary("/test.Service/Ask", bytes, bytes)(b"")
            while not waiting:
                await asyncio.sleep(0.001)
            held = len(messages())
            waiting.pop().reply(pb.ClassifyResponse())
            await answer
        await transport.drain(1, lambda: None)
        return held

    assert asyncio.run(serve()) == 0


def test_the_last_answer_of_a_stream_has_time_to_pass_a_proxy_before_the_drain_ends_the_stream():
    async def drained() -> float:
        method = Method("test.Service", "Ask", pb.ClassifyRequest, handle, wrap)
        transport = GrpcioTransport([method], QuietListener(), limits=ConnectionLimits(1 << 20))
        port = await transport.start("127.0.0.1", 0)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            call = channel.stream_stream("/test.Service/Ask", bytes, pb.ClassifyStreamResponse.FromString)()
            await call.write(pb.ClassifyRequest(model="net").SerializeToString())
            assert (await call.read()).sequence == 0
            began = asyncio.get_running_loop().time()
            draining = asyncio.create_task(transport.drain(1, lambda: None))
            assert await call.code() is grpc.StatusCode.UNAVAILABLE
            waited_s = asyncio.get_running_loop().time() - began
            await draining
        return waited_s

    assert asyncio.run(drained()) >= 0.09
