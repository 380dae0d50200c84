"""Many pictures side by side; one outcome for each call, on its inbox."""

from __future__ import annotations

import io
import threading

import numpy as np
import pytest
from PIL import Image

from attnserve.card import Preprocessing
from attnserve.decode import DecodeLimits, picture_from_pixels
from attnserve.decode_pool import DecodePool
from attnserve.errors import Cancelled, DeadlineExceeded, Internal, InvalidArgument, Unavailable

VIEW = Preprocessing(2, 3)


def grey(value: int) -> bytes:
    """A PNG file of one grey tone, 3 x 2 pixels."""
    buffer = io.BytesIO()
    Image.new("RGB", (3, 2), (value, value, value)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def pool(clock):
    pool = DecodePool(2, DecodeLimits(max_bytes=1 << 20, max_pixels=10_000), clock)
    yield pool
    pool.close()


@pytest.fixture
def decode(pool, mailbox):
    """Submits pictures, opens the inbox and returns the one outcome: pictures and error."""

    def run(sources, call):
        outcomes = []
        pool.submit(sources, VIEW, call, lambda pictures, error: outcomes.append((pictures, error)))
        mailbox.open()
        assert mailbox.posts == [1]
        assert mailbox.is_empty()
        (outcome,) = outcomes
        return outcome

    return run


def test_pictures_keep_the_order_of_the_request(decode, ask):
    pictures, error = decode([grey(value) for value in range(40)], ask().call)
    assert error is None
    assert [int(picture.pixels[0, 0, 0]) for picture in pictures] == list(range(40))


def test_files_and_raw_pixels_may_be_mixed(decode, ask):
    raw = np.full((2, 3, 3), 9, np.uint8)
    pictures, error = decode([grey(7), raw, grey(8)], ask().call)
    assert error is None
    assert [int(picture.pixels[1, 2, 2]) for picture in pictures] == [7, 9, 8]


def test_the_outcome_comes_on_the_thread_of_the_inbox(pool, ask, mailbox):
    threads = []
    pool.submit([grey(1)], VIEW, ask().call, lambda *_: threads.append(threading.current_thread()))
    mailbox.open()
    assert threads == [threading.current_thread()]


def test_one_bad_picture_is_the_outcome_of_its_call_and_is_named(decode, ask):
    pictures, error = decode([grey(1), grey(2), b"no picture", grey(3)], ask().call)
    assert pictures == []
    assert isinstance(error, InvalidArgument)
    assert str(error) == "images[2]: the picture is not a JPEG, PNG or WebP file"


def test_however_many_pictures_are_bad_there_is_one_outcome(decode, ask):
    pictures, error = decode([b"no picture"] * 20, ask().call)
    assert pictures == []
    assert isinstance(error, InvalidArgument)


def test_after_a_bad_picture_the_rest_of_its_call_is_not_decoded(ask, mailbox, monkeypatch):
    decoded = []

    def refuse(source, *_):
        decoded.append(source)
        raise InvalidArgument("no")

    monkeypatch.setattr("attnserve.decode_pool.picture_from_bytes", refuse)
    pool = DecodePool(1, DecodeLimits(1 << 20, 10_000))
    pool.submit([b"a", b"b", b"c"], VIEW, ask().call, lambda *_: None)
    pool.submit([b"d"], VIEW, ask().call, lambda *_: None)
    mailbox.open()
    mailbox.open()
    pool.close()
    assert decoded == [b"a", b"d"]


def test_a_bad_picture_is_no_business_of_the_other_calls(pool, ask, new_mailbox):
    outcomes = {}
    inboxes = [new_mailbox() for _ in range(6)]
    for number, inbox in enumerate(inboxes):
        sources = [grey(number), b"no picture" if number % 2 else grey(number)]
        pool.submit(
            sources, VIEW, ask(inbox=inbox).call, lambda *outcome, number=number: outcomes.update({number: outcome})
        )
    for inbox in inboxes:
        inbox.open()
    assert [error is None for _, (_, error) in sorted(outcomes.items())] == [True, False] * 3


def test_pictures_of_a_call_that_went_away_are_not_decoded(decode, ask):
    call = ask().call
    call.cancel()
    pictures, error = decode([b"would be refused if anyone looked"], call)
    assert pictures == []
    assert isinstance(error, Cancelled)


def test_pictures_of_a_call_whose_deadline_has_come_are_not_decoded(decode, ask, clock):
    pictures, error = decode([b"would be refused if anyone looked"], ask(deadline=clock.now).call)
    assert pictures == []
    assert isinstance(error, DeadlineExceeded)


def test_our_own_failure_is_internal_says_nothing_and_is_logged(decode, ask, caplog):
    pictures, error = decode([np.zeros(5, np.uint8)], ask().call)  # no handler makes pixels of one dimension
    assert pictures == []
    assert isinstance(error, Internal)
    assert str(error) == "internal error"
    assert "unpack" in caplog.text


def test_views_that_came_raw_need_no_thread(pool):
    views = [np.full((2, 3, 3), 7, np.uint8), np.full((2, 3, 1), 8, np.uint8)]
    colour, grey_ = pool.views_at_once(views, Preprocessing(2, 3, resize=4))
    assert colour.pixels is views[0]
    assert (grey_.pixels == 8).all()
    assert grey_.pixels.shape == (2, 3, 3)


@pytest.mark.parametrize("other", [grey(1), np.zeros((3, 2, 3), np.uint8), np.zeros((2, 4, 3), np.uint8)])
def test_where_one_picture_must_be_decoded_or_resized_all_go_to_the_threads(pool, other):
    assert pool.views_at_once([np.zeros((2, 3, 3), np.uint8), other], VIEW) is None


def test_close_does_not_wait_for_a_picture_that_takes_long_and_fails_what_has_not_begun(ask, new_mailbox, monkeypatch):
    """Else one hostile picture holds up the end of the process."""
    begun, go_on = threading.Event(), threading.Event()

    def decoded(*_):
        begun.set()
        assert go_on.wait(10)
        return picture_from_pixels(np.zeros((2, 3, 3), np.uint8), VIEW, DecodeLimits(1 << 20, 10_000))

    monkeypatch.setattr("attnserve.decode_pool.picture_from_bytes", decoded)
    pool = DecodePool(1, DecodeLimits(1 << 20, 10_000))
    first, second = new_mailbox(), new_mailbox()
    outcomes = []
    for inbox in (first, second):
        pool.submit([grey(1)], VIEW, ask(inbox=inbox).call, lambda *outcome: outcomes.append(outcome))
    assert begun.wait(10)
    pool.close()
    second.open()
    ((pictures, error),) = outcomes
    assert pictures == []
    assert isinstance(error, Unavailable)
    go_on.set()
    first.open()
    assert outcomes[1][1] is None


def test_a_person_s_picture_does_not_wait_for_all_those_of_a_batch_job(ask, new_mailbox, monkeypatch):
    order, go_on = [], threading.Event()

    def decoded(source, *_):
        assert go_on.wait(10)
        order.append(source)
        return picture_from_pixels(np.zeros((2, 3, 3), np.uint8), VIEW, DecodeLimits(1 << 20, 10_000))

    monkeypatch.setattr("attnserve.decode_pool.picture_from_bytes", decoded)
    pool = DecodePool(1, DecodeLimits(1 << 20, 10_000))
    job, person = new_mailbox(), new_mailbox()
    pool.submit([b"job %d" % n for n in range(20)], VIEW, ask(inbox=job, client="job").call, lambda *_: None)
    assert pool.predicted_wait_s("person", 1, 1) == 0  # nothing was decoded yet
    pool.submit([b"person"], VIEW, ask(inbox=person, client="person").call, lambda *_: None)
    go_on.set()
    job.open()
    assert order.index(b"person") <= 2
    pool.close()


def test_the_predicted_wait_grows_with_what_is_ahead_and_the_time_it_takes(ask, new_mailbox, monkeypatch, clock):
    held, go_on = threading.Event(), threading.Event()

    def decoded(source, *_):
        if source == b"hold":
            held.set()
            assert go_on.wait(10)
        clock.advance(2)
        return picture_from_pixels(np.zeros((2, 3, 3), np.uint8), VIEW, DecodeLimits(1 << 20, 10_000))

    monkeypatch.setattr("attnserve.decode_pool.picture_from_bytes", decoded)
    pool = DecodePool(1, DecodeLimits(1 << 20, 10_000), clock)
    first, second = new_mailbox(), new_mailbox()
    pool.submit([b"quick"], VIEW, ask(inbox=first).call, lambda *_: None)
    first.open()
    pool.submit([b"hold", b"a", b"b"], VIEW, ask(inbox=second).call, lambda *_: None)
    assert held.wait(10)
    assert pool.predicted_wait_s("ipv4:1.2.3.4:5", 1, 1) == 2 * 2  # the same client's two
    assert pool.predicted_wait_s("somebody else", 1, 1) == 0  # who asks for less goes first
    assert pool.predicted_wait_s("somebody else", 1, 3) == 2 * 2
    go_on.set()
    second.open()
    pool.close()
