"""Does the exported file compute what the network computes? Every output, on several batches.

Owns the comparison and its tolerance; knows nothing of where files lie.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray

from attnserve.errors import ConfigError
from attnserve.export.servable import Servable
from attnserve.int8_products import exact_int8_products
from attnserve.measure import Classifier

TOLERANCE = 1e-5  # of max(1, max|torch|): float32 sums in another order, and nothing more


def open_session(model: bytes) -> Any:
    """An ONNX Runtime session on the CPU (untyped: the package has no annotations)."""
    options = onnxruntime.SessionOptions()
    exact_int8_products(options)  # as the server's sessions
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def classifier(session: Any, output: str = "probabilities") -> Classifier:
    """The session's probabilities, or its logits, as a function of pictures."""

    def classify(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        scores: NDArray[np.float32] = session.run([output], {"images": images})[0]
        return scores

    return classify


def measure(
    servable: Servable, session: Any, outputs: list[str], batches: Iterable[NDArray[np.uint8]]
) -> dict[str, float]:
    """Per output, the largest |torch - onnx| / max(1, max|torch|) over the batches, each (N, H, W, 3) uint8."""
    worst = dict.fromkeys(outputs, 0.0)
    for batch in batches:
        with torch.inference_mode():
            expected = [tensor.numpy() for tensor in servable.eval()(torch.from_numpy(batch))]
        for name, ours, theirs in zip(outputs, expected, session.run(outputs, {"images": batch}), strict=True):
            worst[name] = max(worst[name], _difference(name, ours, theirs))
    return worst


def check(differences: dict[str, float], tolerance: float = TOLERANCE) -> None:
    """Raise `ConfigError` naming the outputs whose difference is over the tolerance."""
    wrong = {name: value for name, value in differences.items() if not value <= tolerance}  # catches NaN too
    if wrong:
        listed = ", ".join(f"{name} {value:.1e}" for name, value in wrong.items())
        raise ConfigError(f"parity: the exported model differs from the network by more than {tolerance:g}: {listed}")


def _difference(name: str, expected: NDArray[np.float32], got: NDArray[np.float32]) -> float:
    if expected.shape != got.shape:
        raise ConfigError(f"parity: {name} is {got.shape} in the exported model, {expected.shape} in the network")
    difference = float(np.max(np.abs(expected - got)) / max(1.0, float(np.max(np.abs(expected)))))
    return difference if np.isfinite(difference) else float("inf")
