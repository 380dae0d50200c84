"""The other engine for CPUs: OpenVINO, an optional dependency. The only module that imports it.

Measured on one core with AVX-512 VNNI and BF16, CPU time against ONNX Runtime on the same file: a ResNet-50 with CBAM
at 224 pixels takes half in bfloat16, 3 to 8 % less in int8 and in float32; nets of a few dozen channels take longer.
One compiled model serves all workers: each has an inference request of its own, and OpenVINO as many streams.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attnserve.contract import Outputs
from attnserve.errors import ConfigError
from attnserve.served_graph import image_size, warm_up

OPENVINO = "OpenVINO"
_ONNX_TYPES = {"u8": "tensor(uint8)", "f32": "tensor(float)", "f16": "tensor(float16)", "i64": "tensor(int64)"}


class OpenVinoModel:
    """model.onnx compiled for the CPU; raises `ConfigError` where that cannot be, or OpenVINO is not installed.

    Args:
        path: The model file; input `images` UINT8 (N, H, W, 3).
        workers: How many backends will run at once.
        threads: That share the work of one run.
        precision: `f32`, or `bf16` for what the file has in float32. An int8 file computes in int8 either way.
    """

    def __init__(self, path: Path, workers: int, threads: int, precision: str) -> None:
        openvino = _imported()
        core = openvino.Core()
        if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise ConfigError("openvino_precision bf16: this CPU computes no bfloat16")
        settings = {
            "NUM_STREAMS": workers,
            "INFERENCE_NUM_THREADS": workers * threads,
            "INFERENCE_PRECISION_HINT": precision,
            "ENABLE_CPU_PINNING": False,  # other processes and the transport need the same cores
        }
        try:
            self._compiled = core.compile_model(path, "CPU", settings)
        except RuntimeError as error:  # which it raises for everything
            raise ConfigError(f"{path}: OpenVINO cannot load it: {error}") from error
        self._tensor = openvino.Tensor
        self.provider = OPENVINO
        self.output_types = {port.any_name: _type_of(port) for port in self._compiled.outputs}
        self.output_shapes = {port.any_name: _shape_of(port) for port in self._compiled.outputs}
        inputs = [(port.any_name, _type_of(port), _shape_of(port)) for port in self._compiled.inputs]
        self.height, self.width = image_size(path, inputs)

    def backend(self) -> OpenVinoBackend:
        """One for a worker."""
        return OpenVinoBackend(self._compiled.create_infer_request(), self._tensor, list(self.output_types))

    def warm_up(self, batch_sizes: Sequence[int]) -> dict[int, float]:
        """Run at each batch size; see `served_graph.warm_up`. A size compiles once for all backends."""
        backend = self.backend()
        return warm_up(backend.run, backend.outputs, (self.height, self.width), batch_sizes)


class OpenVinoBackend:
    """Runs a compiled model, for one thread at a time.

    Args:
        request: Its inference request.
        tensor: OpenVINO's class of tensors.
        outputs: Names of the graph's outputs in their order.
    """

    def __init__(self, request: Any, tensor: Any, outputs: list[str]) -> None:
        self._request = request
        self._tensor = tensor
        self._outputs = outputs

    @property
    def outputs(self) -> Sequence[str]:
        """Names of the graph's outputs."""
        return self._outputs

    def run(self, images: NDArray[np.uint8], outputs: Sequence[str]) -> Outputs:
        """Compute the named outputs for images (N, H, W, 3) uint8; blocks.

        Pictures are copied only where they lie apart or may not be written to, which OpenVINO insists on. The outputs
        are always, as the next run writes over the request's memory.
        """
        shared = np.require(images, requirements=["C", "W"])  # kept until the end: the tensor only points to it
        self._request.set_input_tensor(self._tensor(shared, shared_memory=True))
        self._request.infer()
        ports = (self._outputs.index(name) for name in outputs)
        return {
            name: self._request.get_output_tensor(port).data.copy() for name, port in zip(outputs, ports, strict=True)
        }


def _imported() -> Any:
    try:
        import openvino  # an optional dependency, half a second to import
    except ImportError as error:
        raise ConfigError(
            f"provider openvino needs the extra openvino: pip install 'attnserve[openvino]' ({error})"
        ) from error
    return openvino


def _type_of(port: Any) -> str:
    name: str = port.element_type.to_string()
    return _ONNX_TYPES.get(name, name)


def _shape_of(port: Any) -> tuple[int | str, ...]:
    """As ONNX Runtime says it: a free axis by a name."""
    return tuple("batch" if axis.is_dynamic else axis.get_length() for axis in port.partial_shape)
