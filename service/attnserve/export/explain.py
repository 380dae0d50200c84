"""The files under `explain/`: Grad-CAM and its kin as graphs of their own, from a layer's features and a class.

Owns which layers there are, the graphs' inputs and outputs, and their parity with torch's autograd; the formulas are
`cams`', the gradient `backward`'s. Knows nothing of the rest of an entry.

    last.onnx     features (batch, C, h, w) float32 as model.onnx gives them, class_index (batch,) int64
    <layer>.onnx  images (batch, H, W, 3) uint8 as model.onnx takes them, class_index (batch,) int64
    both          one output (batch, h, w) float32 for each of `cams.METHODS`, by its name

The score is the class's logit, so the temperature of the probabilities changes nothing. `last` needs no gradient in its
graph: behind the last features there is a mean and a linear layer, so dy/dA is W[class] / (h w) at every position, and
the file holds W alone. The file of an earlier layer holds the whole network and its true gradient. A transformer that
classifies by its class token has files of its blocks only, whose features are the tokens of the patches on their grid.
All stay float32 whatever the precision of model.onnx is: `last` explains the features that model.onnx computes, in its
precision, the others the exact network.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from attnserve.card import LAST, Explanation, Preprocessing, Site
from attnserve.errors import ConfigError
from attnserve.export import cams, onnx_writer, parity
from attnserve.export.backward import by_autograd, by_vjp, traced
from attnserve.export.network import Network
from attnserve.export.resnet import STAGES, ResNet
from attnserve.export.servable import Servable
from attnserve.export.tap import Tapped
from attnserve.export.vit import ROLLOUT, ViT

FOLDER = "explain"
HEAD_TOLERANCE = 1e-4  # of max(1, max|logits|): float32 sums in another order
TOLERANCES = {LAST: 1e-5}  # of the largest value: float32 sums in another order
EARLIER_TOLERANCE = 1e-3  # more: a value within rounding of 0 may take the other side of a relu, whose slope jumps

Case = tuple[dict[str, Tensor], Tensor, Tensor]
"""A graph's inputs by name, and the features and the gradient that belong to them."""


class LastMaps(nn.Module):
    """The maps of the last features in closed form."""

    weight: Tensor

    def __init__(self, head: nn.Linear, positions: int) -> None:
        super().__init__()
        self.register_buffer("weight", head.weight.detach() / positions)  # (classes, C)

    def forward(self, features: Tensor, class_index: Tensor) -> tuple[Tensor, ...]:
        """(N, C, h, w) and (N,) -> the maps."""
        return cams.maps(features, functional.embedding(class_index, self.weight)[:, :, None, None])


def opened(servable: Servable, view: Preprocessing, sites: Sequence[Site], layers: Sequence[str]) -> list[Tapped]:
    """The network opened at each of the layers.

    Raises:
        ConfigError: There is no such layer, or the network does not run it exactly once.
    """
    pooled = not isinstance(servable.network, ViT)
    known = [*(STAGES if pooled else ()), *(site.name for site in sites if site.kind != ROLLOUT)]
    for layer in layers:
        if layer not in known:
            note = f" ({LAST} is always written)" if pooled else ""
            raise ConfigError(f"explain-layers: no {layer!r}; there are {', '.join(known)}{note}")
        if not re.fullmatch(r"[A-Za-z0-9._-]+", layer):
            raise ConfigError(f"explain-layers: {layer!r} cannot name a file")
    if len(set(layers)) != len(layers):
        raise ConfigError("explain-layers: some stand twice")
    places = [Tapped(servable, layer) for layer in layers]
    for tapped in places:
        with torch.inference_mode():
            tapped.observe(_blank(view))
    return places


def write(
    folder: Path,
    servable: Servable,
    view: Preprocessing,
    places: Sequence[Tapped],
    batches: Sequence[NDArray[np.uint8]],
) -> tuple[Explanation, ...]:
    """Write the files of the last features and of the places into the version's folder, each once it is seen right.

    A transformer that classifies by its class token has no closed form for its last features, and no file of them.

    Args:
        batches: Pictures, (N, H, W, 3) uint8 each, on which parity is checked.

    Raises:
        ConfigError: A file would compute something else than torch's autograd, or its gradient cannot be exported.
    """
    network, found = servable.network, []
    if not isinstance(network, ViT):
        model = _last_model(servable, network, view)
        found.append(_write(folder, LAST, model, _last_cases(servable, batches), network, view))
    for tapped in places:
        model = _earlier_model(tapped, view)
        found.append(_write(folder, tapped.layer, model, _earlier_cases(tapped, batches), network, view))
    return tuple(found)


def check_head(network: ResNet, view: Preprocessing) -> None:
    """`features` explains the logits only where nothing but the mean and the linear layer lie between them."""
    noise = torch.randn(2, 3, view.height, view.width, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        evidence = network.evidence(noise)
        difference = float((network.fc(evidence.features.mean((2, 3))) - evidence.logits).abs().max())
    if not difference <= HEAD_TOLERANCE * max(1.0, float(evidence.logits.abs().max())):
        raise ConfigError("the logits are not `fc` of the mean of what `avgpool` is given")


def _last_model(servable: Servable, network: ResNet, view: Preprocessing) -> bytes:
    check_head(network, view)
    with torch.inference_mode():
        shape = servable(_blank(view))[-1].shape
    module = LastMaps(network.fc, shape[2] * shape[3])
    examples = {"features": torch.zeros(2, *shape[1:]), "class_index": torch.zeros(2, dtype=torch.int64)}
    return onnx_writer.write(module, examples, cams.METHODS)


def _earlier_model(tapped: Tapped, view: Preprocessing) -> bytes:
    def compute(images: Tensor, class_index: Tensor) -> tuple[Tensor, ...]:
        sized = images.reshape(images.shape[0], view.height, view.width, 3)  # or tracing reasons about every size
        return cams.maps(*by_vjp(tapped, sized, class_index))

    images = _blank(view, 2)
    examples = {"images": images, "class_index": torch.zeros(2, dtype=torch.int64)}
    tapped.requires_grad_(False)
    try:
        return onnx_writer.write(traced(compute, tuple(examples.values())), examples, cams.METHODS)
    except (RuntimeError, NotImplementedError) as error:
        raise ConfigError(f"{tapped.layer}: its gradient cannot be exported: {error}") from error
    finally:
        tapped.requires_grad_(True)


def _last_cases(servable: Servable, batches: Iterable[NDArray[np.uint8]]) -> Iterator[Case]:
    servable = copy.deepcopy(servable).requires_grad_(True)  # a user's network may be frozen, and is left alone
    for batch in batches:
        with torch.enable_grad():
            _, logits, *_, features = servable(torch.from_numpy(batch))
            classes = _classes(logits)
            gradient = by_autograd(features, logits, classes)
        features = features.detach()
        yield {"features": features, "class_index": classes}, features, gradient


def _earlier_cases(tapped: Tapped, batches: Iterable[NDArray[np.uint8]]) -> Iterator[Case]:
    for batch in batches:
        images = torch.from_numpy(batch)
        with torch.enable_grad():
            features, logits = tapped.observe(images)
            classes = _classes(logits)
            gradient = by_autograd(features, logits, classes)
        yield {"images": images, "class_index": classes}, features.detach(), gradient


def _classes(logits: Tensor) -> Tensor:
    """Another class for each picture of a batch, as far as there are as many; the last one for a picture alone."""
    count, classes = logits.shape
    return (torch.arange(count) * max(1, classes // count) + classes - 1) % classes


def _write(
    folder: Path, layer: str, model: bytes, cases: Iterable[Case], network: Network, view: Preprocessing
) -> Explanation:
    """Check one graph and write it."""
    session, worst = parity.open_session(model), dict.fromkeys(cams.METHODS, 0.0)
    for inputs, features, gradient in cases:
        outputs = session.run(list(cams.METHODS), {name: value.numpy() for name, value in inputs.items()})
        for method, expected, got in zip(cams.METHODS, cams.signed_sums(features, gradient), outputs, strict=True):
            worst[method] = max(worst[method], _difference(expected.numpy(), got))
    tolerance = TOLERANCES.get(layer, EARLIER_TOLERANCE)
    parity.check({f"{layer} {method}": value for method, value in worst.items()}, tolerance)
    file = f"{FOLDER}/{layer}.onnx"
    (folder / FOLDER).mkdir(exist_ok=True)
    (folder / file).write_bytes(model)
    _, channels, height, width = features.shape
    ratio = view.height / height  # a patch's side, or the product of a ResNet's halvings, which round up
    stride = round(ratio) if isinstance(network, ViT) else 2 ** round(np.log2(ratio))
    return Explanation(layer, file, stride, height, width, channels, cams.METHODS, worst)


def _difference(signed: NDArray[np.float32], got: NDArray[np.float32]) -> float:
    """Largest |relu(signed) - got| as a share of the largest |signed|: a map that is all 0 still has a scale."""
    if signed.shape != got.shape:
        return float("inf")
    scale = max(float(np.abs(signed).max()), float(np.finfo(np.float32).tiny))
    difference = float(np.abs(np.maximum(signed, 0) - got).max()) / scale
    return difference if np.isfinite(difference) else float("inf")


def _blank(view: Preprocessing, count: int = 1) -> Tensor:
    return torch.zeros(count, view.height, view.width, 3, dtype=torch.uint8)
