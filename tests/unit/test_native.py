"""The fast transport with a puppet in place of the native front: every event of a batch gets what it must, once."""

from __future__ import annotations

import asyncio
import gc
import math
import subprocess
import sys
import threading
import time
from queue import SimpleQueue
from typing import Any

import grpc
import pytest

from attnserve.contract import Call
from attnserve.errors import ConfigError, NotFound, Overloaded, Unavailable
from attnserve.handlers.table import Method
from attnserve.listeners import QuietListener
from attnserve.transport.native import NativeTransport
from attnserve.transport.options import ConnectionLimits
from attnserve.v1 import attention_pb2 as pb

CALL, CANCEL = 0, 1
PATH = "/test.Service/Ask"
PEER = "ipv4:127.0.0.1:4"


class PuppetFront:
    """Hands over what the test says, and keeps what is answered: id -> a message, or (code, text, metadata)."""

    bound_port = 8001

    def __init__(self, target: str, methods: list[tuple[str, bool]], **options: Any) -> None:
        self.target, self.methods, self.options = target, methods, options
        self.answers: dict[int, Any] = {}
        self.twice: list[int] = []
        self.rest = ""
        self.unsent = self.unsent_at_close = 0
        self._batches: SimpleQueue[list[Any] | None] = SimpleQueue()
        self._changed = threading.Condition()

    def set_fallback(self, path: str) -> None:
        self.rest = path

    def start(self) -> None:
        pass

    def recv_batch_details(self, _: int) -> list[Any] | None:
        return self._batches.get()

    def respond(self, call_id: int, payload: bytes, *_: Any) -> bool:
        return self._keep(call_id, pb.ClassifyResponse.FromString(payload))

    def fail(self, call_id: int, code: int, message: str, trailing: Any = None) -> bool:
        return self._keep(call_id, (code, message, dict(trailing or ())))

    def _keep(self, call_id: int, answer: Any) -> bool:
        with self._changed:
            if call_id in self.answers:
                self.twice.append(call_id)
            self.answers[call_id] = answer
            self._changed.notify_all()
        return True

    def metrics(self) -> dict[str, Any]:
        """As if at each look one more answer had left."""
        self.unsent = max(0, self.unsent - 1)
        method = {"started": 9, "status": {0: {"count": 5}, 3: {"count": 4 - self.unsent}}}
        return {"methods": {PATH: method, "other": {"started": 0, "status": {}}}}

    def close(self) -> None:
        self.unsent_at_close = self.unsent
        self._batches.put(None)

    def bring(self, *events: tuple[Any, ...]) -> None:
        self._batches.put(list(events))

    async def answered(self, count: int) -> dict[int, Any]:
        def wait() -> bool:
            with self._changed:
                return self._changed.wait_for(lambda: len(self.answers) >= count, 20)

        assert await asyncio.to_thread(wait), self.answers
        assert self.twice == []
        return self.answers


def asks(call_id: int, model: str, metadata: Any = (), remaining_s: float | None = None) -> tuple[Any, ...]:
    payload = pb.ClassifyRequest(model=model).SerializeToString()
    return (CALL, call_id, 0, payload, PEER, (tuple(metadata), PEER, remaining_s))


def cancels(call_id: int) -> tuple[Any, ...]:
    return (CANCEL, call_id, 0, None, None, None)


class House:
    """A transport on a puppet, whose methods do as the request's model says; `held` are calls yet to be answered."""

    def __init__(self) -> None:
        self.fronts: list[PuppetFront] = []
        self.held: list[Call] = []
        self.idle = 0
        method = Method("test.Service", "Ask", pb.ClassifyRequest, self._handle, hot=True)
        cold = Method("test.Service", "Other", pb.ClassifyRequest, self._handle)
        self.transport = NativeTransport(
            [method, cold], QuietListener(), limits=ConnectionLimits(100), on_idle=self._on_idle, front=self._front,
            clock=lambda: 1000.0,
        )  # fmt: skip

    def _front(self, *args: Any, **options: Any) -> Any:
        self.fronts.append(PuppetFront(*args, **options))
        return self.fronts[-1]

    def _on_idle(self) -> None:
        self.idle += 1

    def _handle(self, request: pb.ClassifyRequest, call: Call) -> None:
        if request.model == "held":
            self.held.append(call)
        elif request.model == "unknown":
            raise NotFound("no such model")
        elif request.model == "full":
            raise Overloaded("full", retry_after_s=2)
        elif request.model == "bug":
            raise ZeroDivisionError
        elif request.model == "unwritable":
            call.reply("not a message")
        else:
            call.reply(pb.ClassifyResponse(id=request.model))

    async def start(self) -> PuppetFront:
        assert await self.transport.start("127.0.0.1", 0) == PuppetFront.bound_port
        return self.fronts[0]


def within(test: Any) -> None:
    """Run the test's coroutine in a house of its own, and drain it."""

    async def run() -> None:
        house = House()
        front = await house.start()
        await test(house, front)
        assert await house.transport.drain(5, lambda: None)
        assert house.transport.open_calls == 0

    asyncio.run(run())


def test_only_hot_unary_methods_are_the_front_s_and_the_rest_is_behind_it():
    async def test(_: House, front: PuppetFront) -> None:
        assert front.methods == [(PATH, False)]
        async with grpc.aio.insecure_channel(f"unix:{front.rest}") as channel:
            ask = channel.unary_unary("/test.Service/Other", bytes, pb.ClassifyResponse.FromString)
            assert (await ask(pb.ClassifyRequest(model="a").SerializeToString())).id == "a"

    within(test)


def test_every_call_of_a_batch_gets_its_own_answer_whatever_befalls_the_others():
    async def test(_: House, front: PuppetFront) -> None:
        front.bring(asks(1, "a"), asks(2, "unknown"), asks(3, "bug"), asks(4, "unwritable"), asks(5, "b"))
        front.bring((CALL, 6, 0, b"\xff", PEER, ((), PEER, None)), asks(7, "full", [("x-request-id", "mine")]))
        answers = await front.answered(7)
        assert (answers[1].id, answers[5].id) == ("a", "b")
        assert answers[2][:2] == (5, "no such model")
        assert answers[3][:2] == answers[4][:2] == (13, "internal error")
        assert answers[6][0] == 3
        assert "not a valid" in answers[6][1]
        code, text, trailing = answers[7]
        assert (code, text, trailing["x-request-id"]) == (8, "full", "mine")
        assert b"RetryInfo" in trailing["grpc-status-details-bin"]

    within(test)


def test_an_event_that_cannot_be_understood_does_not_hold_up_those_that_came_with_it(caplog):
    async def test(_: House, front: PuppetFront) -> None:
        front.bring((CALL, 1, 99, b"", PEER, ((), PEER, None)), asks(2, "b"))
        answers = await front.answered(2)
        assert answers[1][0] == 13
        assert answers[2].id == "b"

    within(test)
    assert "a call could not be begun" in caplog.text


def test_a_message_above_the_limit_is_refused_unread():
    async def test(_: House, front: PuppetFront) -> None:
        front.bring((CALL, 1, 0, b"\xff" * 101, PEER, ((), PEER, None)))
        code, text, _ = (await front.answered(1))[1]
        assert (code, text) == (8, "SERVER: Received message larger than max (101 vs. 100)")

    within(test)


def test_the_call_knows_who_asks_by_what_name_and_until_when():
    async def test(house: House, front: PuppetFront) -> None:
        front.bring(asks(1, "held"), asks(2, "held", [("x-client-id", "me"), ("x-request-id", "r")], 5.0))
        front.bring(asks(3, "a"))
        await front.answered(1)
        nobody, me = house.held
        assert (nobody.client, nobody.deadline) == (PEER, math.inf)
        assert nobody.request_id
        assert (me.client, me.request_id, me.deadline) == ("me", "r", 1005.0)
        assert house.transport.open_calls == 2
        for call in house.held:
            call.inbox.post([lambda call=call: call.reply(pb.ClassifyResponse(id=call.client))])
        answers = await front.answered(3)
        assert (answers[1].id, answers[2].id) == (PEER, "me")
        assert house.idle == 1

    within(test)


def test_a_caller_that_goes_away_cancels_its_call_and_no_other():
    async def test(house: House, front: PuppetFront) -> None:
        front.bring(asks(1, "held"), asks(2, "held"), asks(3, "a"), cancels(3), cancels(77), cancels(2), asks(4, "a"))
        await front.answered(2)
        assert [call.cancelled for call in house.held] == [False, True]
        for call in house.held:
            call.inbox.post([lambda call=call: call.reply(pb.ClassifyResponse())])
        await front.answered(4)

    within(test)


def test_the_drain_waits_for_the_open_calls_of_both_and_fails_the_rest_once():
    async def run() -> None:
        house = House()
        front = await house.start()
        front.bring(asks(1, "held"), asks(2, "a"))
        await front.answered(1)
        failed: list[int] = []

        def fail_rest() -> None:
            failed.append(len(house.held))
            for call in house.held:
                call.inbox.post([lambda call=call: call.fail(Unavailable("over"))])

        async with grpc.aio.insecure_channel(f"unix:{front.rest}") as channel:
            ask = channel.unary_unary("/test.Service/Other", bytes, bytes)
            asking = asyncio.ensure_future(ask(pb.ClassifyRequest(model="held").SerializeToString()).code())
            while len(house.held) < 2:
                await asyncio.sleep(0.01)
            assert house.transport.open_calls == 2
            assert not await house.transport.drain(0.05, fail_rest)
            assert await asking == grpc.StatusCode.UNAVAILABLE
        assert failed == [2]
        assert front.answers[1][:2] == (14, "over")
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("native-")]

    asyncio.run(run())


def test_the_front_is_closed_only_when_the_last_answers_have_left():
    async def test(_: House, front: PuppetFront) -> None:
        fronts.append(front)
        front.unsent = 5

    fronts: list[PuppetFront] = []
    within(test)
    assert (fronts[0].unsent, fronts[0].unsent_at_close) == (0, 0)


def test_after_20000_requests_nothing_is_left_of_them():
    def left() -> int:
        return sum(type(each) in (Call, pb.ClassifyRequest) for each in gc.get_objects())

    async def test(_: House, front: PuppetFront) -> None:
        for at in range(0, 20_000, 50):
            front.bring(*(asks(at + turn, "a" if turn % 3 else "unknown") for turn in range(50)), cancels(at))
        await front.answered(20_000)

    gc.collect()
    before = left()
    gc.disable()
    try:
        within(test)
        assert left() == before
    finally:
        gc.enable()


def test_a_request_is_freed_while_its_answer_is_awaited():
    async def test(house: House, front: PuppetFront) -> None:
        front.bring(asks(1, "held"))
        front.bring(asks(2, "a"))
        await front.answered(1)
        requests = [each for each in gc.get_objects() if type(each) is pb.ClassifyRequest]
        assert not [each for each in requests if each.model == "held"]
        house.held[0].inbox.post([lambda: house.held[0].reply(pb.ClassifyResponse())])
        await front.answered(2)

    gc.collect()
    within(test)


def test_what_came_over_the_wire_is_let_go_while_the_next_is_awaited():
    async def test(_: House, front: PuppetFront) -> None:
        event = asks(1, "a")
        mine = sys.getrefcount(event)
        front.bring(event)
        await front.answered(1)
        end = time.monotonic() + 20
        while sys.getrefcount(event) > mine:  # the frames that took it may be about to end
            assert time.monotonic() < end
            await asyncio.sleep(0.01)

    within(test)


def test_without_the_package_the_start_is_refused_and_the_extra_named():
    code = (
        "import sys; sys.modules['pygrpc_native._native'] = None\n"
        "from attnserve.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    flags = ["serve", "--model-repository", "model_repo", "--transport", "native"]
    flags += ["--grpc-address", "127.0.0.1:0", "--http-address", "127.0.0.1:0"]
    run = subprocess.run([sys.executable, "-c", code, *flags], capture_output=True, text=True, timeout=60)
    assert run.returncode != 0
    assert "transport native needs the extra native" in run.stderr
    assert "Traceback" not in run.stderr


def test_the_default_imports_nothing_of_it():
    code = "import sys, attnserve.server; sys.exit('pygrpc_native' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_an_address_that_cannot_be_had_is_refused_with_the_reason():
    def busy(*_: Any, **__: Any) -> Any:
        raise OSError(98, "Address already in use")

    async def run() -> None:
        transport = NativeTransport([], QuietListener(), limits=ConnectionLimits(100), front=busy)
        with pytest.raises(ConfigError, match=r"cannot listen for gRPC on 127\.0\.0\.1:0: .*in use"):
            await transport.start("127.0.0.1", 0)

    asyncio.run(run())
