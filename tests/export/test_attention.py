"""The modules against the papers' equations, written out a second time in numpy."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from attnserve.export.bam import Bam
from attnserve.export.cbam import Cbam

Array = NDArray[Any]


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def relu(x: Array) -> Array:
    return np.maximum(x, 0)


def convolve(x: Array, weight: Array, dilation: int = 1) -> Array:
    """(N, C, H, W) with (O, C, k, k) -> (N, O, H, W), zero padded; by the definition of the sum."""
    kernel, (height, width) = weight.shape[2], x.shape[2:]
    pad = dilation * (kernel // 2)
    padded = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    out = np.zeros((x.shape[0], weight.shape[0], height, width))
    for i, j in itertools.product(range(kernel), repeat=2):
        window = padded[:, :, i * dilation : i * dilation + height, j * dilation : j * dilation + width]
        out += np.einsum("nchw,oc->nohw", window, weight[:, :, i, j])
    return out


def weights_of(module: torch.nn.Module) -> dict[str, Array]:
    return {key: value.double().numpy() for key, value in module.state_dict().items()}


def normalise(x: Array, weights: dict[str, Array], prefix: str) -> Array:
    shape = (1, -1) + (1,) * (x.ndim - 2)
    mean, var = (weights[f"{prefix}.running_{name}"].reshape(shape) for name in ("mean", "var"))
    scale, shift = (weights[f"{prefix}.{name}"].reshape(shape) for name in ("weight", "bias"))
    return (x - mean) / np.sqrt(var + 1e-5) * scale + shift


def features(channels: int) -> torch.Tensor:
    """Signed, uneven, not square: nothing that a symmetric mistake could hide behind."""
    x = torch.randn(2, channels, 7, 5, generator=torch.Generator().manual_seed(3))
    return x * torch.linspace(0.2, 3, channels).view(1, -1, 1, 1) + torch.linspace(-1, 1, 5)


@pytest.mark.parametrize(("reduction", "kernel", "pooling"), [(4, 7, "avg+max"), (16, 3, "avg"), (64, 7, "max")])
def test_cbam_computes_the_papers_equations(reduction: int, kernel: int, pooling: str) -> None:
    torch.manual_seed(1)
    module, x = Cbam(32, reduction, kernel, pooling).eval(), features(32)
    w, f = weights_of(module), x.double().numpy()

    pooled = {"avg": f.mean((2, 3)), "max": f.max((2, 3))}
    mlp = sum(relu(pooled[name] @ w["channel.mlp.0.weight"].T) for name in pooling.split("+"))
    channel = sigmoid(mlp @ w["channel.mlp.2.weight"].T)
    refined = f * channel[:, :, None, None]
    stacked = np.stack([refined.mean(1), refined.max(1)], axis=1)
    spatial = sigmoid(convolve(stacked, w["spatial.conv.weight"]))[:, 0]

    maps = module.attention(x)
    np.testing.assert_allclose(maps.channel.detach(), channel, atol=1e-6)
    np.testing.assert_allclose(maps.spatial.detach(), spatial, atol=1e-6)
    np.testing.assert_allclose(module(x).detach(), refined * spatial[:, None], atol=1e-5)


@pytest.mark.parametrize(("reduction", "dilation", "combine"), [(4, 1, "add"), (16, 2, "mul"), (64, 4, "add")])
def test_bam_computes_the_papers_equations(
    randomise: Callable[..., Any], reduction: int, dilation: int, combine: str
) -> None:
    torch.manual_seed(2)
    module, x = randomise(Bam(32, reduction, dilation, combine)), features(32)
    w, f = weights_of(module), x.double().numpy()

    hidden = f.mean((2, 3)) @ w["channel.0.weight"].T + w["channel.0.bias"]
    hidden = relu(normalise(hidden, w, "channel.1"))
    channel = normalise(hidden @ w["channel.3.weight"].T + w["channel.3.bias"], w, "channel.4")

    s = f
    for i, d in ((0, 1), (3, dilation), (6, dilation)):
        s = convolve(s, w[f"spatial.{i}.weight"], d) + w[f"spatial.{i}.bias"].reshape(1, -1, 1, 1)
        s = relu(normalise(s, w, f"spatial.{i + 1}"))
    s = convolve(s, w["spatial.9.weight"]) + w["spatial.9.bias"].reshape(1, -1, 1, 1)
    spatial = normalise(s, w, "spatial.10")[:, 0]

    maps = module.attention(x)
    np.testing.assert_allclose(maps.channel.detach(), channel, atol=1e-5)
    np.testing.assert_allclose(maps.spatial.detach(), spatial, atol=1e-5)
    pair = channel[:, :, None, None], spatial[:, None]
    gate = sigmoid(pair[0] + pair[1] if combine == "add" else pair[0] * pair[1])
    np.testing.assert_allclose(module(x).detach(), f + f * gate, atol=1e-5)


def test_the_hidden_width_is_never_less_than_one() -> None:
    assert Cbam(8, reduction=16).channel.mlp[0].weight.shape == (1, 8)
    assert Bam(8, reduction=16).channel[0].weight.shape == (1, 8)
