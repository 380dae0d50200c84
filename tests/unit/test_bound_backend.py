"""Buffers that stay, padding that never shows, and graphs that keep to themselves, on a device of numpy arrays."""

from __future__ import annotations

import threading
import weakref

import numpy as np
import pytest

from attnserve.gpu.bound_backend import (
    MOST_BINDINGS,
    NO_GRAPH,
    BoundBackend,
    Signature,
    bucket_for,
)
from attnserve.gpu.capture_gate import CaptureGate
from attnserve.gpu.one_thread import OneThread
from attnserve.gpu.tuning import seconds_per_batch

FLOAT = np.dtype(np.float32)
NAMES = ("probabilities", "logits", "map")
SIGNATURE = Signature(
    "images",
    (1, 1, 3),
    np.dtype(np.uint8),
    {"probabilities": ((2,), FLOAT), "logits": ((2,), FLOAT), "map": ((3, 4), FLOAT)},
)
BUCKETS = [1, 2, 4, 7]
PATIENCE_S = 10.0


class Tensor:
    """Device memory."""

    def __init__(self, shape, dtype):
        self.content = np.full(shape, 99).astype(dtype)


class Binding:
    def __init__(self, inputs, outputs):
        self.inputs, self.outputs = inputs, outputs


def expected(images, name):
    """A row of an output says the first pixel of its image, in its own way."""
    pixel = np.asarray(images)[:, 0, 0, 0].astype(np.float32)
    if name == "map":
        return np.broadcast_to(pixel[:, None, None] * 3, (len(pixel), 3, 4))
    return np.stack([pixel, pixel * (2 if name == "logits" else 1)], axis=1)


class Recorder:
    """A device that computes at once, records what was asked, and captures graphs as ONNX Runtime does.

    A graph id is run twice, captured with its tensors on the third run, and replayed from then on: with the tensors of
    the capture, on its thread only.
    """

    def __init__(self, staged=False, stale_graphs=False):
        self.staged = staged
        self.stale_graphs = stale_graphs
        self.allocated, self.staged_shapes, self.bindings = [], [], []
        self.runs, self.seen, self.threads = [], [], set()
        self.graphs = {}
        self.closed = 0
        self.error = None
        self.on_run = lambda: None
        self.compute = expected
        self.running = 0

    def allocate(self, shape, dtype):
        tensor = Tensor(shape, dtype)
        self.allocated.append((shape, weakref.ref(tensor)))
        return tensor

    def stage(self, shape, dtype):
        self.staged_shapes.append(shape)
        return np.zeros(shape, dtype)

    def upload(self, host, tensor):
        assert host.shape == tensor.content.shape
        assert host.flags.c_contiguous
        tensor.content[...] = host

    def bind(self, batch, inputs, outputs):
        assert all(len(tensor.content) == batch for tensor in (*inputs.values(), *outputs.values()))
        binding = Binding(inputs, outputs)
        self.bindings.append(weakref.ref(binding))
        return binding

    def run(self, binding, graph_id):
        self.running += 1
        assert self.running == 1, "two runs at once"
        self.threads.add(threading.get_ident())
        self.on_run()
        if self.error is not None:
            self.running -= 1
            raise self.error
        if graph_id != NO_GRAPH:
            count, captured, thread = self.graphs.get(graph_id, (0, None, threading.get_ident()))
            assert thread == threading.get_ident(), "a graph belongs to its thread"
            captured = Binding(binding.inputs, binding.outputs) if count == 2 else captured
            self.graphs[graph_id] = (count + 1, captured, thread)
            stale = self.stale_graphs and count > 2
            binding = Binding({"images": Tensor((1, 1, 1, 3), np.uint8)}, {}) if stale else captured or binding
        (images,) = binding.inputs.values()
        self.runs.append((len(images.content), tuple(binding.outputs), graph_id))
        self.seen.append(images.content.copy())
        for name, tensor in binding.outputs.items():
            tensor.content[...] = self.compute(images.content, name)
        self.running -= 1

    def download(self, tensor, rows):
        return tensor.content[:rows].copy()

    def close(self):
        self.closed += 1


def images_of(*pixels):
    return np.repeat(np.array(pixels, np.uint8).reshape(-1, 1, 1, 1), 3, axis=3)


@pytest.fixture(params=[False, True], ids=["unstaged", "staged"])
def device(request):
    return Recorder(staged=request.param)


@pytest.fixture
def backend(device):
    return BoundBackend(device, SIGNATURE, BUCKETS, gate=CaptureGate())


@pytest.fixture
def graphs(device):
    """A warm backend with graphs, on its thread."""
    made = OneThread(lambda: BoundBackend(device, SIGNATURE, BUCKETS, graphs=True, gate=CaptureGate()))
    made.warm_up(BUCKETS)
    device.runs.clear()
    yield made
    made.close()


def test_a_batch_goes_into_the_smallest_bucket_that_holds_it():
    assert [bucket_for(rows, BUCKETS) for rows in range(1, 8)] == [1, 2, 4, 4, 7, 7, 7]
    for rows in (0, 8):
        with pytest.raises(ValueError, match="does not fit the buckets"):
            bucket_for(rows, BUCKETS)


@pytest.mark.parametrize("form", ["plain", "graphs"])
def test_every_batch_size_gets_exactly_its_own_rows_of_every_output(form, request, backend):
    runner = request.getfixturevalue("graphs") if form == "graphs" else backend
    for rows in [*range(1, 8), *range(7, 0, -1)]:
        images = images_of(*range(10 * rows, 11 * rows))
        for wanted in (["probabilities"], ["map", "probabilities"], list(NAMES)):
            found = runner.run(images, wanted)
            assert list(found) == wanted
            for name in wanted:
                np.testing.assert_array_equal(found[name], expected(images, name))


def test_the_padding_is_black_and_never_an_earlier_caller_s_picture(backend, device):
    backend.run(images_of(1, 2, 3, 4, 5, 6, 7), ["probabilities"])
    backend.run(images_of(8, 9, 8, 9, 8), ["probabilities"])
    backend.run(images_of(1, 1, 1, 1), ["probabilities"])
    backend.run(images_of(5, 6, 7), ["probabilities"])
    assert [list(seen[:, 0, 0, 0]) for seen in device.seen[1:]] == [
        [8, 9, 8, 9, 8, 0, 0],
        [1, 1, 1, 1],
        [5, 6, 7, 0],
    ]


def test_pictures_that_do_not_lie_together_are_uploaded_right(backend):
    images = images_of(1, 2, 3, 4, 5, 6, 7, 8)[::2]
    np.testing.assert_array_equal(backend.run(images, ["logits"])["logits"], expected(images, "logits"))


def test_after_the_warm_up_nothing_is_allocated_any_more(backend, device):
    backend.warm_up(BUCKETS)
    allocated, staged = len(device.allocated), len(device.staged_shapes)
    assert sorted(device.staged_shapes) == [(bucket, 1, 1, 3) for bucket in BUCKETS]
    assert allocated == len(BUCKETS) * (1 + len(NAMES))
    for rows in [1, 2, 3, 4, 5, 6, 7] * 10:
        backend.run(images_of(*range(rows)), ["map", "logits"])
    assert (len(device.allocated), len(device.staged_shapes)) == (allocated, staged)


def test_combinations_of_outputs_are_bound_once_whatever_their_order(backend, device):
    for wanted in (["map", "logits"], ["logits", "map"], ["map", "logits"]):
        backend.run(images_of(1), wanted)
    assert len(device.bindings) == 1


def test_however_many_combinations_callers_think_of_only_some_are_kept():
    many = {f"vector{index}": ((2,), FLOAT) for index in range(MOST_BINDINGS + 20)}
    device = Recorder()
    backend = BoundBackend(device, Signature("images", (1, 1, 3), np.dtype(np.uint8), many), [1], gate=CaptureGate())
    for name in many:
        backend.run(images_of(1), [name])
    assert sum(binding() is not None for binding in device.bindings) == MOST_BINDINGS


def test_a_combination_in_use_stays_bound_whatever_else_is_asked_for():
    many = {f"vector{index}": ((2,), FLOAT) for index in range(MOST_BINDINGS + 20)}
    device = Recorder()
    backend = BoundBackend(device, Signature("images", (1, 1, 3), np.dtype(np.uint8), many), [1], gate=CaptureGate())
    for name in many:
        backend.run(images_of(1), ["vector0"])
        backend.run(images_of(1), [name])
    assert len(device.bindings) == len(many)


def test_each_bucket_has_a_graph_of_its_own_for_probabilities_and_nothing_else_has_one(graphs, device):
    for rows in range(1, 8):
        for wanted in (["probabilities"], ["logits"], ["probabilities", "map"]):
            graphs.run(images_of(*range(rows)), wanted)
    by_id = {}
    for bucket, outputs, graph_id in device.runs:
        by_id.setdefault(graph_id, set()).add((bucket, outputs))
    others = by_id.pop(NO_GRAPH)
    assert others == {(bucket, wanted) for bucket in BUCKETS for wanted in (("logits",), ("probabilities", "map"))}
    assert sorted(map(sorted, by_id.values())) == [[(bucket, ("probabilities",))] for bucket in BUCKETS]
    assert min(by_id) > 0


def test_a_graph_is_never_forgotten_for_other_combinations():
    names = {f"vector{index}": ((2,), FLOAT) for index in range(MOST_BINDINGS + 20)}
    signature = Signature("images", (1, 1, 3), np.dtype(np.uint8), {"probabilities": ((2,), FLOAT), **names})
    device = Recorder()
    backend = BoundBackend(device, signature, [1], graphs=True, gate=CaptureGate())
    backend.warm_up([1])
    bound = len(device.bindings)
    for name in names:
        backend.run(images_of(1), [name])
    made = len(device.bindings)
    assert made - bound == len(names)
    backend.run(images_of(1), ["probabilities"])
    assert len(device.bindings) == made


def test_a_graph_that_does_not_read_what_is_uploaded_is_refused():
    backend = BoundBackend(Recorder(stale_graphs=True), SIGNATURE, BUCKETS, graphs=True, gate=CaptureGate())
    with pytest.raises(RuntimeError, match="the CUDA graph for batches of 7 computes something else"):
        backend.warm_up(BUCKETS)


def test_of_a_graph_that_is_not_sure_of_any_class_a_stale_answer_is_refused_too():
    device = Recorder(stale_graphs=True)
    device.compute = lambda images, name: expected(images, name) * 1e-6 + 1e-3
    backend = BoundBackend(device, SIGNATURE, [2], graphs=True, gate=CaptureGate())
    with pytest.raises(RuntimeError, match="computes something else"):
        backend.warm_up([2])


def test_whoever_calls_a_backend_of_one_thread_its_device_hears_one_thread_and_one_call_at_a_time(graphs, device):
    wrong = []

    def call(pixel):
        for rows in (1, 2, 5, 7):
            images = images_of(*[pixel] * rows)
            found = graphs.run(images, ["probabilities"])["probabilities"]
            if not np.array_equal(found, expected(images, "probabilities")):
                wrong.append(pixel)

    threads = [threading.Thread(target=call, args=(pixel,)) for pixel in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(device.threads) == 1
    assert threading.get_ident() not in device.threads


def test_two_callers_of_one_slot_take_turns(backend, device):
    both = threading.Barrier(2, timeout=0.2)

    def meet():
        with pytest.raises(threading.BrokenBarrierError):
            both.wait()

    device.on_run = meet
    threads = [threading.Thread(target=backend.run, args=(images_of(1), ["map"])) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(device.runs) == 2


def test_two_slots_work_at_the_same_time():
    both = threading.Barrier(2, timeout=PATIENCE_S)
    slots, gate = [], CaptureGate()
    for _ in range(2):
        device = Recorder()
        device.on_run = both.wait  # breaks where the other slot never comes
        slots.append(BoundBackend(device, SIGNATURE, BUCKETS, gate=gate))
    threads = [threading.Thread(target=slot.run, args=(images_of(1), ["map"])) for slot in slots]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not both.broken


@pytest.mark.parametrize("form", ["plain", "graphs"])
def test_what_the_device_raises_reaches_the_caller_and_the_next_batch_runs(form, request, backend, device):
    runner = request.getfixturevalue("graphs") if form == "graphs" else backend
    device.error = OSError("the device fell off")
    with pytest.raises(OSError, match="the device fell off"):
        runner.run(images_of(1, 2), ["probabilities"])
    device.error = None
    found = runner.run(images_of(1, 2), ["probabilities"])["probabilities"]
    np.testing.assert_array_equal(found, expected(images_of(1, 2), "probabilities"))


def test_what_cannot_be_made_on_the_thread_raises_where_it_is_asked_for():
    def make():
        raise OSError("no device")

    before = threading.active_count()
    with pytest.raises(OSError, match="no device"):
        OneThread(make)
    assert threading.active_count() == before


@pytest.mark.parametrize("form", ["plain", "one thread"])
def test_closing_frees_everything_once_and_ends_the_thread(form, backend, device):
    before = threading.active_count()
    runner = OneThread(lambda: backend) if form == "one thread" else backend
    runner.warm_up(BUCKETS)
    runner.close()
    runner.close()
    assert device.closed == 1
    assert [shape for shape, tensor in device.allocated if tensor() is not None] == []
    assert threading.active_count() == before
    with pytest.raises(RuntimeError):
        runner.run(images_of(1), ["map"])


def test_results_are_the_caller_s_and_outlive_the_next_batch(backend):
    first = backend.run(images_of(1, 2), ["logits"])["logits"]
    backend.run(images_of(3, 4), ["logits"])
    np.testing.assert_array_equal(first, expected(images_of(1, 2), "logits"))


def test_nobody_else_works_while_a_graph_is_captured():
    gate, order = CaptureGate(), []
    capturing, may_end = threading.Event(), threading.Event()
    device = Recorder()

    def on_run():
        if device.runs and device.runs[-1][2] > 0 and not may_end.is_set():
            order.append("capturing")
            capturing.set()
            assert may_end.wait(PATIENCE_S)
            order.append("captured")

    device.on_run = on_run
    other_device = Recorder()
    other_device.on_run = lambda: order.append("other")
    backend = BoundBackend(device, SIGNATURE, [1], graphs=True, gate=gate)
    other = BoundBackend(other_device, SIGNATURE, [1], gate=gate)
    captor = threading.Thread(target=backend.warm_up, args=([1],))
    captor.start()
    assert capturing.wait(PATIENCE_S)
    worker = threading.Thread(target=other.run, args=(images_of(1), ["map"]))
    worker.start()
    worker.join(0.1)
    assert worker.is_alive()
    may_end.set()
    worker.join()
    captor.join()
    assert order == ["capturing", "captured", "other"]


def test_a_capture_waits_for_work_and_goes_before_work_that_comes_later():
    gate, order = CaptureGate(), []
    begun, may_end = threading.Event(), threading.Event()

    def work(name, wait=None):
        with gate.shared():
            order.append(name)
            begun.set()
            if wait is not None:
                assert wait.wait(PATIENCE_S)

    def capture():
        with gate.exclusive():
            order.append("capture")

    first = threading.Thread(target=work, args=("first", may_end))
    first.start()
    assert begun.wait(PATIENCE_S)
    captor = threading.Thread(target=capture)
    captor.start()
    captor.join(0.1)
    assert captor.is_alive()
    second = threading.Thread(target=work, args=("second",))
    second.start()
    second.join(0.1)
    assert second.is_alive()
    may_end.set()
    for thread in (first, captor, second):
        thread.join()
    assert order == ["first", "capture", "second"]


@pytest.mark.parametrize("enter", [lambda gate: gate.shared(), lambda gate: gate.exclusive()])
def test_work_that_fails_leaves_the_gate_open(enter):
    gate = CaptureGate()
    with pytest.raises(KeyError), enter(gate):
        raise KeyError
    with gate.exclusive():
        pass
    with gate.shared():
        pass


def test_the_time_of_a_batch_is_that_of_all_workers_together():
    slots = []
    for _ in range(2):
        device = Recorder()
        device.on_run = lambda: threading.Event().wait(0.02)
        slots.append(BoundBackend(device, SIGNATURE, BUCKETS, gate=CaptureGate()))
    one, two = (seconds_per_batch(slots[:count], images_of(1), 0.3) for count in (1, 2))
    assert one > 0.019
    assert 0.4 < two / one < 0.75
