"""The gradient of a chosen logit: by torch's autograd, which is the definition, and as a graph of plain operators.

The graph is `torch.func.vjp` traced by `make_fx`, ready for torch's exporter; torch.export alone refuses `vjp`, and
legacy tracing would freeze the gradient of the example. Owns the tracing and the formulas by which backward operators
that ONNX does not have become forward ones: the gradient of a convolution with respect to its input is a transposed
convolution by the same weights, that of a batch normalisation with fixed statistics a multiplication. The batch stays
dynamic; height and width become the example's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._decomp import get_decompositions
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from attnserve.export.tap import Tapped

aten = torch.ops.aten

Inputs = tuple[Tensor | None, None, None]


def _convolution(
    gradient: Tensor,
    x: Tensor,
    weight: Tensor,
    _bias_sizes: Any,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    _output_padding: Any,
    groups: int,
    _mask: Any,
) -> Inputs:
    """With respect to the input only; output_padding restores the rows that a strided convolution did not reach."""
    if transposed:
        raise NotImplementedError("the gradient of a transposed convolution")
    missing = [
        x.shape[2 + i]
        - ((gradient.shape[2 + i] - 1) * stride[i] - 2 * padding[i] + dilation[i] * (weight.shape[2 + i] - 1) + 1)
        for i in range(len(stride))
    ]
    back = aten.convolution(gradient, weight, None, stride, padding, dilation, True, missing, groups)
    return back, None, None


def _batch_norm(
    gradient: Tensor,
    x: Tensor,
    weight: Tensor | None,
    _mean: Tensor,
    variance: Tensor,
    _saved_mean: Any,
    _saved_inverse: Any,
    train: bool,
    eps: float,
    _mask: Any,
) -> Inputs:
    """With respect to the input only, with the running statistics."""
    if train:
        raise NotImplementedError("the gradient of a batch normalisation in training mode")
    scale = torch.rsqrt(variance + eps) * (1 if weight is None else weight)
    return gradient * scale.view(1, -1, *[1] * (x.ndim - 2)), None, None


def _table() -> dict[Any, Callable[..., Any]]:
    known: dict[Any, Callable[..., Any]] = get_decompositions([
        aten.threshold_backward,
        aten.sigmoid_backward,
        aten.native_batch_norm,
        aten.value_selecting_reduction_backward,
    ])  # fmt: skip
    known[aten.convolution_backward.default] = _convolution
    known[aten.native_batch_norm_backward.default] = _batch_norm
    return known


def chosen(logits: Tensor, class_index: Tensor) -> Tensor:
    """(N, classes) and (N,) int64 -> each picture's logit of its class, (N,)."""
    return logits.gather(1, class_index[:, None])[:, 0]


def by_autograd(features: Tensor, logits: Tensor, class_index: Tensor) -> Tensor:
    """The gradient of each picture's chosen logit with respect to its features, which autograd has seen computed."""
    gradient: Tensor = torch.autograd.grad(chosen(logits, class_index).sum(), features)[0]
    return gradient


def by_vjp(tapped: Tapped, images: Tensor, class_index: Tensor) -> tuple[Tensor, Tensor]:
    """Features at the open place and their gradient, by operators that `traced` can follow."""
    features, _ = tapped.observe(images)
    picked, pull, *_ = torch.func.vjp(lambda given: chosen(tapped.logits_from(given, images), class_index), features)
    (gradient,) = pull(torch.ones_like(picked))
    return features, gradient


class Plain(TorchFunctionMode):
    """Within it, an adaptive average pool to one value is a mean, and a linear layer adds its bias afterwards.

    torch gives the pool's result strides of its own by operators that have no gradient in ONNX, and its fused linear
    layer fixes the batch size of a sequence of tokens.
    """

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """What the function gives, by plainer operators."""
        if function is functional.adaptive_avg_pool2d:
            x, size = args
            if size in (1, (1, 1), [1, 1]):
                return x.mean((2, 3), keepdim=True)
        if function is functional.linear and not kwargs and len(args) == 3 and args[2] is not None:
            x, weight, bias = args
            return functional.linear(x, weight) + bias
        return function(*args, **(kwargs or {}))


def traced(function: Callable[..., Any], examples: tuple[Tensor, ...]) -> GraphModule:
    """The function, which may use `torch.func.vjp`, as a graph of plain operators for any batch size."""
    trace = make_fx(function, decomposition_table=_table(), tracing_mode="symbolic", _allow_non_fake_inputs=True)
    with Plain():
        graph = trace(*examples)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph.eval()
