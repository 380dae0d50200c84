"""The real thing: a CUDA device and onnxruntime-gpu. Run by `pytest -m gpu tests/gpu`, never by `make test`."""

from __future__ import annotations

import importlib.util
import sys
import threading
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from attnserve import model_config
from attnserve.client import Client, Explain
from attnserve.engines import open_engine
from attnserve.errors import ConfigError
from attnserve.gpu import pinned_copies
from attnserve.gpu.bound_backend import GRAPHED
from attnserve.gpu.engine import open_on_gpus
from attnserve.gpu.nvml import open_nvml
from attnserve.gpu.plan import CHOICES, GpuOptions
from attnserve.session import CPU, CUDA, choose_provider

pytestmark = pytest.mark.gpu

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "model_repo" / "fashion-mnist-cbam"
PATH = FOLDER / "1/model.onnx"
CLOSE = {"rtol": 1e-3, "atol": 1e-4}  # float32 without TF32: other kernels, another order of additions
HALF = {"rtol": 0.05, "atol": 0.02}
PLANS = [
    {"layout": layout, "search": "heuristic", "copies": copies, "mode": mode}
    for layout in CHOICES["layout"]
    for copies in CHOICES["copies"]
    for mode in CHOICES["mode"]
]


@pytest.fixture(scope="module", autouse=True)
def libraries():
    """Loaded as the server does."""
    assert choose_provider("cuda") == CUDA


def config_of(folder, max_batch_size=6):
    read = model_config.read(folder)[0]
    read.max_batch_size = max_batch_size
    return read


def pictures(rows, size=28, seed=0):
    return np.random.default_rng(seed + rows).integers(0, 256, (rows, size, size, 3), np.uint8)


@pytest.fixture(scope="module")
def on_cpu():
    return ort.InferenceSession(PATH, providers=[CPU])


@pytest.fixture
def opened():
    """Opens a model on the first GPU and closes it after the test."""
    made = []

    def run(folder=FOLDER, workers=0, max_batch_size=6, **options):
        path = folder / "1/model.onnx"
        gpu = GpuOptions(**{"tuning_s": 0.0, **options})
        made.append(open_on_gpus(path, config_of(folder, max_batch_size), CUDA, workers, gpu, strict=True))
        return made[-1]

    yield run
    for engine in made:
        engine.close()


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: ",".join(plan.values()))
def test_by_every_plan_each_batch_size_and_output_is_the_cpu_s(opened, on_cpu, plan):
    if plan["copies"] == "pinned" and not pinned_copies.available():
        pytest.skip("cuda-bindings is not installed")
    engine = opened(fixed=plan)
    names = [tensor.name for tensor in on_cpu.get_outputs()]
    for rows in (1, 2, 3, 4, 5, 6, 3, 1):
        images = pictures(rows)
        for wanted in (list(GRAPHED), names, ["features", "probabilities"]):
            expected = on_cpu.run(wanted, {"images": images})
            for backend in engine.backends:
                found = backend.run(images, wanted)
                for name, array in zip(wanted, expected, strict=True):
                    np.testing.assert_allclose(found[name], array, **CLOSE, err_msg=f"{name} of {rows}")


def test_an_exhaustive_search_changes_no_answer(opened, on_cpu):
    engine = opened(fixed={"search": "exhaustive"})
    (expected,) = on_cpu.run(["logits"], {"images": pictures(5)})
    np.testing.assert_allclose(engine.backends[0].run(pictures(5), ["logits"])["logits"], expected, **CLOSE)


@pytest.mark.parametrize("mode", CHOICES["mode"])
def test_many_callers_at_once_get_their_own_answers(opened, on_cpu, mode):
    engine = opened(fixed={"mode": mode})
    wrong = []

    def call(seed):
        for rows in (1, 6, 3, 2, 5):
            images = pictures(rows, seed=100 * seed)
            found = engine.backends[seed % len(engine.backends)].run(images, GRAPHED)["probabilities"]
            if not np.allclose(found, on_cpu.run(list(GRAPHED), {"images": images})[0], **CLOSE):
                wrong.append((seed, rows))

    threads = [threading.Thread(target=call, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_model_that_is_loaded_with_graphs_disturbs_none_that_is_serving(opened, on_cpu):
    serving = opened(fixed={"mode": "plain"})
    over, wrong = threading.Event(), []
    images = pictures(4)
    (expected,) = on_cpu.run(list(GRAPHED), {"images": images})

    def serve():
        while not over.is_set():
            try:
                if not np.allclose(serving.backends[0].run(images, GRAPHED)["probabilities"], expected, **CLOSE):
                    wrong.append("another answer")
            except Exception as error:  # any is the finding
                wrong.append(repr(error))

    threads = [threading.Thread(target=serve) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(3):
            opened(fixed={"mode": "graphs"})
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert not wrong


def test_the_tuned_plan_is_measured_and_answers(opened, on_cpu, caplog):
    caplog.set_level("INFO")
    engine = opened(tuning_s=60.0)
    measured = [str(record.args[1]) for record in caplog.records if "takes per batch" in record.msg]
    assert len(measured) >= 5
    assert engine.plan in measured
    (expected,) = on_cpu.run(list(GRAPHED), {"images": pictures(6)})
    np.testing.assert_allclose(engine.backends[0].run(pictures(6), GRAPHED)["probabilities"], expected, **CLOSE)


def test_the_whole_graph_is_on_the_gpu(opened):
    assert opened().cpu_nodes in (0, None)


def test_closing_gives_device_memory_back(opened):
    nvml = open_nvml()
    assert nvml is not None
    opened().close()  # what CUDA and its libraries take for ever
    before = nvml.read()[0].used_bytes
    for _ in range(5):
        opened(fixed={"mode": "graphs"}, max_batch_size=64).close()
    assert nvml.read()[0].used_bytes < before + (200 << 20)


def test_a_limit_that_is_too_small_is_an_error_and_not_the_cpu(opened):
    with pytest.raises(ConfigError, match=r"model\.onnx"):
        opened(mem_limit_bytes=1 << 16)


@pytest.mark.skipif(importlib.util.find_spec("onnxscript") is None, reason="the export needs onnxscript")
@pytest.mark.parametrize("mode", CHOICES["mode"])
def test_half_precision_is_near_the_cpu_s_float32(opened, mode, half_precision):
    folder, exact = half_precision
    engine = opened(folder, fixed={"mode": mode, "layout": "nhwc"})
    for rows in (1, 3, 6):
        images = pictures(rows, 32)
        found = engine.backends[0].run(images, ["probabilities"])["probabilities"]
        np.testing.assert_allclose(found, exact.run(["probabilities"], {"images": images})[0], **HALF)


@pytest.fixture(scope="module")
def half_precision(tmp_path_factory):
    """An entry in float16, and a CPU session of the same network in float32."""
    repository = tmp_path_factory.mktemp("half")
    sys.path.insert(0, str(ROOT / "tests/bench"))  # for the processes that export, too
    try:
        from gpu_nets import Net, export

        made = [Net("cbam", precision, depth=18, size=32, max_batch_size=8) for precision in ("fp16", "fp32")]
        export(repository, made, 2)
    finally:
        sys.path.pop(0)
    half, exact = (repository / net.name for net in made)
    return half, ort.InferenceSession(exact / "1/model.onnx", providers=[CPU])


def test_explanations_on_the_gpu_are_the_cpu_s_and_the_cards_are_metrics(start_server):
    images = list(pictures(3))
    answers = []
    for flags in (["--provider", "cuda", "--gpu-plan", "graphs,nchw"], ["--provider", "cpu"]):
        with start_server(*flags) as server, Client(server.grpc) as client:
            answers.append(client.classify(images, model=FOLDER.name, explain=Explain(), attention="full"))
            if "cuda" in flags:
                assert server.metric("attnserve_model_info", execution_provider=CUDA, model=FOLDER.name) == 1
                assert server.metric("attnserve_gpu_memory_used_bytes") > 0
    for found, expected in zip(*answers, strict=True):
        assert found.predictions[0].label == expected.predictions[0].label
        assert found.predictions[0].probability == pytest.approx(expected.predictions[0].probability, abs=1e-3)
        for one, other in zip(found.explanations, expected.explanations, strict=True):
            np.testing.assert_allclose(one.map.values, other.map.values, rtol=1e-2, atol=1e-3)


def test_a_model_opened_by_name_runs_where_it_was_asked_to():
    engine = open_engine(PATH, config_of(FOLDER), "cuda", 0, GpuOptions(tuning_s=0.0))
    assert engine.provider == CUDA
    engine.close()
