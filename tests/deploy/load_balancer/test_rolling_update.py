"""A rolling update and a crash behind the HAProxy of deploy/load-balancer, as callers who never pause see them."""

from __future__ import annotations

import re
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from attnserve.client import Retry
from callers import Asked, Callers, wait_until

pytestmark = pytest.mark.deploy

FOLDER = Path(__file__).parents[3] / "deploy" / "load-balancer"
CONFIG = FOLDER / "haproxy.cfg"
SHUT = "UNAVAILABLE: the server is shutting down"
CUT = "UNAVAILABLE: Stream removed"  # what HAProxy makes of SHUT at times, see deploy/load-balancer/README.md


def drain_delay_s() -> float:
    """What README.md beside haproxy.cfg says to set."""
    (found,) = re.findall(r"--drain-delay-s (\S+)`", (FOLDER / "README.md").read_text())
    return float(found)


def seconds(option: str) -> float:
    """A time, or a count, of the health checks of haproxy.cfg."""
    ((number, unit),) = re.findall(rf"^ *default-server .* {option} (\d+)(ms|s|)\b", CONFIG.read_text(), re.MULTILINE)
    return float(number) / (1000 if unit == "ms" else 1)


FLAGS = ("--drain-delay-s", f"{drain_delay_s():g}", "--log-level", "debug", "--log-format", "json")


def test_the_drain_delay_of_the_readme_outlasts_the_health_checks_of_the_configuration():
    assert drain_delay_s() >= seconds("inter") + (seconds("fall") - 1) * seconds("fastinter") + 1


def ended_by(asked: list[Asked]) -> Counter[str]:
    return Counter(each.error for each in asked if each.error)


def p99_ms(asked: list[Asked]) -> float:
    return float(np.percentile([each.ended - each.began for each in asked], 99)) * 1e3


def told_right(asked: list[Asked], served: dict[int, list[float]]) -> Iterator[str]:
    """Answers by a version that was not there while the caller waited."""
    for each in asked:
        if each.version and not (
            each.version in served and each.began < served[each.version][1] and each.ended > served[each.version][0]
        ):
            yield f"{each} of {served}"


def roll(service, callers: Callers, rolls: int) -> list[Asked]:
    """Two replicas one by one, so many times; returns what was asked one at a time, first without a roll."""
    callers.wait_for(500)
    begun = time.monotonic()
    for version in range(2, rolls + 2):
        for replica in (0, 1):
            service.replace(replica, version)
            callers.wait_for(100)
    over = time.monotonic()
    callers.wait_for(500)
    last = [each for each in callers.asked if each.began > over]
    callers.stop()
    assert {each.version for each in last} == {rolls + 1}
    alone = [each for each in callers.asked if each.caller.startswith("unary")]
    steady, rolling = [each for each in alone if each.ended < begun], [each for each in alone if each.ended > begun]
    print(
        f"{len(callers.asked)} pictures, {len(alone)} of them one at a time, in {over - begun:.1f} s of {rolls} rolls"
    )
    print(f"p99 {p99_ms(steady):.1f} ms before, {p99_ms(rolling):.1f} ms meanwhile; {len(callers.left)} streams ended")
    print(f"errors: {dict(ended_by(callers.asked))}; HAProxy moved {service.proxy.of(0)['wredis']} calls")
    return alone


def check(service, callers: Callers, alone: list[Asked], window: int) -> None:
    """The laws of a rolling update, when all servers have ended."""
    assert callers.unexpected == []
    assert ended_by(alone) == {}
    assert list(told_right(callers.asked, service.served)) == []
    assert all(error == SHUT or error.startswith(CUT) for error in ended_by(callers.asked))
    assert all(left <= window + 1 for left in callers.left)  # the window, and the one that was being sent
    answered = Counter(event["client"] for event in service.answered() if event["code"] == "OK")
    received = Counter(each.caller for each in callers.asked if each.version)
    assert answered == received  # what a server has answered has arrived
    assert "has no server available" not in service.proxy.log


def test_two_rolling_updates_fail_no_call_and_lose_no_answer(service):
    with service(*FLAGS) as running:
        callers = Callers(running.proxy.targets, unary=6, streams=2, window=4)
        try:
            alone = roll(running, callers, rolls=2)
        finally:
            callers.stop()
    check(running, callers, alone, window=4)
    assert len(callers.left) >= 4  # each stream has met two replicas that were about to go


@pytest.mark.full
def test_ten_rolling_updates_under_more_load_fail_no_call_and_lose_no_answer(service):
    with service(*FLAGS) as running:
        callers = Callers(running.proxy.targets, unary=24, streams=6, window=16)
        try:
            alone = roll(running, callers, rolls=10)
        finally:
            callers.stop()
    check(running, callers, alone, window=16)


def test_without_a_drain_delay_calls_are_refused_until_the_health_check_has_seen_it(service):
    with service("--drain-delay-s", "0") as running:
        callers = Callers(running.proxy.targets, unary=6)
        try:
            callers.wait_for(100)
            running.replace(0, 2)
        finally:
            callers.stop()
    print(f"{len(callers.asked)} calls: {dict(ended_by(callers.asked))}")
    assert callers.unexpected == []
    assert ended_by(callers.asked)[SHUT] > 0


NOTICED_S = 1.0  # for HAProxy to have seen every connection of a dead replica end, on a machine that others use


def test_kill_9_fails_the_calls_that_lay_there_and_a_caller_that_retries_sees_none_of_it(service):
    """The replica is stopped first, so that it is known which calls lie there when it is killed."""
    with service() as running:
        once, again = (
            Callers(running.proxy.targets, unary=4, retry=retry) for retry in (Retry(max_attempts=1), Retry())
        )
        try:
            once.wait_for(100)
            process = running.replicas[0].process
            process.send_signal(signal.SIGSTOP)
            wait_until(lambda: running.proxy.of(0)["scur"] == "4", "half of the calls lie on the stopped replica")
            settled, enough = time.monotonic(), len(once.asked + again.asked) + 200
            wait_until(lambda: len(once.asked + again.asked) > enough, "the others have gone on")
            hanging = [
                sorted(name for name, began in list(callers.open.items()) if began < settled)
                for callers in (once, again)
            ]
            lying = int(running.proxy.of(0)["scur"])
            killed = time.monotonic()
            running.replicas[0].kill()
            once.wait_for(200)
            moved = running.proxy.of(0)["wredis"]
            running.start(0, 2)
            once.wait_for(100)
        finally:
            for callers in (once, again):
                callers.stop()
    failed = [each for each in once.asked if each.error]
    print(f"{lying} calls lay there, {len(hanging[0])} of callers that ask once: {dict(ended_by(once.asked))}")
    print(f"{len(once.asked)} and {len(again.asked)} calls; HAProxy moved {moved}")
    assert once.unexpected + again.unexpected == []
    assert ended_by(again.asked) == {}
    assert lying == sum(map(len, hanging)) == 4
    assert all(killed < each.ended and each.error.startswith("UNAVAILABLE") for each in failed)
    assert sorted(each.caller for each in failed if each.began < killed) == hanging[0]
    # HAProxy sees the replica's connections end one after the other, and may still send a call down the next.
    after = [each.began - killed for each in failed if each.began >= killed]
    assert len(after) <= lying
    assert all(seconds < NOTICED_S for seconds in after)
    assert {each.version for each in once.asked if each.began > killed} >= {1, 2}
