"""The device of a bound backend as ONNX Runtime's Python API offers it: sessions, OrtValues and IOBinding.

Beside `session` the only module that imports onnxruntime. On the CPU the same calls copy within host memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from attnserve.errors import ConfigError
from attnserve.gpu.bound_backend import Signature
from attnserve.gpu.capture_gate import GATE
from attnserve.session import CPU, CUDA, TENSORRT

_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int64)": np.int64}
_BEHIND: dict[str, list[str]] = {CPU: [], CUDA: [CPU], TENSORRT: [CUDA, CPU]}  # take what the first one cannot run
_RECORD_PLACEMENT = "session.record_ep_graph_assignment_info"


class Copies(Protocol):
    """How tensors are filled and read; `staged` and the functions as those of `bound_backend.Device`."""

    staged: bool

    def stage(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """Zeroed host memory to upload from."""

    def upload(self, host: NDArray[Any], tensor: Any) -> None:
        """Host to device."""

    def download(self, tensor: Any, rows: int) -> NDArray[Any]:
        """Device to host."""

    def close(self) -> None:
        """Free what was staged."""


class OrtCopies:
    """Copies by OrtValue itself: pageable memory, the default stream, and Python's lock held meanwhile."""

    staged = False

    def stage(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """Ordinary memory."""
        return np.zeros(shape, dtype)

    def upload(self, host: NDArray[Any], tensor: Any) -> None:
        """Blocks until the copy has arrived: onnxruntime waits for the default stream."""
        tensor.update_inplace(host)

    def download(self, tensor: Any, rows: int) -> NDArray[Any]:
        """A copy: on the CPU `numpy` shows the tensor's own memory."""
        return np.array(tensor.numpy()[:rows])

    def close(self) -> None:
        """Nothing to free."""


@dataclass(frozen=True)
class _Binding:
    session: ort.InferenceSession
    tensors: ort.IOBinding


class OrtDevice:
    """One slot's view of a model's sessions.

    Args:
        sessions: By batch size; may be shared by slots, and may grow. Held until `close`.
        kind: `cpu` or `cuda`; where the tensors live.
        index: Of the device.
    """

    def __init__(self, sessions: Mapping[int, ort.InferenceSession], kind: str, index: int, copies: Copies) -> None:
        self._sessions: Mapping[int, ort.InferenceSession] = sessions
        self._kind = kind
        self._index = index
        self._copies = copies
        self._run_options: dict[int, ort.RunOptions] = {}
        self.staged = copies.staged
        self.stage, self.upload, self.download = copies.stage, copies.upload, copies.download

    def allocate(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> ort.OrtValue:
        """A tensor on the device."""
        return ort.OrtValue.ortvalue_from_shape_and_type(list(shape), dtype.type, self._kind, self._index)

    def bind(self, batch: int, inputs: Mapping[str, ort.OrtValue], outputs: Mapping[str, ort.OrtValue]) -> _Binding:
        """An IOBinding with those tensors."""
        session = self._sessions[batch]
        binding = session.io_binding()
        for name, tensor in inputs.items():
            binding.bind_ortvalue_input(name, tensor)
        for name, tensor in outputs.items():
            binding.bind_ortvalue_output(name, tensor)
        return _Binding(session, binding)

    def run(self, binding: _Binding, graph_id: int) -> None:
        """Blocks until the outputs are there: a run waits for its stream at its end."""
        binding.session.run_with_iobinding(binding.tensors, self._options(graph_id))

    def close(self) -> None:
        """Let go of the sessions; the last slot's ends them."""
        self._sessions = {}
        self._copies.close()

    def _options(self, graph_id: int) -> ort.RunOptions | None:
        if self._kind == "cpu":
            return None
        if graph_id not in self._run_options:
            options = ort.RunOptions()
            options.add_run_config_entry("gpu_graph_id", str(graph_id))
            self._run_options[graph_id] = options
        return self._run_options[graph_id]


def open_session(model: str | bytes, provider: str, options: Mapping[str, str]) -> ort.InferenceSession:
    """A session on a file's name or bytes whose first provider is really the one asked for; blocks.

    Raises:
        ConfigError: It runs on another provider, or not at all.
    """
    config = ort.SessionOptions()
    config.intra_op_num_threads = config.inter_op_num_threads = 1  # for the few nodes left on the CPU
    config.log_severity_level = 3
    config.add_session_config_entry(_RECORD_PLACEMENT, "1")
    try:
        with GATE.shared():
            providers = [(provider, dict(options)), *_BEHIND[provider]]
            session = ort.InferenceSession(model, config, providers=providers, enable_fallback=0)
    except Exception as error:  # onnxruntime raises many unrelated types
        raise ConfigError(f"{provider} cannot be set up: {error}") from error
    found = session.get_providers()[0]
    if found != provider:
        raise ConfigError(f"{provider} cannot be set up, it would run on {found}; see onnxruntime's message above")
    return session


def signature_of(session: ort.InferenceSession, path: Path) -> Signature:
    """What the graph takes and gives. Raises `ConfigError` where a buffer cannot be made for it."""
    image = session.get_inputs()[0]
    outputs = {}
    for tensor in session.get_outputs():
        row = tuple(tensor.shape[1:])
        if tensor.type not in _TYPES or not all(isinstance(length, int) for length in row):
            raise ConfigError(f"{path}: no buffer can be made for output {tensor.name!r}, {tensor.type} {tensor.shape}")
        outputs[tensor.name] = (row, np.dtype(_TYPES[tensor.type]))
    return Signature(image.name, tuple(image.shape[1:]), np.dtype(np.uint8), outputs)


def nodes_by_provider(session: ort.InferenceSession) -> dict[str, int]:
    """How many of the graph's nodes each provider got; empty where this onnxruntime does not tell."""
    try:
        parts = session.get_provider_graph_assignment_info()
    except AttributeError:
        return {}
    return dict(Counter(part.ep_name for part in parts for _ in part.get_nodes()))
