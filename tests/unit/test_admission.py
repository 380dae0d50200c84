"""What is in the house stays within the bounds, and whoever is refused is told when to come back."""

from __future__ import annotations

import threading

import pytest

from attnserve.admission import Admission
from attnserve.errors import InvalidArgument, Overloaded, Unavailable

AT_ONCE = {"wait_s": 0.0, "run_s": 0.1, "slack_s": 60.0}


def test_a_request_alone_in_the_house_may_reach_both_limits():
    admission = Admission(max_images=4, max_bytes=100)
    admission.admit("a", 4, 100, **AT_ONCE)
    assert admission.images == 4


@pytest.mark.parametrize(
    ("images", "size_bytes", "limit"),
    [(5, 1, r"at most 4 .*max_pending_images\), got 5"), (1, 101, r"at most 100 bytes .*max_pending_bytes\), got 101")],
)
def test_a_request_that_an_empty_house_could_not_hold_is_wrong_and_not_told_to_come_back(images, size_bytes, limit):
    admission = Admission(max_images=4, max_bytes=100)
    with pytest.raises(InvalidArgument, match=limit):
        admission.admit("a", images, size_bytes, **AT_ONCE)
    assert admission.images == 0
    admission.admit("a", 4, 100, **AT_ONCE)


@pytest.mark.parametrize(("images", "size_bytes"), [(2, 1), (1, 61)])
def test_a_request_that_does_not_fit_beside_the_others_is_refused(images, size_bytes):
    admission = Admission(max_images=4, max_bytes=100)
    admission.admit("a", 3, 40, **AT_ONCE)
    with pytest.raises(Overloaded, match="as many pictures as it can hold"):
        admission.admit("b", images, size_bytes, **AT_ONCE)
    admission.admit("b", 1, 60, **AT_ONCE)
    assert admission.images == 4


def test_an_answer_makes_room_for_the_same_request_again():
    admission = Admission(max_images=4, max_bytes=100)
    for _ in range(3):
        admission.admit("a", 4, 100, **AT_ONCE)
        admission.release("a", 4, 100)
    assert admission.images == 0


def test_once_closed_it_refuses_everything_and_still_lets_out_who_is_inside():
    admission = Admission(max_images=4, max_bytes=100)
    admission.admit("a", 2, 10, **AT_ONCE)
    admission.close()
    with pytest.raises(Unavailable, match="shutting down"):
        admission.admit("a", 1, 1, **AT_ONCE)
    assert admission.images == 2
    admission.release("a", 2, 10)
    assert admission.images == 0


@pytest.mark.parametrize(
    ("wait_s", "retry_after_s"), [(0, 0.05), (0.01, 0.05), (0.7, 0.7), (5, 5), (600, 5), (float("inf"), 5)]
)
def test_retry_after_is_the_predicted_wait_within_bounds(wait_s, retry_after_s):
    admission = Admission(max_images=1, max_bytes=1)
    admission.admit("a", 1, 1, **AT_ONCE)
    with pytest.raises(Overloaded) as caught:
        admission.admit("b", 1, 1, wait_s, run_s=0, slack_s=1e9)
    assert caught.value.retry_after_s == retry_after_s


@pytest.mark.parametrize(
    ("wait_s", "run_s", "slack_s", "retry_after_s"),
    [
        (0.5, 0.1, 0.65, 0.05),  # a tenth more than predicted must fit
        (0.5, 0.1, 0.3, pytest.approx(0.36)),
        (9.0, 0.1, 1.0, 5.0),
        (0.1, 3.0, 2.0, pytest.approx(1.41)),
    ],
)
def test_what_would_be_late_is_refused_before_it_waits_and_told_by_how_much(wait_s, run_s, slack_s, retry_after_s):
    admission = Admission(max_images=4, max_bytes=100)
    with pytest.raises(Overloaded, match="deadline cannot be met") as caught:
        admission.admit("a", 1, 1, wait_s, run_s, slack_s)
    assert caught.value.retry_after_s == retry_after_s
    assert admission.images == 0
    admission.admit("a", 1, 1, wait_s, run_s, 1.11 * (wait_s + run_s))


def test_what_need_not_wait_is_tried_however_little_time_it_has():
    """The table may be wrong, and only a run can tell."""
    admission = Admission(max_images=4, max_bytes=100)
    admission.admit("a", 1, 1, wait_s=0, run_s=10, slack_s=0.001)
    assert admission.images == 1


def test_a_client_with_a_request_inside_may_hold_half_of_an_empty_house():
    admission = Admission(max_images=12, max_bytes=1000)
    for _ in range(6):
        admission.admit("job", 1, 10, **AT_ONCE)
    with pytest.raises(Overloaded, match="this client has as many pictures here as it may") as caught:
        admission.admit("job", 1, 10, **AT_ONCE)
    assert caught.value.retry_after_s == 0.05
    assert admission.images == 6
    admission.release("job", 1, 10)
    admission.admit("job", 1, 10, **AT_ONCE)


def test_bytes_are_shared_like_images():
    admission = Admission(max_images=100, max_bytes=120)
    admission.admit("job", 1, 50, **AT_ONCE)
    admission.admit("job", 1, 10, **AT_ONCE)
    with pytest.raises(Overloaded, match="this client"):
        admission.admit("job", 1, 1, **AT_ONCE)


def test_whoever_comes_finds_room_beside_clients_that_take_all_they_may():
    admission = Admission(max_images=120, max_bytes=10**6)
    for client in ("job", "other job"):
        while True:
            try:
                admission.admit(client, 1, 1, **AT_ONCE)
            except Overloaded:
                break
    assert admission.images == 60 + 30
    admission.admit("person", 30, 1, **AT_ONCE)


def test_a_client_that_has_all_its_answers_begins_anew():
    admission = Admission(max_images=4, max_bytes=100)
    for _ in range(3):
        admission.admit("job", 4, 100, **AT_ONCE)
        admission.release("job", 4, 100)
    assert vars(admission)["_of"] == {}


def test_eight_threads_never_put_more_into_the_house_than_it_holds():
    admission = Admission(max_images=10, max_bytes=1000)
    most, refused = [], []

    def come_and_go(client: str) -> None:
        for _ in range(300):
            try:
                admission.admit(client, 3, 100, **AT_ONCE)
            except Overloaded:
                refused.append(1)
                continue
            most.append(admission.images)
            admission.release(client, 3, 100)

    threads = [threading.Thread(target=come_and_go, args=(str(n),)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
    assert len(most) + len(refused) == 2400
    assert max(most) <= 10
    assert admission.images == 0
