"""The real calls of ONNX Runtime's binding, on its CPU provider: the same classes as on a GPU, bit for bit."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from attnserve.errors import ConfigError
from attnserve.gpu.bound_backend import BoundBackend, bucket_for
from attnserve.gpu.capture_gate import CaptureGate
from attnserve.gpu.one_thread import OneThread
from attnserve.gpu.ort_device import OrtCopies, OrtDevice, nodes_by_provider, open_session, signature_of
from attnserve.session import CPU, CUDA, check_input

PATH = Path(__file__).parents[2] / "model_repo/fashion-mnist-cbam/1/model.onnx"
BUCKETS = [1, 2, 4, 8]


@pytest.fixture(scope="module")
def session():
    return open_session(str(PATH), CPU, {})


@pytest.fixture(params=[False, True], ids=["plain", "one thread"])
def backend(session, request):
    """A graph's ways are those of a CUDA graph too; the CPU provider only ignores that it should capture one."""

    def make():
        device = OrtDevice(dict.fromkeys(BUCKETS, session), "cpu", 0, OrtCopies())
        return BoundBackend(device, signature_of(session, PATH), BUCKETS, graphs=request.param, gate=CaptureGate())

    made = OneThread(make) if request.param else make()
    made.warm_up(BUCKETS)
    yield made
    made.close()


def test_bound_runs_are_the_session_s_own_runs_of_the_padded_batch_bit_for_bit(backend, session):
    random = np.random.default_rng(0)
    for rows in (1, 2, 3, 4, 5, 6, 7, 8, 3, 1):
        images = random.integers(0, 256, (rows, 28, 28, 3), np.uint8)
        padded = np.zeros((bucket_for(rows, BUCKETS), 28, 28, 3), np.uint8)
        padded[:rows] = images
        for wanted in (["probabilities"], ["features", "probabilities", "logits"], list(backend.outputs)):
            found = backend.run(images, wanted)
            own = session.run(wanted, {"images": padded})
            for name, whole in zip(wanted, own, strict=True):
                assert found[name].dtype == whole.dtype
                np.testing.assert_array_equal(found[name], whole[:rows])


def test_results_stay_when_the_next_batch_runs(backend):
    white, black = (np.full((2, 28, 28, 3), level, np.uint8) for level in (255, 0))
    first = backend.run(white, ["logits"])["logits"]
    kept = first.copy()
    assert not np.array_equal(backend.run(black, ["logits"])["logits"], kept)
    np.testing.assert_array_equal(first, kept)


def test_a_signature_is_the_graph_s(session):
    signature = signature_of(session, PATH)
    assert (signature.input, signature.row, signature.dtype) == ("images", (28, 28, 3), np.uint8)
    assert list(signature.outputs) == [tensor.name for tensor in session.get_outputs()]
    assert signature.outputs["features"] == ((128, 2, 2), np.dtype(np.float32))
    assert check_input(session, PATH) == (28, 28)


def test_the_last_slot_that_closes_lets_go_of_the_session():
    session = open_session(str(PATH), CPU, {})
    slots = [
        BoundBackend(
            OrtDevice(dict.fromkeys(BUCKETS, session), "cpu", 0, OrtCopies()),
            signature_of(session, PATH),
            [1],
            gate=CaptureGate(),
        )
        for _ in range(2)
    ]
    for slot in slots:
        slot.warm_up([1])
    alive = weakref.ref(session)
    del session
    slots[0].close()
    assert alive() is not None
    slots[1].close()
    gc.collect()
    assert alive() is None


class Session:
    """Looks like one."""

    def __init__(self, **outputs):
        self._outputs = outputs

    def get_inputs(self):
        return [ort_node("images", "tensor(uint8)", ["batch", 2, 2, 3])]

    def get_outputs(self):
        return [ort_node(name, *rest) for name, rest in self._outputs.items()]


def ort_node(name, kind, shape):
    return type("NodeArg", (), {"name": name, "type": kind, "shape": shape})()


@pytest.mark.parametrize("output", [("tensor(float)", ["batch", "any"]), ("tensor(string)", ["batch", 2])])
def test_what_no_buffer_can_be_made_for_is_refused_by_name(output):
    with pytest.raises(ConfigError, match=r"m\.onnx: no buffer can be made for output 'odd'"):
        signature_of(Session(odd=output), Path("m.onnx"))


def test_half_precision_has_buffers_of_its_own_kind():
    signature = signature_of(Session(map=("tensor(float16)", ["batch", 5])), Path("m.onnx"))
    assert signature.outputs["map"] == ((5,), np.dtype(np.float16))


def test_nodes_are_counted_by_where_they_run_as_far_as_onnxruntime_tells(session):
    assert list(nodes_by_provider(session)) == [CPU]
    assert nodes_by_provider(session)[CPU] > 50
    assert nodes_by_provider(Session()) == {}


@pytest.mark.filterwarnings("ignore:Specified provider 'CUDAExecutionProvider'")
@pytest.mark.skipif(CUDA in ort.get_available_providers(), reason="this onnxruntime has CUDA")
def test_a_provider_that_is_not_there_is_an_error_and_not_a_slow_server():
    with pytest.raises(ConfigError, match="CUDAExecutionProvider cannot be set up, it would run on CPUExecution"):
        open_session(str(PATH), CUDA, {})


def test_a_file_that_is_no_model_is_named_as_one(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"no model")
    with pytest.raises(ConfigError, match="CPUExecutionProvider cannot be set up: "):
        open_session(str(tmp_path / "model.onnx"), CPU, {})
