"""A second attempt beside a slow first one: one at most, the first success counts, the other is cancelled."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from google.rpc import code_pb2

from attnserve.client import Client, ClientError
from attnserve.v1 import attention_pb2 as pb


class Turns:
    """Has the service do something else for each call that reaches it; `stuck` calls wait for the end of the test."""

    def __init__(self, service: Any, *turns: str | Exception) -> None:
        self._service = service
        self._turns = iter(turns)
        self._lock = threading.Lock()
        self.free = threading.Event()
        self.second_came = threading.Event()
        service.answer = self.answer

    def answer(self, request: pb.ClassifyRequest) -> pb.ClassifyResponse:
        with self._lock:
            turn = next(self._turns)
        if len(self._service.requests) == 2:
            self.second_came.set()
        if turn == "stuck":
            self.free.wait(10)
        if turn == "until the second came":
            self.second_came.wait(10)
        if isinstance(turn, Exception):
            raise turn
        reply: pb.ClassifyResponse = self._service.echo(request)
        reply.version = turn
        return reply


@pytest.fixture
def turns(service: Any) -> Iterator[Callable[..., Turns]]:
    made: list[Turns] = []

    def make(*turns: str | Exception) -> Turns:
        made.append(Turns(service, *turns))
        return made[-1]

    yield make
    for each in made:
        each.free.set()


def test_a_slow_first_attempt_is_overtaken_by_the_second_and_cancelled(
    make_client: Any, target: str, service: Any, turns: Any
) -> None:
    turns("stuck", "quick")
    with make_client(target, hedge_after_s=0.05) as client:
        (answer,) = client.classify([b"cat"], model="fake")
        assert service.classify_cancelled.wait(5)
    assert answer.version == "quick"
    assert service.requests == [service.requests[0]] * 2


def test_a_quick_first_attempt_stays_alone(make_client: Any, target: str, service: Any, turns: Any) -> None:
    turns("quick")
    with make_client(target, hedge_after_s=5) as client:
        client.classify([b"cat"], model="fake")
    assert len(service.requests) == 1


def test_without_hedging_a_slow_attempt_stays_alone(make_client: Any, target: str, service: Any, turns: Any) -> None:
    turns("stuck", "quick")
    with make_client(target) as client, pytest.raises(ClientError, match="DEADLINE_EXCEEDED"):
        client.classify([b"cat"], model="fake", timeout_s=0.3)
    assert len(service.requests) == 1


def test_a_first_attempt_that_wins_after_all_counts(make_client: Any, target: str, service: Any, turns: Any) -> None:
    turns("until the second came", "stuck")
    with make_client(target, hedge_after_s=0.05) as client:
        (answer,) = client.classify([b"cat"], model="fake")
    assert answer.version == "until the second came"
    assert len(service.requests) == 2


def test_there_is_one_extra_attempt_and_both_end_at_the_deadline(
    make_client: Any, target: str, service: Any, turns: Any
) -> None:
    turns("stuck", "stuck", "quick")
    with make_client(target, hedge_after_s=0.05) as client, pytest.raises(ClientError, match="DEADLINE_EXCEEDED"):
        client.classify([b"cat"], model="fake", timeout_s=0.5)
    assert len(service.requests) == 2
    assert service.deadlines_s == pytest.approx([0.5, 0.45], abs=0.2)


def test_a_failure_that_may_pass_leaves_it_to_the_other(
    make_client: Any, target: str, service: Any, refusal: Any, turns: Any
) -> None:
    state = turns("released", refusal(code_pb2.UNAVAILABLE, "draining"))
    second_refused = threading.Event()
    answer = service.answer

    def first_waits(request: pb.ClassifyRequest) -> pb.ClassifyResponse:
        try:
            reply: pb.ClassifyResponse = answer(request)
        except BaseException:
            second_refused.set()
            raise
        second_refused.wait(10)
        state.free.wait(0.1)  # the refusal is heard first
        return reply

    service.answer = first_waits
    with make_client(target, retry=None, hedge_after_s=0.05) as client:
        (reply,) = client.classify([b"cat"], model="fake")
    assert reply.version == "released"


def test_a_failure_that_will_not_pass_ends_both(
    make_client: Any, target: str, service: Any, refusal: Any, turns: Any
) -> None:
    turns("stuck", refusal(code_pb2.INVALID_ARGUMENT, "images[0]: not a picture"))
    with make_client(target, hedge_after_s=0.05) as client:
        with pytest.raises(ClientError, match="INVALID_ARGUMENT"):
            client.classify([b"cat"], model="fake")
        assert service.classify_cancelled.wait(5)


def test_a_first_attempt_that_is_refused_early_is_retried_alone(
    make_client: Any, target: str, service: Any, refusal: Any, turns: Any
) -> None:
    turns(refusal(code_pb2.UNAVAILABLE, "draining"), "quick")
    slept: list[float] = []
    with make_client(target, hedge_after_s=5, sleep=slept.append, random=lambda: 0) as client:
        assert client.classify([b"cat"], model="fake")[0].version == "quick"
    assert (len(service.requests), slept) == (2, [0.05])


def test_a_retry_is_not_hedged(make_client: Any, target: str, service: Any, refusal: Any, turns: Any) -> None:
    turns(refusal(code_pb2.UNAVAILABLE, "draining"), "stuck", "quick")
    client = make_client(target, hedge_after_s=0.15, sleep=lambda _: None)
    with client, pytest.raises(ClientError, match="DEADLINE_EXCEEDED"):
        client.classify([b"cat"], model="fake", timeout_s=0.6)
    assert len(service.requests) == 2


def test_two_refused_attempts_are_one_failure_to_the_retry(
    make_client: Any, target: str, service: Any, refusal: Any, turns: Any
) -> None:
    full = refusal(code_pb2.RESOURCE_EXHAUSTED, "full", 1)
    state = turns("refused later", full, "quick")
    answer = service.answer

    def first_is_refused_later(request: pb.ClassifyRequest) -> pb.ClassifyResponse:
        reply: pb.ClassifyResponse = answer(request)
        if reply.version == "refused later":
            state.second_came.wait(10)
            raise full
        return reply

    service.answer = first_is_refused_later
    slept: list[float] = []
    with make_client(target, hedge_after_s=0.05, sleep=slept.append, random=lambda: 0) as client:
        assert client.classify([b"cat"], model="fake")[0].version == "quick"
    assert (len(service.requests), slept) == (3, [1])


def test_only_classify_is_hedged(make_client: Any, target: str, service: Any) -> None:
    with make_client(target, hedge_after_s=1e-6) as client:
        client.models()
        client.model("fake")
        list(client.classify_stream([b"cat"], model="fake"))
    assert len(service.deadlines_s) == 3


def test_closing_a_hedging_client_fails_both_attempts(target: str, turns: Any) -> None:
    state = turns("stuck", "stuck")
    client = Client(target, hedge_after_s=0.05)
    closer = threading.Thread(target=lambda: state.second_came.wait(5) and client.close())
    closer.start()
    with pytest.raises(ClientError, match="CANCELLED"):
        client.classify([b"cat"], model="fake")
    closer.join()
    with pytest.raises(ClientError, match="CANCELLED: the client was closed"):
        client.classify([b"cat"], model="fake")


@pytest.mark.parametrize("hedge_after_s", [0, -1, math.nan, math.inf])
def test_a_hedge_that_is_no_time_is_refused(make_client: Any, hedge_after_s: float) -> None:
    with pytest.raises(ValueError, match="hedge_after_s"):
        make_client("localhost", hedge_after_s=hedge_after_s)
