"""Explaining graphs: loaded once, when first asked for; rows are an image's source and a class; one answer per call."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from attnserve.card import Explanation
from attnserve.errors import Cancelled, ConfigError, DeadlineExceeded, DoesNotFit, Internal, Unavailable
from attnserve.explain import RETRY_S, Explainers, Wish, record_of
from attnserve.guard import guarded
from attnserve.latency_table import LatencyTable

LAST = Explanation("last", "explain/last.onnx", 8, 1, 2, 4, ("gradcam", "layercam"))
THIRD = Explanation("layer3", "explain/layer3.onnx", 4, 1, 2, 4, ("gradcam",))
IMAGES = np.arange(2 * 2 * 3 * 3, dtype=np.uint8).reshape(2, 2, 3, 3)
OUTPUTS = {
    "probabilities": np.array([[0.1, 0.7, 0.2], [0.5, 0.2, 0.3]], np.float32),
    "features": np.arange(2 * 4 * 1 * 2, dtype=np.float32).reshape(2, 4, 1, 2),
}


def wish(*layers: Explanation, classes: tuple[int, ...] = (), top_k: int = 1) -> Wish:
    return Wish(layers or (LAST,), "gradcam", classes, top_k, 2, 3)


class Engine:
    """Maps of which every value is the class; remembers what it was given, and may be held up."""

    outputs = ("gradcam", "layercam")

    def __init__(self) -> None:
        self.batches: list[np.ndarray] = []
        self.go = threading.Event()
        self.go.set()

    def run(self, images, outputs):
        self.batches.append(images.copy())
        assert self.go.wait(10)
        maps = np.ones((1, 1, 2), np.float32) * images["class_index"].reshape(-1, 1, 1)
        return dict.fromkeys(outputs, maps)


@pytest.fixture
def engine():
    return Engine()


class Loads:
    """Loads a scheduler when the test lets it, and counts."""

    def __init__(self, make) -> None:
        self.make = make
        self.count = 0
        self.go = threading.Event()
        self.go.set()

    def __call__(self):
        self.count += 1
        assert self.go.wait(10)
        return self.make()


@pytest.fixture
def loads(start_scheduler, engine):
    return Loads(lambda: start_scheduler(engine))


@pytest.fixture
def explainers(loads, clock):
    made = Explainers([(LAST, loads), (THIRD, loads)], clock)
    yield made
    made.close()


@pytest.fixture
def explain(explainers, ask):
    """Asks on a call whose message is what was found."""

    def start(asked_for: Wish, **fields):
        asked = ask(**fields)
        asked.call.level = 1
        guarded(asked.call, lambda: explainers.explain(asked_for, IMAGES, OUTPUTS, asked.call, asked.call.reply))
        return asked

    return start


def test_the_predicted_class_of_each_image_is_explained(explain, engine, mailbox):
    asked = explain(wish())
    mailbox.open_until(lambda: asked.answers)
    (found,) = asked.message
    assert (found.layer, found.method, found.classes.tolist()) == (LAST, "gradcam", [[1], [0]])
    assert found.maps.shape == (2, 1, 1, 2)
    assert found.maps[:, 0, 0, 0].tolist() == [1, 0]
    (batch,) = engine.batches
    np.testing.assert_array_equal(batch["features"], OUTPUTS["features"])


def test_every_image_meets_every_class(explain, engine, mailbox):
    asked = explain(wish(classes=(2, 0)))
    mailbox.open_until(lambda: asked.answers)
    (found,) = asked.message
    assert found.classes.tolist() == [[2, 0], [2, 0]]
    assert found.maps[:, :, 0, 0].tolist() == [[2, 0], [2, 0]]
    rows = np.concatenate(engine.batches)
    np.testing.assert_array_equal(rows["features"], OUTPUTS["features"][[0, 0, 1, 1]])


def test_the_most_probable_classes_come_first(explain, mailbox):
    asked = explain(wish(top_k=2))
    mailbox.open_until(lambda: asked.answers)
    assert asked.message[0].classes.tolist() == [[1, 2], [0, 2]]


def test_an_earlier_layer_is_given_the_pictures_and_layers_follow_each_other(explain, engine, mailbox):
    asked = explain(wish(THIRD, LAST))
    mailbox.open_until(lambda: asked.answers)
    assert [each.layer for each in asked.message] == [THIRD, LAST]
    first, second = engine.batches
    np.testing.assert_array_equal(first["images"], IMAGES)
    assert second.dtype == record_of(LAST, 2, 3)


def test_a_graph_is_loaded_once_however_many_ask_meanwhile(explain, loads, mailbox):
    assert loads.count == 0
    loads.go.clear()
    asked = [explain(wish()) for _ in range(3)]
    loads.go.set()
    mailbox.open_until(lambda: all(each.answers for each in asked))
    later = explain(wish())
    mailbox.open_until(lambda: later.answers)
    assert loads.count == 1
    assert all(len(each.message) == 1 for each in [*asked, later])


def test_a_graph_that_cannot_be_loaded_fails_its_calls_now_and_for_a_while(explain, loads, mailbox, caplog):
    loads.make = lambda: (_ for _ in ()).throw(ConfigError("secret path"))
    first = explain(wish())
    mailbox.open_until(lambda: first.answers)
    second = explain(wish())
    for asked in (first, second):
        assert isinstance(asked.error, Unavailable)
        assert str(asked.error) == "explain.layers: 'last' cannot be loaded; see the server's log"
    assert loads.count == 1
    assert "secret path" in caplog.text


@pytest.mark.parametrize("failure", [DoesNotFit("no room"), ConfigError("too many open files"), RuntimeError("bug")])
def test_a_graph_that_could_not_be_loaded_is_tried_again_after_a_while(explain, loads, mailbox, clock, failure):
    good = loads.make
    loads.make = lambda: (_ for _ in ()).throw(failure)
    first = explain(wish())
    mailbox.open_until(lambda: first.answers)
    assert isinstance(first.error, Unavailable)
    loads.make = good
    clock.advance(RETRY_S - 0.1)
    assert isinstance(explain(wish()).error, Unavailable)
    clock.advance(0.2)
    later = explain(wish())
    mailbox.open_until(lambda: later.answers)
    assert later.message
    assert loads.count == 2


def test_a_thread_that_does_not_start_leaves_nobody_waiting(explain, mailbox, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", lambda _: (_ for _ in ()).throw(RuntimeError("no more threads")))
        assert isinstance(explain(wish()).error, Internal)
    later = explain(wish())
    mailbox.open_until(lambda: later.answers)
    assert later.message


def test_a_caller_that_goes_away_while_the_graph_loads_is_not_run(explain, loads, engine, mailbox):
    loads.go.clear()
    asked = explain(wish())
    asked.call.cancel()
    loads.go.set()
    mailbox.open_until(lambda: asked.answers)
    assert isinstance(asked.error, Cancelled)
    assert engine.batches == []


def test_a_caller_that_goes_away_while_it_waits_for_a_worker_is_not_run(explain, engine, mailbox):
    warm = explain(wish())
    mailbox.open_until(lambda: warm.answers)
    engine.go.clear()
    running, waiting = explain(wish()), explain(wish())
    waiting.call.cancel()
    mailbox.open_until(lambda: waiting.answers)
    assert isinstance(waiting.error, Cancelled)
    engine.go.set()
    mailbox.open_until(lambda: running.answers)
    assert running.message
    assert len(engine.batches) == 2


def test_a_deadline_that_passes_while_the_graph_loads_is_missed(explain, loads, mailbox, clock, engine):
    loads.go.clear()
    asked = explain(wish(), deadline=clock.now + 1)
    clock.advance(2)
    loads.go.set()
    mailbox.open_until(lambda: asked.answers)
    assert isinstance(asked.error, DeadlineExceeded)
    assert engine.batches == []


def test_closing_fails_what_waits_and_closes_a_graph_that_was_still_loading(explainers, explain, loads, mailbox):
    loads.go.clear()
    made = []
    good = loads.make

    def remember():
        made.append(good())
        return made[-1]

    loads.make = remember
    asked = explain(wish())
    explainers.close()
    loads.go.set()
    mailbox.open_until(lambda: asked.answers)
    assert isinstance(asked.error, Unavailable)
    for worker in made[0]._workers:
        worker.join(10)
        assert not worker.is_alive()
    assert isinstance(explain(wish()).error, Unavailable)


def test_the_time_that_it_took_is_told(explain, engine, mailbox, clock):
    warm = explain(wish())
    mailbox.open_until(lambda: warm.answers)
    engine.go.clear()
    asked = explain(wish())
    clock.advance(3)
    engine.go.set()
    mailbox.open_until(lambda: asked.answers)
    assert asked.call.timings.explain_s == 3


def test_estimates_know_only_what_is_loaded(explainers, explain, mailbox, engine, clock):
    assert explainers.estimate(wish(), "a", 1, 5) == (0, 0)
    engine.go.clear()
    asked = explain(wish())
    mailbox.open()  # the graph is there, and its first batch runs
    while not engine.batches:
        pass
    clock.advance(4)
    engine.go.set()
    mailbox.open_until(lambda: asked.answers)
    assert explainers.estimate(wish(), "a", 1, 2) == (0, 4)  # a batch of two, as measured, and nothing before it
    assert explainers.estimate(wish(LAST, THIRD), "a", 1, 2) == (0, 4)
    engine.go.clear()
    running = explain(wish())
    while len(engine.batches) < 2:
        pass
    assert explainers.estimate(wish(), "a", 1, 2) == (4, 4)
    engine.go.set()
    mailbox.open_until(lambda: running.answers)


def test_what_was_admitted_and_is_still_on_its_way_counts_as_if_it_were_queued(explainers, explain, ask, mailbox):
    """Else a crowd that comes at once is let in as a whole, and most of it is late."""
    warm = explain(wish())
    mailbox.open_until(lambda: warm.answers)

    def ahead(client: str) -> float:
        return explainers.estimate(wish(), client, 1, 80).wait_s

    explainers._layers["last"].scheduler._queue.table = LatencyTable({8: 1.0})
    assert ahead("polite") == 9
    flood = [ask(client=f"flood {number % 2}").call for number in range(40)]
    for call in flood:
        explainers.promise(wish(), 80, call)
    assert ahead("flood 0") == pytest.approx(9 + 20 * 10 + 20 * 10)
    assert ahead("polite") == 9 + 2 * 10  # as many rows of each of the two others are all that goes before
    for call in flood:
        call.fail(Cancelled("gone"))
    assert ahead("flood 0") == 9


def test_what_a_wish_weighs_is_the_rows_of_its_largest_layer():
    per_row = max(4 * 4 * 1 * 2, 2 * 3 * 3) + 8
    assert wish(LAST, THIRD, classes=(0, 1, 2)).bytes_per_image == 3 * per_row
