"""Copies through page-locked host memory on a stream of their own, by cuda-bindings; knows no ONNX Runtime.

Optional: `available` says whether cuda-bindings is installed. Unlike ONNX Runtime's own copies they let other Python
threads go on meanwhile, and the GPU reads the memory without a detour.
"""

from __future__ import annotations

import ctypes
import importlib.util
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray


def available() -> bool:
    """Whether cuda-bindings can be imported."""
    return importlib.util.find_spec("cuda") is not None and importlib.util.find_spec("cuda.bindings") is not None


class PinnedCopies:
    """One slot's copies; see `bound_backend.Device` for the functions. Each may raise `RuntimeError` with CUDA's error.

    Args:
        index: CUDA's device.
        runtime: `cuda.bindings.runtime`, for tests; imported where it is None.
    """

    staged = True

    def __init__(self, index: int, runtime: Any = None) -> None:
        self._runtime = _bindings() if runtime is None else runtime
        self._index = index
        self._blocks: list[int] = []
        self._call(self._runtime.cudaSetDevice, index)
        self._stream = self._call(self._runtime.cudaStreamCreateWithFlags, self._runtime.cudaStreamNonBlocking)
        self._to_device = self._runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._to_host = self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost

    def stage(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """Page-locked memory, freed by `close`."""
        size = math.prod(shape) * dtype.itemsize
        self._call(self._runtime.cudaSetDevice, self._index)
        block = int(self._call(self._runtime.cudaHostAlloc, size, self._runtime.cudaHostAllocDefault))
        self._blocks.append(block)
        array = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(block))
        array[:] = 0
        return array.view(dtype).reshape(shape)

    def upload(self, host: NDArray[Any], tensor: Any) -> None:
        """Blocks until the copy has arrived."""
        self._copy(tensor.data_ptr(), host.ctypes.data, host.nbytes, self._to_device)

    def download(self, tensor: Any, rows: int) -> NDArray[Any]:
        """Only the rows asked for are copied."""
        shape = tensor.shape()
        host = np.empty((rows, *shape[1:]), _dtype_of(tensor))
        self._copy(host.ctypes.data, tensor.data_ptr(), host.nbytes, self._to_host)
        return host

    def close(self) -> None:
        """Free the stream and all staged memory."""
        self._call(self._runtime.cudaSetDevice, self._index)
        for block in self._blocks:
            self._call(self._runtime.cudaFreeHost, block)
        self._blocks.clear()
        self._call(self._runtime.cudaStreamDestroy, self._stream)

    def _copy(self, target: int, source: int, size: int, kind: Any) -> None:
        self._call(self._runtime.cudaSetDevice, self._index)  # a thread begins on device 0
        self._call(self._runtime.cudaMemcpyAsync, target, source, size, kind, self._stream)
        self._call(self._runtime.cudaStreamSynchronize, self._stream)

    def _call(self, function: Any, *arguments: Any) -> Any:
        """The result of a runtime function, each of which returns its status first."""
        status, *results = function(*arguments)
        if int(status):
            raise RuntimeError(f"{function.__name__}: {status!r}")
        return results[0] if results else None


def _bindings() -> Any:
    from cuda.bindings import runtime  # an optional dependency

    return runtime


def _dtype_of(tensor: Any) -> np.dtype[Any]:
    names = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int64)": np.int64}
    return np.dtype(names[tensor.data_type()])
