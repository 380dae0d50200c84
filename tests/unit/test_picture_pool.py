"""Work on pictures one by one: shared out among clients, given up with its call, joined in order."""

from __future__ import annotations

import threading

import pytest

from attnserve.errors import Cancelled, DeadlineExceeded, Internal, NotFound, Unavailable
from attnserve.picture_pool import PicturePool, PictureWork

PATIENCE_S = 10.0


class Easel:
    """Drawings whose pictures are written down as they are drawn; the one named `hold` waits to be let go."""

    def __init__(self) -> None:
        self.drawn: list[str] = []
        self.held = threading.Event()
        self.go_on = threading.Event()

    def drawing(self, *names: str) -> PictureWork:
        return PictureWork(len(names), lambda row: self._draw(names[row]), "+".join)

    def _draw(self, name: str) -> str:
        self.drawn.append(name)
        if name == "hold":
            self.held.set()
            assert self.go_on.wait(PATIENCE_S)
        if name == "bad":
            raise NotFound("no such colour")
        if name == "broken":
            raise ZeroDivisionError("/srv/secret")
        return name


@pytest.fixture
def easel():
    return Easel()


@pytest.fixture
def pool(clock, easel):
    pool = PicturePool("draw", 1, clock)
    yield pool
    easel.go_on.set()
    pool.close()


@pytest.fixture
def submit(pool, easel, ask, new_mailbox):
    """Submits a drawing of the pictures named; returns its call, its inbox and the outcomes that came of it."""

    def run(*names, **fields):
        inbox, outcomes = new_mailbox(), []
        call = ask(inbox=inbox, **fields).call
        pool.submit(easel.drawing(*names), call, lambda *outcome: outcomes.append(outcome))
        return call, inbox, outcomes

    return run


@pytest.fixture
def hold(submit, easel):
    """Keeps the pool's one thread busy until `easel.go_on`."""
    submit("hold", client="holder")
    assert easel.held.wait(PATIENCE_S)


def test_the_parts_are_joined_in_the_order_of_the_pictures_whichever_is_drawn_first(clock, ask, mailbox):
    pool, last, outcomes = PicturePool("draw", 2, clock), threading.Event(), []

    def part(row):
        if row == 0:
            assert last.wait(PATIENCE_S)
        else:
            last.set()
        return row

    pool.submit(PictureWork(2, part, list), ask().call, lambda *outcome: outcomes.append(outcome))
    mailbox.open()
    pool.close()
    assert outcomes == [([0, 1], None)]


@pytest.mark.usefixtures("hold")
def test_clients_have_their_turns_however_much_one_of_them_asked_for_before(submit, easel):
    _, job, _ = submit(*["job"] * 20, client="job")
    _, person, outcomes = submit("person", client="person")
    easel.go_on.set()
    person.open()
    job.open()
    assert easel.drawn.index("person") <= 2
    assert outcomes == [("person", None)]


@pytest.mark.usefixtures("hold")
def test_the_higher_priority_class_is_drawn_first(easel, pool, ask, mailbox):
    for name, level in (("third class", 3), ("first class", 1)):
        call = ask().call
        call.level = level
        pool.submit(easel.drawing(name), call, lambda *_: None)
    easel.go_on.set()
    mailbox.open()
    mailbox.open()
    assert easel.drawn == ["hold", "first class", "third class"]


@pytest.mark.usefixtures("hold")
def test_a_call_that_goes_away_is_answered_at_once_and_drawn_no_more(submit, easel):
    call, inbox, outcomes = submit("a", "b")
    call.cancel()
    inbox.open()  # while the thread is still busy
    easel.go_on.set()
    _, after, _ = submit("after")
    after.open()
    assert easel.drawn == ["hold", "after"]
    ((message, error),) = outcomes
    assert message is None
    assert isinstance(error, Cancelled)


def test_the_rest_of_a_call_that_goes_away_while_it_is_drawn_is_not_drawn(submit, easel):
    call, inbox, outcomes = submit("hold", "b", "c")
    assert easel.held.wait(PATIENCE_S)
    call.cancel()
    assert inbox.is_empty()  # its first picture is still in the thread's hands
    easel.go_on.set()
    inbox.open()
    assert easel.drawn == ["hold"]
    assert isinstance(outcomes[0][1], Cancelled)


def test_a_call_that_went_away_before_is_not_drawn(pool, easel, ask, mailbox):
    call, outcomes = ask().call, []
    call.cancel()
    pool.submit(easel.drawing("a"), call, lambda *outcome: outcomes.append(outcome))
    mailbox.open()
    assert easel.drawn == []
    assert isinstance(outcomes[0][1], Cancelled)


def test_nothing_is_drawn_of_a_call_past_its_deadline(submit, easel, clock):
    _, inbox, outcomes = submit("hold", "b", "c", deadline=clock.now + 5)
    assert easel.held.wait(PATIENCE_S)
    clock.advance(5)
    easel.go_on.set()
    inbox.open()
    assert easel.drawn == ["hold"]
    assert isinstance(outcomes[0][1], DeadlineExceeded)


def test_a_late_call_is_answered_once_after_the_picture_that_is_being_drawn(easel, ask, clock, new_mailbox):
    pool, late, other, outcomes = PicturePool("draw", 2, clock), new_mailbox(), new_mailbox(), []
    beside, go_on = threading.Event(), threading.Event()

    def part(_):
        beside.set()
        assert go_on.wait(PATIENCE_S)

    pool.submit(PictureWork(1, part, list), ask(inbox=other).call, lambda *_: None)
    assert beside.wait(PATIENCE_S)
    call = ask(inbox=late, deadline=clock.now + 5).call
    pool.submit(easel.drawing("hold", "b"), call, lambda *outcome: outcomes.append(outcome))
    assert easel.held.wait(PATIENCE_S)
    clock.advance(5)
    go_on.set()
    other.open()
    pool.submit(easel.drawing("after"), ask(inbox=other).call, lambda *_: None)
    other.open()  # the other thread has dropped what was late
    assert late.is_empty()
    easel.go_on.set()
    late.open()
    pool.close()
    assert isinstance(outcomes[0][1], DeadlineExceeded)
    assert late.posts == [1]


@pytest.mark.parametrize(("name", "kind", "text"), [("bad", NotFound, "colour"), ("broken", Internal, "internal")])
def test_a_picture_that_fails_fails_its_call_once_and_the_thread_goes_on_without_the_rest(
    submit, easel, caplog, name, kind, text
):
    _, inbox, outcomes = submit(name, "b", "c")
    inbox.open()
    _, after, drawn = submit("after")
    after.open()
    assert easel.drawn == [name, "after"]
    assert drawn == [("after", None)]
    assert inbox.is_empty()
    ((message, error),) = outcomes
    assert message is None
    assert isinstance(error, kind)
    assert text in str(error)
    assert ("ZeroDivisionError" in caplog.text) == (name == "broken")


def test_parts_that_cannot_be_joined_fail_the_call_and_the_thread_goes_on(pool, submit, ask, mailbox):
    outcomes = []
    pool.submit(PictureWork(1, str, lambda _: 1 / 0), ask().call, lambda *outcome: outcomes.append(outcome))
    mailbox.open()
    _, after, drawn = submit("after")
    after.open()
    assert isinstance(outcomes[0][1], Internal)
    assert drawn == [("after", None)]


def test_an_inbox_that_refuses_does_not_take_the_thread_with_it(pool, easel, submit, ask, caplog):
    class Gone:
        def post(self, _, *, idle=False):  # noqa: ARG002
            raise RuntimeError("the loop is closed")

    pool.submit(easel.drawing("a"), ask(inbox=Gone()).call, pytest.fail)
    _, after, drawn = submit("after")
    after.open()
    assert drawn == [("after", None)]
    assert "an inbox refused what was made" in caplog.text


@pytest.mark.usefixtures("hold")
def test_close_fails_what_has_not_begun_waits_for_nothing_and_takes_nothing_on(pool, submit, easel):
    _, waiting, outcomes = submit("a")
    pool.close()
    waiting.open()
    _, late, refused = submit("b")
    late.open()
    assert isinstance(outcomes[0][1], Unavailable)
    assert isinstance(refused[0][1], Unavailable)
    assert easel.drawn == ["hold"]


def test_a_call_that_is_being_drawn_when_the_pool_closes_is_answered_once_its_picture_is_done(pool, submit, easel):
    _, inbox, outcomes = submit("hold", "b")
    assert easel.held.wait(PATIENCE_S)
    pool.close()
    assert inbox.is_empty()
    easel.go_on.set()
    inbox.open()
    assert isinstance(outcomes[0][1], Unavailable)


def test_the_predicted_wait_grows_with_what_is_ahead_and_the_time_it_takes(pool, submit, easel, ask, mailbox, clock):
    assert pool.predicted_wait_s("person", 1, 1) == 0
    pool.submit(PictureWork(1, lambda _: clock.advance(2), list), ask().call, lambda *_: None)
    mailbox.open()
    submit("hold", client="job")
    assert easel.held.wait(PATIENCE_S)
    submit("a", "b", "c", client="job")
    assert pool.predicted_wait_s("job", 1, 1) == 6
    assert pool.predicted_wait_s("person", 1, 1) == 0  # who asks for less goes first
    assert pool.predicted_wait_s("person", 1, 4) == 6
