"""The networks that export knows, and the one that an architecture describes.

Owns the choice between them; knows nothing of what either computes.
"""

from __future__ import annotations

from typing import TypeAlias

from attnserve.export.architecture import Architecture, Transformer
from attnserve.export.resnet import ResNet
from attnserve.export.vit import ViT

Network: TypeAlias = ResNet | ViT


def build(architecture: Architecture | Transformer) -> Network:
    """The network, with weights of no meaning."""
    return ViT(architecture) if isinstance(architecture, Transformer) else ResNet(architecture)
