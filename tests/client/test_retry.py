"""Which failures are tried again and when: decisions on a fake clock, then a client that follows them."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from google.rpc import code_pb2

from attnserve.client import Client, ClientError, Retry
from attnserve.client.retry import Attempts
from attnserve.v1 import attention_pb2 as pb

UNAVAILABLE = ClientError("UNAVAILABLE", "draining")


def full(retry_after_s: float | None) -> ClientError:
    return ClientError("RESOURCE_EXHAUSTED", "the queue is full", retry_after_s)


class FakeTime:
    """A clock that only `sleep` moves."""

    def __init__(self) -> None:
        self.now = 100.0
        self.slept: list[float] = []

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


@pytest.fixture
def time() -> FakeTime:
    return FakeTime()


def waits(retry: Retry, errors: list[ClientError], random: float) -> list[float]:
    attempts = Attempts(retry, deadline=math.inf, random=lambda: random)
    return [attempts.failed(error, now=0) for error in errors]


def test_the_wait_doubles_up_to_its_limit_and_its_second_half_is_random() -> None:
    retry = Retry(max_attempts=9, base_s=0.5, max_s=3)
    assert waits(retry, [UNAVAILABLE] * 5, random=0) == [0.25, 0.5, 1, 1.5, 1.5]
    assert waits(retry, [UNAVAILABLE] * 5, random=0.5) == [0.375, 0.75, 1.5, 2.25, 2.25]


def test_a_delay_that_the_server_asks_for_is_never_cut_short() -> None:
    retry = Retry(max_attempts=9, base_s=0.5, max_s=3)
    assert waits(retry, [full(4), full(0.1), full(0.1), full(0)], random=0) == [4, 0.5, 1, 1.5]
    assert waits(retry, [full(4), full(0.1)], random=0.5) == [6, 0.75]


def test_the_last_attempt_is_not_followed_by_another() -> None:
    attempts = Attempts(Retry(max_attempts=3), deadline=1000, random=lambda: 0)
    assert [attempts.failed(UNAVAILABLE, now=0) for _ in range(2)] == [0.05, 0.1]
    with pytest.raises(ClientError) as caught:
        attempts.failed(UNAVAILABLE, now=0)
    assert caught.value is UNAVAILABLE


def test_a_thousand_attempts_wait_no_longer_than_the_limit() -> None:
    assert waits(Retry(max_attempts=1000), [UNAVAILABLE] * 999, random=0)[-1] == 2.5


@pytest.mark.parametrize(
    "error",
    [
        full(None),
        *[
            ClientError(code, "no", 0.1)
            for code in ("INVALID_ARGUMENT", "NOT_FOUND", "DEADLINE_EXCEEDED", "INTERNAL", "CANCELLED")
        ],
    ],
    ids=lambda error: error.code,
)
def test_what_will_not_pass_is_not_tried_again(error: ClientError) -> None:
    with pytest.raises(ClientError) as caught:
        Attempts(Retry(), deadline=1000, random=lambda: 0).failed(error, now=0)
    assert caught.value is error


def test_without_a_retry_nothing_is_tried_again() -> None:
    with pytest.raises(ClientError):
        Attempts(None, deadline=1000, random=lambda: 0).failed(UNAVAILABLE, now=0)


def test_there_is_no_wait_that_the_deadline_would_cut() -> None:
    attempts = Attempts(Retry(), deadline=10, random=lambda: 0)
    assert attempts.failed(full(2), now=7.9) == 2
    with pytest.raises(ClientError):
        attempts.failed(full(2), now=8)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"max_attempts": 0}, "max_attempts"),
        ({"max_attempts": 1001}, "max_attempts"),
        ({"base_s": 0}, "base_s"),
        ({"base_s": 2, "max_s": 1}, "max_s"),
        ({"max_s": math.inf}, "max_s"),
        ({"base_s": math.nan}, "base_s"),
    ],
)
def test_a_retry_that_cannot_be_followed_is_refused_by_name(wrong: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        Retry(**wrong)


def failing(service: Any, failures: list[Exception]) -> None:
    """Have the service answer with these, in turn, and then properly."""
    rest: Iterator[Exception] = iter(failures)

    def answer(request: pb.ClassifyRequest) -> pb.ClassifyResponse:
        for failure in rest:
            raise failure
        echo: pb.ClassifyResponse = service.echo(request)
        return echo

    service.answer = answer


def test_a_call_is_tried_again_until_it_is_answered(
    make_client: Any, target: str, service: Any, refusal: Any, time: FakeTime
) -> None:
    failing(service, [refusal(code_pb2.RESOURCE_EXHAUSTED, "full", 1.25), refusal(code_pb2.UNAVAILABLE, "draining")])
    with make_client(target, timeout_s=60, clock=time.clock, sleep=time.sleep, random=lambda: 0.5) as client:
        (answer,) = client.classify([b"cat"], model="fake")
    assert answer.predictions[0].label == "cat"
    assert time.slept == pytest.approx([1.875, 0.15])
    assert service.requests == [service.requests[0]] * 3


def test_all_attempts_share_one_deadline(
    make_client: Any, target: str, service: Any, refusal: Any, time: FakeTime
) -> None:
    failing(service, [refusal(code_pb2.RESOURCE_EXHAUSTED, "full", 3)] * 9)
    client = make_client(target, timeout_s=20, clock=time.clock, sleep=time.sleep, random=lambda: 0)
    with client, pytest.raises(ClientError, match="full"):
        client.classify([b"cat"], model="fake", timeout_s=10)
    assert time.slept == [3, 3, 3]
    assert service.deadlines_s == pytest.approx([10, 7, 4, 1], abs=0.9)


def test_what_will_not_pass_is_sent_once(make_client: Any, target: str, service: Any, time: FakeTime) -> None:
    with make_client(target, clock=time.clock, sleep=time.sleep) as client:
        with pytest.raises(ClientError, match="INVALID_ARGUMENT"):
            client.classify([b"bad"], model="fake")
        with pytest.raises(ClientError, match="NOT_FOUND"):
            client.model("unknown")
    assert (len(service.requests), time.slept) == (1, [])


def test_a_server_that_is_not_there_is_tried_as_often_as_allowed(make_client: Any, time: FakeTime) -> None:
    retry = Retry(max_attempts=3, base_s=1)
    client = make_client("127.0.0.1:1", retry=retry, clock=time.clock, sleep=time.sleep, random=lambda: 0)
    with client, pytest.raises(ClientError, match="UNAVAILABLE"):
        client.models()
    assert time.slept == [0.5, 1]


def test_a_stream_does_not_send_a_refused_picture_again(
    make_client: Any, target: str, service: Any, refusal: Any, time: FakeTime
) -> None:
    failing(service, [refusal(code_pb2.RESOURCE_EXHAUSTED, "full", 0.5)])
    with make_client(target, clock=time.clock, sleep=time.sleep) as client:
        first, second = client.classify_stream([b"cat", b"dog"], model="fake")
    assert isinstance(first, ClientError)
    assert (first.code, first.retry_after_s) == ("RESOURCE_EXHAUSTED", 0.5)
    assert not isinstance(second, ClientError)
    assert (len(service.requests), time.slept) == (2, [])


def test_closing_the_client_ends_a_wait(target: str, service: Any, refusal: Any) -> None:
    failing(service, [refusal(code_pb2.RESOURCE_EXHAUSTED, "full", 30)] * 2)
    client = Client(target, timeout_s=100)
    errors: list[BaseException] = []

    def call() -> None:
        try:
            client.classify([b"cat"], model="fake")
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    while not service.requests:
        thread.join(0.01)
    thread.join(0.1)
    client.close()
    thread.join(5)
    assert not thread.is_alive()
    assert [str(error) for error in errors] == ["CANCELLED: the client was closed"]
