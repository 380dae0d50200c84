"""A call gets exactly one answer, and its cancellation reaches whoever works for it."""

from __future__ import annotations

import gc
import threading
import weakref
from functools import partial

import pytest

from attnserve.errors import InvalidArgument, Overloaded


def test_a_reply_is_the_answer_and_the_code_is_ok(ask):
    asked = ask()
    asked.call.reply("a message")
    assert asked.message == "a message"
    assert asked.call.code == "OK"


def test_a_failure_is_the_answer_and_the_code_is_its_status(ask):
    asked = ask()
    asked.call.fail(error := Overloaded("full", retry_after_s=1.0))
    assert asked.error is error
    assert asked.call.code == "RESOURCE_EXHAUSTED"


@pytest.mark.parametrize("first", ["reply", "fail"])
@pytest.mark.parametrize("second", ["reply", "fail"])
def test_a_second_answer_is_a_bug_and_goes_nowhere(ask, ears, first, second):
    asked = ask()
    answer = {"reply": lambda: asked.call.reply("yes"), "fail": lambda: asked.call.fail(InvalidArgument("no"))}
    answer[first]()
    code = asked.call.code
    with pytest.raises(RuntimeError, match="answered twice"):
        answer[second]()
    assert len(asked.answers) == 1
    assert asked.call.code == code
    assert ears.calls == [asked.call]


def test_total_s_is_from_the_beginning_to_the_answer(ask, clock):
    asked = ask()
    clock.advance(0.25)
    asked.call.reply("late")
    clock.advance(1)
    assert asked.call.total_s == 0.25


def test_before_the_answer_goes_out_the_end_is_told_and_then_the_listener(ask, ears):
    events = []

    class Noting(type(ears)):
        def call_finished(self, call) -> None:
            events.append(("listener", call.code))

    asked = ask(listener=Noting())
    asked.call.at_end(lambda: events.append(("end", len(asked.answers))))
    asked.call.reply("message")
    assert events == [("end", 0), ("listener", "OK")]


def test_the_listener_hears_of_the_answer_before_the_caller_has_it(ask, ears):
    seen = []

    class Noting(type(ears)):
        def call_finished(self, call) -> None:  # noqa: ARG002
            seen.append(list(asked.answers))

    asked = ask(listener=Noting())
    asked.call.fail(InvalidArgument("no"))
    assert seen == [[]]


def test_cancellation_calls_back(ask):
    asked, calls = ask(), []
    asked.call.when_cancelled(lambda: calls.append("cancelled"))
    assert calls == []
    asked.call.cancel()
    assert calls == ["cancelled"]
    assert asked.call.cancelled


def test_a_cancellation_that_came_earlier_calls_back_at_once(ask):
    asked, calls = ask(), []
    asked.call.cancel()
    asked.call.when_cancelled(lambda: calls.append("cancelled"))
    assert calls == ["cancelled"]


def test_cancelling_twice_calls_back_once(ask):
    asked, calls = ask(), []
    asked.call.when_cancelled(lambda: calls.append("cancelled"))
    asked.call.cancel()
    asked.call.cancel()
    assert calls == ["cancelled"]


def test_a_cancellation_from_another_thread_is_never_lost_nor_doubled(ask):
    for _ in range(200):
        asked, calls, start = ask(), [], threading.Barrier(2)

        def cancel(call=asked.call, start=start) -> None:
            start.wait(timeout=10)
            call.cancel()

        canceller = threading.Thread(target=cancel)
        canceller.start()
        start.wait(timeout=10)
        asked.call.when_cancelled(lambda calls=calls: calls.append("cancelled"))
        canceller.join(timeout=10)
        assert calls == ["cancelled"]


def test_a_cancelled_call_is_still_answered(ask):
    asked = ask()
    asked.call.cancel()
    asked.call.reply("to nobody")
    assert asked.message == "to nobody"


def test_an_entry_has_as_many_rows_as_images(new_entry):
    assert new_entry(5, 6, 7).rows == 3


def test_several_who_wait_for_the_end_are_told_in_order(ask):
    told = []
    asked = ask()
    for name in ("first", "second"):
        asked.call.at_end(partial(told.append, name))
    asked.call.reply("message")
    assert told == ["first", "second"]


def test_an_answered_call_lets_go_of_its_images_without_the_garbage_collector(ask, new_entry):
    """Results lie in the engine's memory, and keep that of a model that is gone."""
    asked = ask()
    entry = new_entry(1, on_finished=partial(asked.call.at_end, print))
    images = weakref.ref(entry.images)
    asked.call.when_cancelled(partial(setattr, entry, "cancelled", True))
    gc.disable()
    try:
        asked.call.reply("message")
        del asked, entry
        assert images() is None
    finally:
        gc.enable()
