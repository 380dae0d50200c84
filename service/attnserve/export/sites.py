"""Where a network's attention modules are, found by their type.

Owns the search; knows nothing of how the network calls them.
"""

from __future__ import annotations

from torch import nn

from attnserve.export.bam import Bam
from attnserve.export.cbam import Cbam


def attention_modules(network: nn.Module) -> dict[str, Cbam | Bam]:
    """Name -> module, in the order in which they were registered."""
    return {name: module for name, module in network.named_modules() if isinstance(module, Cbam | Bam)}
