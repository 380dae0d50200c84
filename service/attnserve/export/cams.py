"""Class activation maps from a feature map and the gradient of a class's score with respect to it.

Owns the formulas. With A (N, C, h, w) the features, y the chosen class's logit (before the softmax: the temperature of
the probabilities does not matter), g = dy/dA, and Z = h w:

    gradcam          relu(sum_c a_c A_c), a_c = 1/Z sum_ij g_cij    Selvaraju et al., ICCV 2017, arXiv:1610.02391
    counterfactual   the same of -g: what speaks against the class  the same paper, "Counterfactual Explanations"
    hirescam         relu(sum_c g_c A_c)                            Draelos, Carin, 2020, arXiv:2011.08891
    layercam         relu(sum_c relu(g_c) A_c)                      Jiang et al., IEEE TIP 30, 2021
    gradcam++        relu(sum_c a_c A_c)                            Chattopadhay et al., WACV 2018, arXiv:1710.11063
                     with a_c = sum_ij relu(g_cij) / (2 + S_c relu(g_cij))

Raw values, not normalised and not resized. Grad-CAM++'s weights g^2 / (2 g^2 + S g^3) are written without the common
factor, so they need no epsilon (pytorch-grad-cam adds 1e-6, which shows where g^2 is no larger); S_c is the sum over
positions of A_c, of its positive part, which after a ReLU is all of it and before one keeps the denominator above 2.
Knows nothing of where g comes from.
"""

from __future__ import annotations

import torch
from torch import Tensor

METHODS = ("gradcam", "counterfactual", "hirescam", "layercam", "gradcam++")
"""Names of the maps, which are the names of the graphs' outputs, in their order."""


def signed_sums(features: Tensor, gradient: Tensor) -> tuple[Tensor, ...]:
    """The maps of `METHODS` before their last relu, each (N, h, w).

    Args:
        features: (N, C, h, w).
        gradient: (N, C, h, w), or (N, C, 1, 1) where it is the same at every position.
    """
    positions = features.shape[2] * features.shape[3]
    rising = torch.relu(gradient)
    gradcam = _weighted(features, gradient.mean((2, 3)))
    strength = torch.relu(features).sum((2, 3), keepdim=True)
    plusplus = (rising / (2 + strength * rising)).mean((2, 3)) * positions
    return (
        gradcam,
        -gradcam,
        (gradient * features).sum(1),
        (rising * features).sum(1),
        _weighted(features, plusplus),
    )


def maps(features: Tensor, gradient: Tensor) -> tuple[Tensor, ...]:
    """The maps of `METHODS`, each (N, h, w), never negative."""
    return tuple(torch.relu(signed) for signed in signed_sums(features, gradient))


def _weighted(features: Tensor, weights: Tensor) -> Tensor:
    """Sum over channels of features times one weight per channel, (N, C)."""
    return (weights[:, :, None, None] * features).sum(1)
