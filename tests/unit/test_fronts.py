"""Engines behind shared memory: what fronts hand over is run together, and each gets its own back."""

from __future__ import annotations

import os
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import Pipe

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from attnserve.contract import ModelKey
from attnserve.engine import Engine
from attnserve.errors import ConfigError
from attnserve.fronts.host import Host
from attnserve.fronts.lane import take_handle
from attnserve.fronts.merged import Merged
from attnserve.fronts.remote import LANES, RemoteEngines
from attnserve.gpu.plan import GpuOptions
from attnserve.inference import model_config_pb2 as pb
from attnserve.latency_table import LatencyTable
from attnserve.listeners import QuietListener
from attnserve.placement import CpuOptions

PATIENCE_S = 20.0


class Slow:
    """A backend that waits to be let go, notes its batches, and answers with the first pixel of each row."""

    outputs = ("probabilities", "map")

    def __init__(self):
        self.go = threading.Event()
        self.go.set()
        self.began = threading.Event()
        self.batches = []
        self.error = None

    def run(self, images, outputs):
        self.batches.append(len(images))
        self.began.set()
        assert self.go.wait(PATIENCE_S)
        if self.error is not None:
            raise self.error
        pixel = images[:, 0, 0, 0].astype(np.float32)
        wide = np.broadcast_to(pixel[:, None], (len(pixel), 5000))
        found = {"probabilities": pixel[:, None] / 255, "map": np.ascontiguousarray(wide)}
        return {name: found[name] for name in outputs}


class Opener:
    """Opens the one backend, and counts."""

    def __init__(self, backend):
        self.backend = backend
        self.opened = self.closed = 0
        self.error = None

    def __call__(self, *_):
        if self.error is not None:
            raise self.error
        self.opened += 1
        shapes = {"probabilities": ("batch", 1), "map": ("batch", 5000)}
        return Engine([self.backend], "CPU", LatencyTable({1: 0.01, 64: 0.02}), 4, 4,
                      dict.fromkeys(shapes, "tensor(float)"), shapes, plan="plain", close=self._close)  # fmt: skip

    def _close(self):
        self.closed += 1


class Heard(QuietListener):
    def __init__(self):
        self.batches = []

    def batch_finished(self, model, rows, infer_s):
        assert infer_s > 0
        self.batches.append((model, rows))


@pytest.fixture
def backend():
    return Slow()


@pytest.fixture
def opener(backend):
    return Opener(backend)


@pytest.fixture
def heard():
    return Heard()


@pytest.fixture
def host(opener, heard):
    made = Host(heard, opener)
    yield made
    made.close()


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "net/3/model.onnx"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"graph")
    return file


@pytest.fixture
def open_from(host, path):
    """Opens the model as a front does; several calls are several fronts."""
    threads, engines = [], []

    def run(name="front"):
        here, there = Pipe()

        def hear():
            try:
                while True:
                    host.open(name, here.recv(), take_handle(here))
            except EOFError:
                here.close()

        threads.append((threading.Thread(target=hear), there))
        threads[-1][0].start()
        config = pb.ModelConfig(max_batch_size=64)
        remote = RemoteEngines(there, threading.Lock())
        engines.append(remote.open_engine(path, config, "cpu", 0, GpuOptions(), CpuOptions()))
        return engines[-1]

    yield run
    for engine in engines:
        engine.close()
    for thread, there in threads:
        there.close()
        thread.join()


def pictures(*pixels, size=4):
    return np.repeat(np.array(pixels, np.uint8).reshape(-1, 1, 1, 1), 3, axis=3).repeat(size, 1).repeat(size, 2)


def until(condition):
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_an_engine_says_what_the_host_s_says(open_from):
    engine = open_from()
    assert (engine.provider, engine.height, engine.plan, engine.joins) == ("CPU", 4, "plain", True)
    assert engine.table.sizes == {1: 0.01, 64: 0.02}
    assert len(engine.backends) == LANES
    assert list(engine.backends[0].outputs) == ["probabilities", "map"]
    assert engine.output_shapes["map"] == ("batch", 5000)


def test_answers_are_the_callers_own_and_stay_when_the_lane_is_used_again(open_from):
    backends = [open_from(name).backends[0] for name in ("front-0", "front-1")]

    def call(seed):
        kept = []
        for step in range(20):
            pixels = np.random.default_rng(100 * seed + step).integers(0, 256, 1 + (seed + step) % 7)
            kept.append((pixels, backends[seed % 2].run(pictures(*pixels), ["map", "probabilities"])))
        for pixels, found in kept:
            np.testing.assert_array_equal(found["map"][:, 4999], pixels)
            np.testing.assert_allclose(found["probabilities"][:, 0], pixels / 255, rtol=1e-6)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(call, range(8)))


def test_what_several_fronts_hand_over_meanwhile_is_one_batch(open_from, backend, heard, host):
    backends = [open_from(name).backends[0] for name in ("front-0", "front-1", "front-2")]
    backend.go.clear()
    with ThreadPoolExecutor(10) as threads:
        first = threads.submit(backends[0].run, pictures(9), ["probabilities"])
        assert backend.began.wait(PATIENCE_S)
        rest = [threads.submit(each.run, pictures(seed, seed), ["probabilities"])
                for seed, each in enumerate(backends * 3)]  # fmt: skip
        (shared,) = host._shared.values()
        until(lambda: shared._running.scheduler.queued_images == 18)
        backend.go.set()
        assert first.result()["probabilities"][0, 0] == pytest.approx(9 / 255)
        for seed, each in enumerate(rest):
            np.testing.assert_allclose(each.result()["probabilities"][:, 0], [seed / 255] * 2, rtol=1e-6)
    assert backend.batches == [1, 18]
    until(lambda: len(heard.batches) == 2)
    assert heard.batches == [(ModelKey("net", "3"), 1), (ModelKey("net", "3"), 18)]


def test_a_lane_grows_with_what_is_put_there(open_from):
    (backend, *_) = open_from().backends
    for size, rows in ((4, 1), (300, 60), (4, 2)):
        found = backend.run(pictures(*range(rows), size=size), ["map"])["map"]
        assert found.shape == (rows, 5000)
        np.testing.assert_array_equal(found[:, 0], np.arange(rows))


def test_a_batch_that_fails_fails_for_whoever_was_in_it_and_nobody_after(open_from, backend, caplog):
    (remote, *_) = open_from().backends
    backend.error = OSError("the card fell off")
    with pytest.raises(RuntimeError, match="inference failed"):
        remote.run(pictures(1), ["probabilities"])
    assert "the card fell off" in caplog.text
    backend.error = None
    assert len(remote.run(pictures(1), ["probabilities"])["probabilities"]) == 1


def test_a_file_is_opened_once_for_all_fronts_and_closed_with_the_last(open_from, opener):
    first, second = open_from("front-0"), open_from("front-1")
    assert opener.opened == 1
    first.close()
    assert len(second.backends[0].run(pictures(1), ["probabilities"])["probabilities"]) == 1
    assert opener.closed == 0
    second.close()
    until(lambda: opener.closed == 1)
    open_from("front-2")
    assert opener.opened == 2


def test_why_the_host_opens_nothing_is_what_the_front_raises(open_from, opener):
    opener.error = ConfigError("model.onnx: no such card")
    with pytest.raises(ConfigError, match=r"^model\.onnx: no such card$"):
        open_from()
    opener.error = None
    assert open_from().provider == "CPU"


def test_a_front_that_goes_in_the_middle_of_a_batch_disturbs_no_other(open_from, backend):
    gone, stays = open_from("front-0"), open_from("front-1")
    backend.go.clear()
    with ThreadPoolExecutor(2) as threads:
        lost = threads.submit(gone.backends[0].run, pictures(1), ["probabilities"])
        assert backend.began.wait(PATIENCE_S)
        kept = threads.submit(stays.backends[0].run, pictures(2), ["probabilities"])
        for lane in gone.backends[0]._lanes:  # as the kernel does when a process dies
            with socket.socket(fileno=os.dup(lane._connection.fileno())) as end:
                end.shutdown(socket.SHUT_RDWR)
        with pytest.raises(RuntimeError, match="is gone"):
            lost.result()
        backend.go.set()
        assert kept.result()["probabilities"][0, 0] == pytest.approx(2 / 255)


def registry_of(requests, seconds, ready):
    registry = CollectorRegistry()
    counter = Counter("attnserve_images_total", "Images.", ("model",), registry=registry)
    counter.labels("net").inc(requests)
    histogram = Histogram("attnserve_request_duration_seconds", "Time.", buckets=(1, 2), registry=registry)
    histogram.observe(seconds)
    Histogram("attnserve_batch_size", "Rows.", buckets=(1, 2), registry=registry).observe(1)
    Gauge("attnserve_queued_images", "Waiting.", registry=registry).set(3)
    Gauge("attnserve_ready", "Ready.", registry=registry).set(ready)
    Gauge("attnserve_model_info", "Model.", ("model",), registry=registry).labels("net").set(1)
    Gauge("attnserve_model_load_seconds", "Load.", registry=registry).set(seconds)
    Gauge("process_open_fds", "Files.", registry=registry).set(10)
    return registry


def test_metrics_of_all_processes_are_one_server_s():
    fronts = [registry_of(5, 0.5, 1), registry_of(7, 1.5, 0)]
    whole = CollectorRegistry()
    Merged(lambda: [list(front.collect()) for front in fronts], registry_of(1000, 9.0, 0), whole)
    page = generate_latest(whole).decode()
    for line in (
        'attnserve_images_total{model="net"} 12.0',
        'attnserve_request_duration_seconds_bucket{le="1.0"} 1.0',
        'attnserve_request_duration_seconds_bucket{le="2.0"} 2.0',
        "attnserve_request_duration_seconds_count 2.0",
        "attnserve_request_duration_seconds_sum 2.0",
        "attnserve_batch_size_count 1.0",  # the host's alone
        "attnserve_queued_images 6.0",
        "attnserve_ready 0.0",
        'attnserve_model_info{model="net"} 1.0',
        "attnserve_model_load_seconds 1.5",
        "process_open_fds 30.0",
    ):
        assert line in page.splitlines(), (line, page)
    assert page.count("# TYPE attnserve_images_total counter") == 1
