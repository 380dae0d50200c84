"""The ceiling: ONNX Runtime alone on a file, its input lying on the device, nothing copied while it is timed."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from attnserve.cores import available_cores

Row = dict[str, Any]


class Raw:
    """One file on one device, bound once for each batch size: the ceiling.

    Args:
        options: Of the CUDA provider; None on a CPU.
    """

    def __init__(self, path: Path, options: dict[str, str] | None) -> None:
        settings = ort.SessionOptions()
        settings.log_severity_level = 3
        if options is None:
            settings.intra_op_num_threads = available_cores()
        providers = [("CUDAExecutionProvider", options)] if options is not None else []
        self._session = ort.InferenceSession(path, settings, providers=[*providers, "CPUExecutionProvider"])
        assert (options is None) == (self._session.get_providers()[0] == "CPUExecutionProvider"), "it fell back"
        self._kind = "cpu" if options is None else "cuda"
        self._bound: dict[int, tuple[ort.IOBinding, ort.RunOptions, list[ort.OrtValue]]] = {}

    def images_per_s(self, batch: int, seconds: float) -> float:
        """Throughput at that batch size, one run after the other."""
        if batch not in self._bound:
            self._bound[batch] = self._bind(batch)
        binding, options, _ = self._bound[batch]
        runs, started = 0, time.perf_counter()
        while not runs or time.perf_counter() - started < seconds:
            self._session.run_with_iobinding(binding, options)
            runs += 1
        return batch * runs / (time.perf_counter() - started)

    def _bind(self, batch: int) -> tuple[ort.IOBinding, ort.RunOptions, list[ort.OrtValue]]:
        shape = (batch, *self._session.get_inputs()[0].shape[1:])
        noise = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        images = ort.OrtValue.ortvalue_from_numpy(noise, self._kind, 0)
        answer = [batch, *self._session.get_outputs()[0].shape[1:]]
        probabilities = ort.OrtValue.ortvalue_from_shape_and_type(answer, np.float32, self._kind, 0)
        binding = self._session.io_binding()
        binding.bind_ortvalue_input("images", images)
        binding.bind_ortvalue_output("probabilities", probabilities)
        options = ort.RunOptions()
        options.add_run_config_entry("gpu_graph_id", str(len(self._bound) + 1))
        for _ in range(4):  # the third captures a graph
            self._session.run_with_iobinding(binding, options)
        return binding, options, [images, probabilities]


@dataclass(frozen=True)
class Best:
    """The fastest way to run a file."""

    raw: Raw
    batch: int

    def images_per_s(self, seconds: float) -> float:
        """The ceiling now."""
        return self.raw.images_per_s(self.batch, seconds)


def ceilings(path: Path, provider: str, batches: list[int], seconds: float) -> tuple[list[Row], Best]:
    """Each way to run the file at each batch size, and the fastest."""
    ways: dict[str, dict[str, str] | None] = {"plain": None}
    if provider == "cuda":
        common = {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}
        ways = {
            f"{layout}{', graph' if graph else ''}": {
                **common, "prefer_nhwc": str(int(layout == "nhwc")), "enable_cuda_graph": str(int(graph))
            }
            for layout in ("nchw", "nhwc") for graph in (False, True)
        }  # fmt: skip
    rows: list[Row] = []
    best, most = None, 0.0
    for way, options in ways.items():
        raw = Raw(path, options)
        for batch in batches:
            rate = raw.images_per_s(batch, seconds)
            rows.append({"model": path.parent.parent.name, "way": way, "batch": batch, "images/s": rate})
            if rate > most:
                best, most = Best(raw, batch), rate
    assert best is not None
    return rows, best
