"""What the TensorRT provider is told, and when an engine is another one. TensorRT itself has not been run."""

from __future__ import annotations

from importlib.metadata import version

import pytest

from attnserve.errors import ConfigError
from attnserve.gpu import tensorrt
from attnserve.gpu.plan import GpuOptions

FACTS = {"versions": "TensorRT 10.1", "capability": "9.0"}
PROFILE = tensorrt.profile_options("images", (224, 224, 3), [1, 2, 4, 6])


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "repository/net/1/model.onnx"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"one")
    return path


def test_the_profile_spans_the_buckets_and_is_best_at_the_largest():
    assert PROFILE == {
        "trt_profile_min_shapes": "images:1x224x224x3",
        "trt_profile_opt_shapes": "images:6x224x224x3",
        "trt_profile_max_shapes": "images:6x224x224x3",
    }


def test_an_engine_is_kept_with_its_timings_in_a_folder_of_its_own(model, tmp_path):
    options = GpuOptions(engine_cache=tmp_path / "engines")
    found = tensorrt.tensorrt_options(model, PROFILE, 1, options, half=True, **FACTS)
    folder = found["trt_engine_cache_path"]
    assert (found["device_id"], found["trt_fp16_enable"]) == ("1", "1")
    assert (found["trt_engine_cache_enable"], found["trt_timing_cache_enable"]) == ("1", "1")
    assert found["trt_timing_cache_path"] == folder
    assert [str(made) for made in (tmp_path / "engines").iterdir()] == [folder]
    assert "/net-" in folder
    assert found.items() >= PROFILE.items()
    assert tensorrt.tensorrt_options(model, PROFILE, 0, options, half=True, **FACTS)["trt_engine_cache_path"] == folder


def test_whatever_an_engine_depends_on_changes_its_folder(model, tmp_path):
    def folder(**changed):
        given = {"half": False, **FACTS, **changed}
        profile = given.pop("profile", PROFILE)
        options = GpuOptions(engine_cache=tmp_path / "engines")
        return tensorrt.tensorrt_options(model, profile, 0, options, **given)["trt_engine_cache_path"]

    first = folder()
    assert folder() == first
    others = [
        folder(half=True),
        folder(versions="TensorRT 10.2"),
        folder(capability="8.9"),
        folder(profile=tensorrt.profile_options("images", (224, 224, 3), [1, 2])),
    ]
    model.write_bytes(b"two")
    others.append(folder())
    assert len({first, *others}) == 6


def test_without_a_folder_for_engines_nothing_is_built(model):
    with pytest.raises(ConfigError, match="provider tensorrt needs engine_cache"):
        tensorrt.tensorrt_options(model, PROFILE, 0, GpuOptions(), half=False, **FACTS)


def test_tensorrt_s_version_is_that_of_the_package_that_is_installed():
    assert tensorrt.installed_version(["no-such-package"]) == "unknown"
    assert tensorrt.installed_version(["no-such-package", "numpy"]) == version("numpy")
