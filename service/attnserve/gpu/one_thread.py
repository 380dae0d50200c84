"""Gives a backend a thread of its own for everything that it does: ONNX Runtime keeps a CUDA graph with its thread."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from numpy.typing import NDArray

from attnserve.contract import Outputs
from attnserve.gpu.bound_backend import BoundBackend


class OneThread:
    """A backend whose calls, from whatever threads, are made on one, in turn.

    Args:
        make: Makes the backend, on that thread.
    """

    def __init__(self, make: Callable[[], BoundBackend]) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="cuda-graphs")
        try:
            self._backend = self._thread.submit(make).result()
        except BaseException:
            self._thread.shutdown()
            raise

    @property
    def outputs(self) -> Sequence[str]:
        """Names of the graph's outputs."""
        return self._backend.outputs

    def run(self, images: NDArray[Any], outputs: Sequence[str]) -> Outputs:
        """As the backend's."""
        return self._thread.submit(self._backend.run, images, outputs).result()

    def warm_up(self, buckets: Sequence[int]) -> None:
        """As the backend's."""
        self._thread.submit(self._backend.warm_up, buckets).result()

    def close(self) -> None:
        """As the backend's, and end the thread."""
        self._backend.close()
        self._thread.shutdown()
