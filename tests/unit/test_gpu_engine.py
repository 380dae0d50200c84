"""A model opened with buffers, slots and a tuned plan, on the CPU provider: everything but CUDA itself."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from attnserve import model_config
from attnserve.config import ServeConfig
from attnserve.engines import open_engine
from attnserve.errors import ConfigError
from attnserve.gpu import engine as engine_module
from attnserve.gpu.bound_backend import BoundBackend
from attnserve.gpu.engine import new_copies, open_on_gpus
from attnserve.gpu.one_thread import OneThread
from attnserve.gpu.ort_device import OrtDevice, open_session
from attnserve.gpu.plan import GpuOptions, parse_plan
from attnserve.inference import model_config_pb2 as pb
from attnserve.loading import Loader
from attnserve.server import Server
from attnserve.session import CPU, CUDA, TENSORRT, choose_provider

FOLDER = Path(__file__).parents[2] / "model_repo" / "fashion-mnist-bam"
PATH = FOLDER / "1/model.onnx"
WITHOUT_CUDA = pytest.mark.skipif(CUDA in ort.get_available_providers(), reason="this onnxruntime has CUDA")
NO_SUCH_PROVIDER = pytest.mark.filterwarnings("ignore:Specified provider")


@pytest.fixture
def config():
    read = model_config.read(FOLDER)[0]
    read.max_batch_size = 6
    return read


@pytest.fixture
def opened(config):
    """Opens the model and closes it after the test."""
    made = []

    def run(workers=0, copies=new_copies, **options):
        gpu = GpuOptions(**{"tuning_s": 0.0, **options})
        made.append(open_on_gpus(PATH, config, CPU, workers, gpu, strict=True, copies=copies))
        return made[-1]

    yield run
    for engine in made:
        engine.close()


def pictures(rows):
    return np.random.default_rng(rows).integers(0, 256, (rows, 28, 28, 3), np.uint8)


def test_an_engine_says_what_it_runs_on_and_answers_as_the_plain_one(opened, config):
    engine, plain = opened(), open_engine(PATH, config, "cpu", 1, GpuOptions())
    for name in ("provider", "height", "width", "output_types", "output_shapes"):
        assert getattr(engine, name) == getattr(plain, name), name
    assert (engine.plan, plain.plan, plain.cpu_nodes) == ("nchw,heuristic,pageable,plain", "", None)
    assert engine.cpu_nodes > 50
    assert sorted(engine.table.sizes) == [1, 2, 4, 6]
    for rows in range(1, 7):
        found, expected = (each.backends[0].run(pictures(rows), ["logits"])["logits"] for each in (engine, plain))
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_on_cuda_every_batch_size_runs_in_a_session_that_sees_no_other(config, monkeypatch):
    opened, sizes = [], {}

    class Watched(OrtDevice):
        def __init__(self, sessions, _kind, index, copies):
            super().__init__(sessions, "cpu", index, copies)

        def bind(self, batch, inputs, outputs):
            binding = super().bind(batch, inputs, outputs)
            sizes.setdefault(id(binding.session), set()).add(batch)
            return binding

    def on_the_cpu(model, _provider, _options):
        opened.append(open_session(model, CPU, {}))
        return opened[-1]

    monkeypatch.setattr(engine_module, "OrtDevice", Watched)
    monkeypatch.setattr(engine_module, "open_session", on_the_cpu)
    engine = open_on_gpus(PATH, config, CUDA, 0, GpuOptions(tuning_s=0.0), strict=True)
    for rows in (6, 1, 2, 3, 5):
        assert len(engine.backends[0].run(pictures(rows), ["logits"])["logits"]) == rows
    engine.close()
    assert sorted(map(tuple, sizes.values())) == [(1,), (2,), (4,), (6,)]
    assert len(opened) == 4


def test_overlapped_graphs_have_sessions_and_threads_of_their_own(config, monkeypatch):
    monkeypatch.setattr(engine_module, "OrtDevice", lambda sessions, _, *rest: OrtDevice(sessions, "cpu", *rest))
    monkeypatch.setattr(engine_module, "open_session", lambda model, _, __: open_session(model, CPU, {}))
    gpu = GpuOptions(tuning_s=0.0, fixed=parse_plan("overlapped-graphs"))
    engine = open_on_gpus(PATH, config, CUDA, 0, gpu, strict=True)
    assert [type(backend) for backend in engine.backends] == [OneThread, OneThread]
    first, second = (backend._backend._device._sessions for backend in engine.backends)
    assert sorted(first) == sorted(second) == [1, 2, 4, 6]
    assert len({id(session) for sessions in (first, second) for session in sessions.values()}) == 8
    answers = [backend.run(pictures(3), ["probabilities"])["probabilities"] for backend in engine.backends]
    np.testing.assert_array_equal(*answers)
    engine.close()


def test_a_trial_opens_only_the_batch_sizes_that_it_measures(config, monkeypatch):
    warmed = []
    warm_up = BoundBackend.warm_up
    monkeypatch.setattr(BoundBackend, "warm_up", lambda self, sizes: (warmed.append(list(sizes)), warm_up(self, sizes)))
    fixed = {"mode": "plain"}
    open_on_gpus(PATH, config, CPU, 0, GpuOptions(tuning_s=0.0, fixed=fixed), strict=True).close()
    assert warmed == [[1, 6], [2, 4]]


def test_each_device_has_its_own_workers_on_the_one_plan(opened):
    engine = opened(devices=(0, 1), fixed={"mode": "overlap"})
    assert len(engine.backends) == len(set(engine.backends)) == 4
    answers = [backend.run(pictures(3), ["probabilities"])["probabilities"] for backend in engine.backends]
    for answer in answers[1:]:
        np.testing.assert_array_equal(answer, answers[0])


def test_as_many_workers_as_asked_for_overlap(opened):
    assert len(opened(workers=3).backends) == 3
    assert len(opened(workers=1).backends) == 1
    assert len(opened().backends) == 1


def test_with_time_for_it_the_other_plan_is_measured_too(opened, caplog):
    caplog.set_level("INFO")
    opened(tuning_s=100.0)
    measured = [record.args[1] for record in caplog.records if "takes per batch" in record.msg]
    assert [plan.mode for plan in measured] == ["plain", "overlap"]
    opened(workers=1, tuning_s=100.0)
    measured = [record.args[1] for record in caplog.records if "takes per batch" in record.msg]
    assert [plan.mode for plan in measured] == ["plain", "overlap", "plain"]


def test_what_an_earlier_version_measured_is_not_measured_again(opened, caplog):
    caplog.set_level("INFO")
    engine = opened(tuning_s=100.0, known=parse_plan("nchw,heuristic,pageable,overlap"))
    assert engine.plan == "nchw,heuristic,pageable,overlap"
    assert sum("takes per batch" in record.msg for record in caplog.records) == 1


def test_what_is_fixed_or_cannot_be_had_goes_before_what_an_earlier_version_measured(opened):
    known = parse_plan("nhwc,exhaustive,graphs")
    assert opened(known=known).plan == "nchw,heuristic,pageable,plain"
    assert opened(known=parse_plan("plain"), fixed={"mode": "overlap"}).plan == "nchw,heuristic,pageable,overlap"


def test_a_plan_of_an_earlier_version_that_cannot_be_opened_costs_a_warning_and_not_the_model(opened, caplog):
    def copies(plan, device):
        if plan.mode == "overlap":
            raise OSError("no memory")
        return new_copies(plan, device)

    assert opened(known=parse_plan("overlap"), copies=copies).plan == "nchw,heuristic,pageable,plain"
    assert "cannot run by the plan of the version before: no memory" in caplog.text


@pytest.mark.parametrize("word", [{"mode": "graphs"}, {"layout": "nhwc"}, {"copies": "pinned"}])
def test_what_a_provider_does_not_have_cannot_be_asked_for(opened, word):
    with pytest.raises(ConfigError, match=rf"gpu_plan: {next(iter(word.values()))} cannot be had"):
        opened(fixed=word)


def test_a_closed_engine_runs_no_more(opened):
    engine = opened()
    engine.close()
    engine.close()
    with pytest.raises(RuntimeError, match="closed"):
        engine.backends[0].run(pictures(1), ["logits"])


@WITHOUT_CUDA
@NO_SUCH_PROVIDER
def test_a_gpu_asked_for_by_name_that_cannot_be_had_is_an_error(config):
    with pytest.raises(ConfigError, match=r"model\.onnx: CUDAExecutionProvider cannot be set up"):
        open_on_gpus(PATH, config, CUDA, 0, GpuOptions(), strict=True)


@WITHOUT_CUDA
@NO_SUCH_PROVIDER
def test_a_gpu_that_auto_cannot_have_is_a_warning(config, caplog):
    assert open_on_gpus(PATH, config, CUDA, 0, GpuOptions(), strict=False) is None
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "running on the CPU" in record.getMessage()


@WITHOUT_CUDA
@pytest.mark.parametrize("wanted", ["cuda", "tensorrt"])
def test_an_onnxruntime_without_gpus_says_what_to_install(wanted, config):
    with pytest.raises(ConfigError, match=rf"provider {wanted}: .* install attnserve\[gpu\]"):
        choose_provider(wanted)
    with pytest.raises(ConfigError, match=rf"provider {wanted}: "):
        open_engine(PATH, config, wanted, 0, GpuOptions())
    with pytest.raises(ConfigError, match=rf"provider {wanted}: "):
        Server(ServeConfig(model_repository="models", provider=wanted, engine_cache="engines"))
    assert choose_provider("auto") == choose_provider("cpu") == CPU


@WITHOUT_CUDA
@pytest.mark.parametrize(("provider", "name"), [("auto", "cuda"), ("cpu", "cuda"), ("tensorrt", "tensorrt")])
def test_a_model_that_wants_a_gpu_in_its_config_gets_one_or_nothing(config, provider, name):
    config.instance_group.add(kind=pb.ModelInstanceGroup.KIND_GPU)
    with pytest.raises(ConfigError, match=f"provider {name}: "):
        open_engine(PATH, config, provider, 0, GpuOptions())


@WITHOUT_CUDA
def test_a_model_that_wants_the_cpu_in_its_config_runs_there(config):
    config.instance_group.add(kind=pb.ModelInstanceGroup.KIND_CPU)
    assert open_engine(PATH, config, "cuda", 1, GpuOptions()).provider == CPU


@NO_SUCH_PROVIDER
@pytest.mark.skipif(TENSORRT in ort.get_available_providers(), reason="this onnxruntime has TensorRT")
def test_tensorrt_s_folder_is_made_before_the_session_is(config, tmp_path):
    gpu = GpuOptions(engine_cache=tmp_path)
    with pytest.raises(ConfigError, match="TensorrtExecutionProvider cannot be set up"):
        open_on_gpus(PATH, config, TENSORRT, 0, gpu, strict=True)
    (folder,) = tmp_path.iterdir()
    assert folder.name.startswith("fashion-mnist-bam-")


def test_a_model_is_closed_with_its_engine(ears, config):
    loader = Loader(provider="cpu", workers=1, listener=ears, reserve_bytes=0, available_bytes=lambda: None)
    model = loader.load(FOLDER, "1", config, None)
    assert (model.plan, model.cpu_nodes) == ("", None)
    closed = []
    dataclasses.replace(model, close_engine=lambda: closed.append(True)).close()
    assert closed == [True]
