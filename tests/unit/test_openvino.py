"""OpenVINO against ONNX Runtime's answers on a committed model, and what it refuses."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from attnserve import model_config
from attnserve.engines import open_engine
from attnserve.errors import ConfigError
from attnserve.gpu.plan import GpuOptions
from attnserve.openvino_backend import OpenVinoModel
from attnserve.placement import CpuOptions

openvino = pytest.importorskip("openvino", reason="needs the extra `openvino`")

FOLDER = Path(__file__).parents[2] / "model_repo" / "fashion-mnist-cbam"
PATH = FOLDER / "1" / "model.onnx"


@pytest.fixture(scope="module")
def session():
    return onnxruntime.InferenceSession(PATH, providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def model():
    return OpenVinoModel(PATH, 2, 1, "f32")


def pictures(count: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, 28, 28, 3), np.uint8)


@pytest.mark.parametrize("count", [1, 5])
def test_every_output_is_onnx_runtimes(model, session, count):
    backend = model.backend()
    found = backend.run(pictures(count), backend.outputs)
    for name, expected in zip(backend.outputs, session.run(None, {"images": pictures(count)}), strict=True):
        assert found[name].dtype == np.float32
        np.testing.assert_allclose(found[name], expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max(), err_msg=name)


def test_it_tells_of_the_graph_what_onnx_runtime_tells(model, session):
    assert (model.height, model.width) == (28, 28)
    assert model.output_types == {output.name: output.type for output in session.get_outputs()}
    assert {name: shape[1:] for name, shape in model.output_shapes.items()} == {
        output.name: tuple(output.shape[1:]) for output in session.get_outputs()
    }
    assert all(isinstance(shape[0], str) for shape in model.output_shapes.values())


def test_only_what_is_asked_for_comes_and_outlives_the_next_run(model):
    backend = model.backend()
    first = backend.run(pictures(3), ["logits"])
    assert list(first) == ["logits"]
    before = first["logits"].copy()
    backend.run(pictures(4)[:3], ["logits"])
    np.testing.assert_array_equal(first["logits"], before)


def test_pictures_that_lie_apart_in_memory_or_must_not_be_written_to_are_taken(model):
    backend, images = model.backend(), pictures(8)
    expected = backend.run(images[::2].copy(), ["logits"])["logits"]
    np.testing.assert_allclose(backend.run(images[::2], ["logits"])["logits"], expected, rtol=1e-6)
    received = np.frombuffer(images[::2].tobytes(), np.uint8).reshape(4, 28, 28, 3)
    np.testing.assert_allclose(backend.run(received, ["logits"])["logits"], expected, rtol=1e-6)


def test_two_workers_at_once_get_their_own_answers(model, session):
    expected = {count: session.run(["logits"], {"images": pictures(count)})[0] for count in (2, 7)}
    wrong = []

    def work(count: int) -> None:
        backend = model.backend()
        for _ in range(50):
            found = backend.run(pictures(count), ["logits"])["logits"]
            if not np.allclose(found, expected[count], rtol=1e-4, atol=1e-3):
                wrong.append(count)

    workers = [threading.Thread(target=work, args=(count,)) for count in expected]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert wrong == []


@pytest.mark.parametrize(("placement", "workers"), [("auto", 3), ("2x2", 0)])
def test_an_engine_by_openvino_is_warm_and_says_so(placement, workers):
    config = model_config.read(FOLDER)[0]
    engine = open_engine(PATH, config, "openvino", workers, GpuOptions(), CpuOptions(placement))
    assert (engine.provider, engine.onnx_provider) == ("OpenVINO", "CPUExecutionProvider")
    assert engine.placement == ("3x1" if workers else "2x2")
    assert len({id(backend) for backend in engine.backends}) == len(engine.backends) == (workers or 2)
    assert set(engine.table.sizes) == {1, 2, 4, 8, 16, 32, 64}


def test_bfloat16_is_close_or_refused():
    if "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        with pytest.raises(ConfigError, match="this CPU computes no bfloat16"):
            OpenVinoModel(PATH, 1, 1, "bf16")
        return
    model = OpenVinoModel(PATH, 1, 1, "bf16")
    exact, close = (m.backend().run(pictures(20), ["probabilities"])["probabilities"]
                    for m in (OpenVinoModel(PATH, 1, 1, "f32"), model))  # fmt: skip
    assert 0 < np.abs(close - exact).max() < 0.1


def test_a_file_that_is_no_model_is_refused_by_name(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"nothing")
    with pytest.raises(ConfigError, match=r"model\.onnx: OpenVINO cannot load it"):
        OpenVinoModel(tmp_path / "model.onnx", 1, 1, "f32")


def test_a_graph_of_something_else_is_refused():
    with pytest.raises(ConfigError, match=r"last\.onnx: needs exactly one input 'images' tensor\(uint8\), found"):
        OpenVinoModel(PATH.parent / "explain" / "last.onnx", 1, 1, "f32")


def test_without_it_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ConfigError, match=r"needs the extra openvino: pip install 'attnserve\[openvino\]'"):
        OpenVinoModel(PATH, 1, 1, "f32")
