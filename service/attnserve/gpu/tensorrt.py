"""What the TensorRT provider is told: shapes of its profile, where its engines lie, and for what an engine holds.

Pure but for the hash of the model's file. An engine fits one model, one TensorRT, one kind of GPU and one set of
options, and takes minutes to build: each such combination has a folder of its own, and nothing in it is ever stale.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from attnserve.card import sha256_of
from attnserve.errors import ConfigError
from attnserve.gpu.plan import GpuOptions

PACKAGES = ("tensorrt-cu13-libs", "tensorrt-cu12-libs", "tensorrt-cu13", "tensorrt-cu12", "tensorrt")


def installed_version(packages: Sequence[str] = PACKAGES) -> str:
    """TensorRT's version as one of the Python packages says it, or `unknown` where it was installed in another way."""
    for package in packages:
        try:
            return version(package)
        except PackageNotFoundError:
            continue
    return "unknown"


def engine_folder(cache: Path, model: Path, options: dict[str, str], *, versions: str, capability: str) -> Path:
    """Where the engine and timing cache of exactly this combination lie.

    Args:
        options: The provider's, without the paths.
        versions: Of TensorRT and ONNX Runtime.
        capability: Of the GPU, like `9.0`.
    """
    facts = {"model": sha256_of(model), "versions": versions, "capability": capability, "options": options}
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]
    return cache / f"{model.parent.parent.name}-{key}"


def profile_options(name: str, row: Sequence[int], buckets: Sequence[int]) -> dict[str, str]:
    """The profile's shapes: every bucket fits, and the largest, where throughput is made, is the best one.

    Args:
        name: Of the input.
        row: Shape of one row of it.
    """

    def shapes(size: int) -> str:
        return f"{name}:{'x'.join(map(str, (size, *row)))}"

    return {
        "trt_profile_min_shapes": shapes(buckets[0]),
        "trt_profile_opt_shapes": shapes(buckets[-1]),
        "trt_profile_max_shapes": shapes(buckets[-1]),
    }


def tensorrt_options(
    model: Path,
    profile: dict[str, str],
    device: int,
    options: GpuOptions,
    *,
    half: bool,
    versions: str,
    capability: str,
) -> dict[str, str]:
    """The provider's options; makes the engine's folder.

    Args:
        profile: From `profile_options`.
        half: Compute in float16, as the model does.

    Raises:
        ConfigError: There is no folder for engines: each start would build them anew.
    """
    if options.engine_cache is None:
        raise ConfigError("provider tensorrt needs engine_cache, the folder where its engines are kept")
    found = {"trt_fp16_enable": str(int(half)), **profile}
    folder = engine_folder(options.engine_cache, model, found, versions=versions, capability=capability)
    folder.mkdir(parents=True, exist_ok=True)
    return {
        **found,
        "device_id": str(device),
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(folder),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(folder),
    }
