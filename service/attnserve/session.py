"""The engine: one ONNX Runtime session per model version, its execution provider and its warm-up.

Beside `ort_device` the only module that imports onnxruntime, and the one for CPUs: what runs on a GPU is bound there,
explaining graphs apart. A session is shared by the workers of a model: each runs the whole graph on its own thread (one
intra-op thread, so ONNX Runtime has no pool), with one copy of the weights; where several threads share a run (see
`placement`), each worker has a session and so a pool of its own.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from attnserve.card import Explanation
from attnserve.contract import Outputs
from attnserve.errors import ConfigError
from attnserve.gpu.capture_gate import GATE
from attnserve.int8_products import exact_int8_products
from attnserve.served_graph import INPUT, image_size, warm_up

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"

_FATAL = 4  # of ONNX Runtime's levels

Provider = tuple[str, Mapping[str, str]]
"""An execution provider with its options."""


def choose_provider(wanted: str) -> str:
    """ONNX Runtime's provider for `auto`, `cpu`, `openvino`, `cuda` or `tensorrt`; if it can be set up shows later.

    Raises `ConfigError` where CUDA or TensorRT is asked for and this onnxruntime is built without.
    """
    provider = {"cpu": CPU, "openvino": CPU, "tensorrt": TENSORRT}.get(wanted, CUDA)
    if provider == CPU:
        return CPU
    if provider in ort.get_available_providers():
        with redirect_stdout(sys.stderr):  # it prints what it misses, and stdout is for the server's own line
            ort.preload_dlls()  # finds CUDA and cuDNN in the nvidia-* wheels or in torch, wherever they are installed
        # cuDNN refuses many fused convolutions, each in a line of the default logger, and ONNX Runtime splits them.
        ort.set_default_logger_severity(_FATAL)
        return provider
    if wanted == "auto":
        return CPU
    raise ConfigError(
        f"provider {wanted}: this onnxruntime has no {provider}; install attnserve[gpu] instead of attnserve[cpu]"
    )


class OnnxBackend:
    """Runs model.onnx on the CPU. Several threads may call `run` at once.

    Args:
        path: The model file; input `images` UINT8 (N, H, W, 3).
        threads: That share the work of one run.
    """

    def __init__(self, path: Path, threads: int = 1) -> None:
        self.provider = CPU
        self._clock = time.thread_time if threads == 1 else time.perf_counter
        self._session = _opened(path, str(path), (CPU, {}), threads)
        self._outputs = [output.name for output in self._session.get_outputs()]
        self.output_types = {output.name: output.type for output in self._session.get_outputs()}
        self.output_shapes = {output.name: tuple(output.shape) for output in self._session.get_outputs()}
        self.height, self.width = check_input(self._session, path)

    @property
    def outputs(self) -> Sequence[str]:
        """Names of the graph's outputs."""
        return self._outputs

    def backend(self) -> OnnxBackend:
        """Itself: any number of workers may share it."""
        return self

    def run(self, images: NDArray[np.uint8], outputs: Sequence[str]) -> Outputs:
        """Compute the named outputs for images (N, H, W, 3) uint8; blocks."""
        return dict(zip(outputs, self._session.run(list(outputs), {INPUT: images}), strict=True))

    def warm_up(self, batch_sizes: Sequence[int]) -> dict[int, float]:
        """Run at each batch size; see `served_graph.warm_up`."""
        return warm_up(self.run, self._outputs, (self.height, self.width), batch_sizes, self._clock)


class ExplainingBackend:
    """Runs the explaining graph of one layer. Several threads may call `run` at once.

    Args:
        path: Where the file lies, for messages.
        data: Its bytes, already verified.
        layer: What the card says of it. Raises `ConfigError` where the graph is something else.
        provider: What the model runs on.
    """

    def __init__(self, path: Path, data: bytes, layer: Explanation, provider: Provider) -> None:
        self._on_gpu = provider[0] != CPU
        with self._guarded():
            self._session = _opened(path, data, provider)
        found = {output.name: (output.type, tuple(output.shape[1:])) for output in self._session.get_outputs()}
        for method in layer.methods:
            if found.get(method) != ("tensor(float)", (layer.height, layer.width)):
                raise ConfigError(f"{path}: {method!r} should be {layer.height} x {layer.width}, found {found}")
        self._outputs = list(layer.methods)

    @property
    def outputs(self) -> Sequence[str]:
        """The methods."""
        return self._outputs

    def run(self, images: NDArray[Any], outputs: Sequence[str]) -> Outputs:
        """Compute maps (N, h, w) float32 for records (N,) whose fields are the graph's inputs; blocks."""
        inputs = {name: np.ascontiguousarray(images[name]) for name in images.dtype.names or ()}
        with self._guarded():
            return dict(zip(outputs, self._session.run(list(outputs), inputs), strict=True))

    def warm_up(self, row: NDArray[Any]) -> float:
        """Run one row, (1,) records, twice; returns the seconds of the second run, as the first one allocates."""
        for _ in range(2):
            started = time.perf_counter()
            self.run(row, self._outputs)
        return time.perf_counter() - started

    def _guarded(self) -> AbstractContextManager[None]:
        return GATE.shared() if self._on_gpu else nullcontext()


def check_input(session: ort.InferenceSession, path: Path) -> tuple[int, int]:
    """Height and width that a model's graph takes. Raises `ConfigError` where it takes something else."""
    return image_size(path, [(tensor.name, tensor.type, tensor.shape) for tensor in session.get_inputs()])


def _opened(path: Path, model: str | bytes, provider: Provider, threads: int = 1) -> ort.InferenceSession:
    """A session on a file's name or bytes. Raises `ConfigError` naming the path."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    # Threads that spin for work take the cores from those that have some: a run by two threads on two busy cores took
    # twice as long with it.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    exact_int8_products(options)
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors; a warning per optimised-away node helps nobody
    name, given = provider
    providers = [(name, dict(given)), *([] if name == CPU else [CPU])]
    try:
        return ort.InferenceSession(model, options, providers=providers)
    except Exception as error:  # onnxruntime raises many unrelated types for a bad file
        raise ConfigError(f"{path}: onnxruntime cannot load it: {error}") from error
