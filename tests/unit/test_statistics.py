"""ModelStatistics, counted from facts."""

from __future__ import annotations

import threading

import pytest

from attnserve.contract import ModelKey, Timings
from attnserve.errors import InvalidArgument
from attnserve.inference import grpc_service_pb2 as pb
from attnserve.statistics import Statistics

NET = ModelKey("net", "1")


@pytest.fixture
def finish(ask, clock):
    """Answers a call of a model after so many seconds and tells the statistics."""

    def run(statistics, model=NET, images=1, seconds=0.0, error=None, **timings) -> None:
        asked = ask(listener=statistics)
        asked.call.model, asked.call.images, asked.call.timings = model, images, Timings(**timings)
        clock.advance(seconds)
        asked.call.fail(error) if error else asked.call.reply("message")

    return run


def test_a_model_without_a_request_has_zeros():
    assert Statistics().message(NET) == pb.ModelStatistics(name="net", version="1", inference_stats=None)


def test_a_success_counts_images_and_every_stage_in_nanoseconds(finish):
    statistics = Statistics()
    finish(statistics, images=3, seconds=1, decode_s=0.125, queue_s=0.25, infer_s=0.5, postprocess_s=0.0625)
    finish(statistics, images=2, seconds=2, decode_s=0.125, queue_s=0.25, infer_s=0.5, postprocess_s=0.0625)
    message = statistics.message(NET)
    assert message.inference_count == 5
    stats = message.inference_stats
    assert (stats.success.count, stats.success.ns) == (2, 3_000_000_000)
    assert (stats.compute_input.count, stats.compute_input.ns) == (2, 250_000_000)
    assert (stats.queue.count, stats.queue.ns) == (2, 500_000_000)
    assert (stats.compute_infer.count, stats.compute_infer.ns) == (2, 1_000_000_000)
    assert (stats.compute_output.count, stats.compute_output.ns) == (2, 125_000_000)
    assert stats.fail.count == 0
    assert message.last_inference > 1_600_000_000_000  # milliseconds since 1970


def test_a_failure_counts_as_one_and_nothing_else(finish):
    statistics = Statistics()
    finish(statistics, images=3, seconds=0.5, error=InvalidArgument("no"), queue_s=1)
    message = statistics.message(NET)
    assert (message.inference_stats.fail.count, message.inference_stats.fail.ns) == (1, 500_000_000)
    assert (message.inference_count, message.last_inference) == (0, 0)
    assert message.inference_stats.queue.count == 0


def test_a_call_that_reached_no_model_counts_nowhere(finish):
    statistics = Statistics()
    finish(statistics, model=None, error=InvalidArgument("no"))
    assert statistics.message(NET).inference_stats.fail.count == 0


def test_batches_are_counted_by_their_size_in_ascending_order():
    statistics = Statistics()
    for rows, seconds in [(8, 0.5), (1, 0.125), (8, 0.25)]:
        statistics.batch_finished(NET, rows, seconds)
    message = statistics.message(NET)
    assert message.execution_count == 3
    assert [(b.batch_size, b.compute_infer.count, b.compute_infer.ns) for b in message.batch_stats] == [
        (1, 1, 125_000_000),
        (8, 2, 750_000_000),
    ]


def test_versions_are_counted_apart(finish):
    statistics = Statistics()
    finish(statistics)
    statistics.batch_finished(ModelKey("net", "2"), 4, 0.5)
    assert (statistics.message(NET).inference_count, statistics.message(NET).execution_count) == (1, 0)
    second = statistics.message(ModelKey("net", "2"))
    assert (second.inference_count, second.execution_count, second.version) == (0, 1, "2")


def test_a_message_is_a_copy(finish):
    statistics = Statistics()
    finish(statistics)
    before = statistics.message(NET)
    before.inference_count = 99
    finish(statistics)
    assert statistics.message(NET).inference_count == 2


def test_a_drop_is_counted_when_its_call_ends_and_not_twice():
    statistics = Statistics()
    statistics.dropped(NET, "expired", 3)
    assert statistics.message(NET) == Statistics().message(NET)


def test_threads_lose_no_count():
    statistics = Statistics()

    def work() -> None:
        for rows in range(500):
            statistics.batch_finished(NET, rows % 4 + 1, 0.001)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
    message = statistics.message(NET)
    assert message.execution_count == 2000
    assert [batch.compute_infer.count for batch in message.batch_stats] == [500] * 4
