"""One way through: every call is admitted or refused, gets one answer, and leaves nothing behind."""

from __future__ import annotations

import io
import logging
import queue
import threading
from functools import partial

import numpy as np
import pytest
from PIL import Image

from attnserve.admission import Admission
from attnserve.card import Site
from attnserve.decode import DecodeLimits
from attnserve.decode_pool import DecodePool
from attnserve.errors import (
    Cancelled,
    DeadlineExceeded,
    Internal,
    InvalidArgument,
    NotFound,
    Overloaded,
    Unavailable,
)
from attnserve.guard import guarded
from attnserve.picture_pool import PicturePool, PictureWork
from attnserve.pipeline import Pipeline


def grey(value: int) -> bytes:
    """A PNG file of one grey tone, 3 x 2 pixels."""
    buffer = io.BytesIO()
    Image.new("RGB", (3, 2), (value, value, value)).save(buffer, "PNG")
    return buffer.getvalue()


def views(*values: int):
    """Views (N, 2, 3, 3), each of one grey tone."""
    return np.array(values, np.uint8).reshape(-1, 1, 1, 1) * np.ones((1, 2, 3, 3), np.uint8)


def first_column(result) -> list[int]:
    return [int(row[0]) for row in result["probabilities"]]


OUTPUTS = ["probabilities"]


@pytest.fixture
def admission():
    return Admission(max_images=10, max_bytes=2000)


@pytest.fixture
def drawing(clock):
    pool = PicturePool("draw", 1, clock)
    yield pool
    pool.close()


@pytest.fixture
def pipeline(admission, drawing, ears, clock):
    pool = DecodePool(2, DecodeLimits(max_bytes=1 << 20, max_pixels=10_000), clock)
    yield Pipeline(admission, pool, ears, drawing, default_timeout_s=60, clock=clock)
    pool.close()


@pytest.fixture
def model(new_model, puppet):
    return new_model(puppet)


def test_views_are_run_as_they_are_and_the_reply_is_what_finish_makes_of_the_result(
    pipeline, model, puppet, ask, mailbox, admission, ears
):
    asked = ask()
    pipeline.run_images(model, views(7, 8), OUTPUTS, asked.call, first_column)
    assert asked.answers == []
    assert admission.images == 2
    run = puppet.next()
    np.testing.assert_array_equal(run.images, views(7, 8))
    run.finish()
    mailbox.open()
    assert asked.message == [7, 8]
    assert admission.images == 0
    assert ears.calls == [asked.call]
    assert (asked.call.images, asked.call.code) == (2, "OK")


def test_pictures_are_decoded_run_and_handed_to_finish_in_order(pipeline, model, puppet, ask, mailbox, admission):
    asked = ask()

    def finish(pictures, result, explained):
        assert explained == []
        return [(int(p.pixels[0, 0, 0]), p.height, p.width) for p in pictures], first_column(result)

    pipeline.run_sources(model, [grey(5), views(6)[0], grey(4)], OUTPUTS, asked.call, finish)
    mailbox.open()
    run = puppet.next()
    assert run.values == [5, 6, 4]
    run.finish()
    mailbox.open()
    assert asked.message == ([(5, 2, 3), (6, 2, 3), (4, 2, 3)], [5, 6, 4])
    assert admission.images == 0


def test_raw_views_are_queued_without_a_turn_of_the_inbox(pipeline, model, puppet, ask, mailbox):
    asked = ask()
    pipeline.run_sources(model, list(views(5, 6)), OUTPUTS, asked.call, lambda pictures, *_: len(pictures))
    run = puppet.next()
    assert run.values == [5, 6]
    assert mailbox.is_empty()
    run.finish()
    mailbox.open()
    assert asked.message == 2


def test_the_timings_tell_where_the_seconds_went(pipeline, model, puppet, ask, mailbox, clock):
    asked = ask()
    pipeline.run_sources(model, [grey(5)], OUTPUTS, asked.call, lambda *_: clock.advance(4))
    clock.advance(1)
    mailbox.open()
    run = puppet.next()
    clock.advance(2)
    run.finish()
    mailbox.open()
    timings = asked.call.timings
    assert (timings.decode_s, timings.queue_s, timings.infer_s, timings.postprocess_s) == (1, 0, 2, 4)
    assert asked.call.total_s == 7


def test_an_answer_tells_how_sure_it_is_and_of_the_maps_that_it_holds_how_even(
    pipeline, new_model, puppet, ask, mailbox, ears
):
    site = Site("layer1", "cbam", 4, 2, 2, 1, None, "map")
    other = Site("layer2", "cbam", 4, 2, 2, 1, None, "other map")
    model = new_model(puppet, sites=(site, other))
    asked = ask()
    pipeline.run_images(model, views(7, 8), ["probabilities", "map"], asked.call, lambda _: "message")
    maps = np.float32([[[1, 1], [1, 1]], [[1, 0], [0, 0]]])
    puppet.next().finish({"probabilities": np.float32([[0.25, 0.75], [0.5, 0.5]]), "map": maps})
    mailbox.open()
    (heard,) = ears.calls
    assert heard.confidences.tolist() == [0.75, 0.5]
    assert list(heard.entropies) == ["layer1"]
    assert heard.entropies["layer1"].tolist() == pytest.approx([1, 0], abs=1e-6)


def test_nothing_is_computed_of_what_was_not_asked_for(pipeline, new_model, puppet, ask, mailbox, ears):
    model = new_model(puppet, sites=(Site("layer1", "cbam", 4, 2, 2, 1, None, "map"),))
    pipeline.run_images(model, views(7), ["logits"], ask().call, lambda _: "message")
    run = puppet.next()
    run.finish()
    mailbox.open()
    assert run.outputs == ["logits"]
    assert (ears.calls[0].confidences, ears.calls[0].entropies) == (None, {})


def test_one_bad_picture_fails_the_call_and_nothing_is_run(pipeline, model, puppet, ask, mailbox, admission):
    asked = ask()
    pipeline.run_sources(model, [grey(5), b"no picture"], OUTPUTS, asked.call, pytest.fail)
    mailbox.open()
    assert isinstance(asked.error, InvalidArgument)
    assert str(asked.error).startswith("images[1]: ")
    assert puppet.is_idle()
    assert admission.images == 0


@pytest.mark.parametrize("way", ["run_images", "run_sources"])
def test_a_full_house_refuses_at_once_and_the_refusal_is_counted(pipeline, model, ask, admission, ears, mailbox, way):
    admission.admit("other", 9, 0, wait_s=0, run_s=0, slack_s=1)
    asked = ask()
    run = {
        "run_images": lambda: pipeline.run_images(model, views(1, 2), OUTPUTS, asked.call, pytest.fail),
        "run_sources": lambda: pipeline.run_sources(model, [grey(1), grey(2)], OUTPUTS, asked.call, pytest.fail),
    }
    guarded(asked.call, run[way])
    assert isinstance(asked.error, Overloaded)
    assert asked.error.retry_after_s > 0
    assert ears.drops == [(("net", "1"), "overloaded", 2)]
    assert admission.images == 9
    assert mailbox.is_empty()


def test_bytes_in_the_house_are_bounded_too(pipeline, model, ask, admission):
    """A picture weighs its file or its view of 2 x 3 x 3 bytes, whichever is more; and the maps of the reply count."""
    admission.admit("other", 0, 1964, wait_s=0, run_s=0, slack_s=1)
    with pytest.raises(Overloaded):
        pipeline.run_sources(model, [bytes(19), bytes(9)], OUTPUTS, ask().call, pytest.fail)
    with pytest.raises(Overloaded):
        pipeline.run_images(model, views(1, 2, 3), OUTPUTS, ask().call, pytest.fail)
    answered_at_length = ask().call
    answered_at_length.reply_bytes = 1
    with pytest.raises(Overloaded):
        pipeline.run_sources(model, [bytes(9), bytes(9)], OUTPUTS, answered_at_length, pytest.fail)
    pipeline.run_sources(model, [bytes(9), bytes(9)], OUTPUTS, ask().call, pytest.fail)


def test_the_retry_is_told_from_the_scheduler_s_pace(pipeline, model, puppet, ask, mailbox, clock):
    pipeline.run_images(model, views(*range(8)), OUTPUTS, ask().call, first_column)
    run = puppet.next()
    clock.advance(8)
    run.finish()
    mailbox.open()
    pipeline.run_images(model, views(*range(8)), OUTPUTS, ask().call, first_column)
    puppet.next()
    pipeline.run_images(model, views(1, 2), OUTPUTS, ask(client="second").call, first_column)
    with pytest.raises(Overloaded, match="as many pictures as it can hold") as caught:
        pipeline.run_images(model, views(1), OUTPUTS, ask(client="third").call, first_column)
    assert caught.value.retry_after_s == 5  # the running batch takes eight seconds more, and that is the most we say


def test_a_call_without_a_deadline_has_the_default_one_from_its_beginning(pipeline, model, puppet, ask, mailbox, clock):
    pipeline.run_images(model, views(1), OUTPUTS, ask().call, first_column)
    run = puppet.next()
    asked = ask()
    clock.advance(20)
    pipeline.run_images(model, views(2), OUTPUTS, asked.call, first_column)
    clock.advance(40)
    run.finish()
    mailbox.open_until(lambda: asked.answers)
    assert isinstance(asked.error, DeadlineExceeded)


def test_a_call_s_own_deadline_is_kept_though_it_is_later_than_the_default(
    pipeline, model, puppet, ask, mailbox, clock
):
    pipeline.run_images(model, views(1), OUTPUTS, ask().call, first_column)
    run = puppet.next()
    asked = ask(deadline=clock.now + 100)
    pipeline.run_images(model, views(2), OUTPUTS, asked.call, first_column)
    clock.advance(99)
    run.finish()
    puppet.next().finish()
    mailbox.open_until(lambda: asked.answers)
    assert asked.message == [2]


def test_a_call_cancelled_in_the_queue_is_answered_counted_and_makes_room(
    pipeline, model, puppet, ask, mailbox, admission, ears
):
    pipeline.run_images(model, views(1), OUTPUTS, ask().call, first_column)
    run = puppet.next()
    asked = ask()
    pipeline.run_images(model, views(2, 3), OUTPUTS, asked.call, first_column)
    asked.call.cancel()
    mailbox.open()
    assert isinstance(asked.error, Cancelled)
    assert ears.drops == [(("net", "1"), "cancelled", 2)]
    assert admission.images == 1  # at once, though the batch before it still runs
    run.finish()
    mailbox.open()
    assert admission.images == 0
    assert puppet.is_idle()


def test_what_would_be_late_is_refused_before_it_is_decoded(pipeline, model, puppet, ask, mailbox, clock, ears):
    pipeline.run_images(model, views(*range(8)), OUTPUTS, ask().call, first_column)
    run = puppet.next()
    clock.advance(8)
    run.finish()
    mailbox.open()
    pipeline.run_images(
        model, views(1), OUTPUTS, ask().call, first_column
    )  # takes eight seconds too, as far as is known
    puppet.next()
    with pytest.raises(Overloaded, match="deadline cannot be met"):
        pipeline.run_sources(model, [b"no picture"], OUTPUTS, ask(deadline=clock.now + 15).call, pytest.fail)
    assert ears.dropped_rows("overloaded") == 1
    pipeline.run_images(model, views(2), OUTPUTS, ask(deadline=clock.now + 18).call, first_column)


@pytest.mark.parametrize(("level", "refused"), [(0, False), (1, False), (3, False), (4, True)])
def test_a_priority_beyond_the_model_s_classes_is_refused(pipeline, model, ask, level, refused):
    call = ask().call
    call.level = level
    if refused:
        with pytest.raises(InvalidArgument, match=r"priority: must be within 1\.\.3, got 4"):
            pipeline.run_images(model, views(1), OUTPUTS, call, first_column)
    else:
        pipeline.run_images(model, views(1), OUTPUTS, call, first_column)
        assert call.level == (level or 2)


def test_the_model_s_own_timeout_and_queue_limit_count(pipeline, new_model, puppet, ask, clock):
    policy = "default_queue_policy { default_timeout_microseconds: 5000000 max_queue_size: 2 }"
    model = new_model(puppet, batching=policy)
    pipeline.run_images(model, views(1), OUTPUTS, ask().call, first_column)
    puppet.next()
    asked = ask(deadline=clock.now + 100)
    pipeline.run_images(model, views(2, 3), OUTPUTS, asked.call, first_column)
    assert asked.call.deadline == clock.now + 5
    with pytest.raises(Overloaded, match="the model's queue is full"):
        pipeline.run_images(model, views(4), OUTPUTS, ask().call, first_column)


@pytest.mark.parametrize("way", ["run_images", "run_sources"])
def test_more_pictures_than_the_model_s_queue_ever_takes_are_wrong_and_not_told_to_come_back(
    pipeline, new_model, puppet, ask, ears, admission, way
):
    model = new_model(puppet, batching="default_queue_policy { max_queue_size: 2 }")
    pictures = views(1, 2, 3) if way == "run_images" else [grey(1), grey(2), grey(3)]
    with pytest.raises(InvalidArgument, match=r"at most 2 in one request \(max_queue_size\), got 3"):
        getattr(pipeline, way)(model, pictures, OUTPUTS, ask().call, pytest.fail)
    assert admission.images == 0
    assert ears.drops == []


def test_a_call_cancelled_before_its_pictures_reach_the_queue_is_not_run(
    pipeline, model, puppet, ask, mailbox, admission
):
    asked = ask()
    pipeline.run_sources(model, [grey(1)], OUTPUTS, asked.call, pytest.fail)
    asked.call.cancel()
    mailbox.open_until(lambda: asked.answers)
    assert isinstance(asked.error, Cancelled)
    assert admission.images == 0
    assert puppet.is_idle()


@pytest.mark.parametrize("reason", ["expired", "cancelled"])
def test_pictures_dropped_before_they_are_decoded_are_counted_as_dropped(
    pipeline, model, ask, mailbox, clock, ears, reason
):
    asked = ask(deadline=clock.now if reason == "expired" else clock.now + 1)
    if reason == "cancelled":
        asked.call.cancel()
    pipeline.run_sources(model, [grey(1), grey(2)], OUTPUTS, asked.call, pytest.fail)
    mailbox.open_until(lambda: asked.answers)
    assert asked.call.code == {"expired": "DEADLINE_EXCEEDED", "cancelled": "CANCELLED"}[reason]
    assert ears.drops == [(("net", "1"), reason, 2)]


def test_a_model_that_is_shutting_down_answers_unavailable_and_makes_room(pipeline, model, ask, mailbox, admission):
    model.scheduler.close()
    asked = ask()
    guarded(asked.call, pipeline.run_images, model, views(1), OUTPUTS, asked.call, first_column)
    assert isinstance(asked.error, Unavailable)
    decoded = ask()
    pipeline.run_sources(model, [grey(1)], OUTPUTS, decoded.call, pytest.fail)
    mailbox.open()
    assert isinstance(decoded.error, Unavailable)
    assert admission.images == 0


def test_a_server_that_is_closing_takes_nothing_on(pipeline, model, ask, admission, mailbox, ears):
    admission.close()
    asked = ask()
    guarded(asked.call, pipeline.run_images, model, views(1), OUTPUTS, asked.call, pytest.fail)
    assert isinstance(asked.error, Unavailable)
    assert mailbox.is_empty()
    assert ears.dropped_rows("overloaded") == 0


def test_a_failed_batch_answers_internal_without_text(pipeline, model, puppet, ask, mailbox, admission):
    asked = ask()
    pipeline.run_images(model, views(1), OUTPUTS, asked.call, first_column)
    puppet.next().fail(RuntimeError("/srv/secret"))
    mailbox.open()
    assert isinstance(asked.error, Internal)
    assert str(asked.error) == "inference failed"
    assert admission.images == 0


def test_a_finish_that_breaks_answers_internal_without_text_and_is_logged(
    pipeline, model, puppet, ask, mailbox, admission, caplog
):
    asked = ask()
    pipeline.run_images(model, views(1), OUTPUTS, asked.call, lambda result: result["no such output"])
    puppet.next().finish()
    mailbox.open()
    assert isinstance(asked.error, Internal)
    assert str(asked.error) == "internal error"
    assert "no such output" in caplog.text
    assert admission.images == 0


def test_probabilities_that_are_none_are_no_answer_and_harm_nobody_in_the_batch(pipeline, model, puppet, ask, mailbox):
    first = ask()
    pipeline.run_images(model, views(1), OUTPUTS, first.call, first_column)
    held = puppet.next()
    bad, good = ask(), ask()
    for asked, value in ((bad, 2), (good, 3)):
        pipeline.run_images(model, views(value), OUTPUTS, asked.call, first_column)
    held.finish()
    puppet.next().finish({"probabilities": np.array([[np.nan, 1], [3, 0]], np.float32)})
    mailbox.open_until(lambda: bad.answers and good.answers)
    assert (first.message, good.message) == ([1], [3])
    assert isinstance(bad.error, Internal)
    assert "not finite" in str(bad.error)


def test_what_finish_refuses_is_the_answer(pipeline, model, puppet, ask, mailbox):
    def refuse(_):
        raise InvalidArgument("no labels")

    asked = ask()
    pipeline.run_images(model, views(1), OUTPUTS, asked.call, refuse)
    puppet.next().finish()
    mailbox.open()
    assert str(asked.error) == "no labels"


def test_room_is_made_before_the_answer_goes_out(pipeline, model, puppet, ask, mailbox, admission):
    inside = []
    asked = ask(answer=lambda *_: inside.append(admission.images))
    pipeline.run_images(model, views(1), OUTPUTS, asked.call, first_column)
    puppet.next().finish()
    mailbox.open()
    assert inside == [0]


def test_a_step_that_raises_answers_the_call(ask, caplog):
    known, unknown = ask(), ask()

    def refuse():
        raise NotFound("unknown model 'x'")

    guarded(known.call, refuse)
    guarded(unknown.call, lambda: 1 / 0)
    assert isinstance(known.error, NotFound)
    assert isinstance(unknown.error, Internal)
    assert str(unknown.error) == "internal error"
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    assert "ZeroDivisionError" in caplog.text


def test_a_step_that_raises_after_the_answer_does_not_answer_again(ask):
    asked = ask()

    def answer_and_stumble(error):
        asked.call.reply("message")
        raise error

    guarded(asked.call, answer_and_stumble, NotFound("too late"))
    assert asked.message == "message"
    other = ask()
    guarded(other.call, lambda: (other.call.reply("message"), 1 / 0))
    assert other.message == "message"


def test_a_drawn_reply_is_made_picture_by_picture_off_the_inbox_s_thread(pipeline, model, puppet, ask, mailbox):
    asked, threads = ask(), set()

    def part(row):
        threads.add(threading.current_thread().name)
        return row

    def finish(pictures, *_):
        return PictureWork(len(pictures), part, list)

    pipeline.run_sources(model, list(views(5, 6)), OUTPUTS, asked.call, finish, draws=True)
    puppet.next().finish()
    mailbox.open_until(lambda: asked.answers)
    assert asked.message == [0, 1]
    assert threads == {"draw-0"}
    assert asked.call.confidences is not None


def test_a_reply_given_up_before_it_is_drawn_is_counted_as_dropped_and_makes_room(
    pipeline, model, puppet, ask, mailbox, clock, ears, admission
):
    asked = ask(deadline=clock.now + 5)

    def finish(pictures, *_):
        clock.advance(5)
        return PictureWork(len(pictures), pytest.fail, list)

    pipeline.run_sources(model, list(views(5, 6)), OUTPUTS, asked.call, finish, draws=True)
    puppet.next().finish()
    mailbox.open_until(lambda: asked.answers)
    assert isinstance(asked.error, DeadlineExceeded)
    assert ears.drops == [(("net", "1"), "expired", 2)]
    assert admission.images == 0


def test_what_would_wait_too_long_to_be_drawn_is_refused_and_only_that(pipeline, model, drawing, ask, mailbox, clock):
    begun, go_on = threading.Event(), threading.Event()

    def hold(_):
        begun.set()
        assert go_on.wait(10)

    drawing.submit(PictureWork(1, lambda _: clock.advance(8), list), ask().call, lambda *_: None)
    mailbox.open()
    drawing.submit(PictureWork(2, hold, list), ask().call, lambda *_: None)
    assert begun.wait(10)
    run = partial(pipeline.run_sources, model, list(views(1)), OUTPUTS)
    try:
        with pytest.raises(Overloaded, match="deadline cannot be met"):
            run(ask(deadline=clock.now + 7, client="other").call, pytest.fail, draws=True)
        run(ask(deadline=clock.now + 7, client="other").call, lambda *_: None)
    finally:
        go_on.set()


def test_many_calls_in_flight_each_get_their_own_answer(pipeline, model, puppet, ask, mailbox, admission):
    asked = [ask(client=str(number)) for number in range(10)]
    for number, one in enumerate(asked):
        if number % 2:
            pipeline.run_images(model, views(number), OUTPUTS, one.call, first_column)
        else:
            pipeline.run_sources(model, [grey(number)], OUTPUTS, one.call, lambda _, result, __: first_column(result))
    puppet.release()
    try:
        mailbox.open_until(lambda: all(one.answers for one in asked))
    except queue.Empty:
        pytest.fail("a call got no answer")
    assert [one.message for one in asked] == [[number] for number in range(10)]
    assert admission.images == 0
