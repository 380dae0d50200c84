"""ViT: An Image is Worth 16x16 Words (Dosovitskiy et al.; ICLR 2021, arXiv:2010.11929), with its attention in the open.

    x = [class token; patches W_p] + position embedding
    x = x + MSA(LN(x));  x = x + MLP(LN(x))        in every block
    logits = head(LN(x)[class token])

Owns the network and the names of its parts, which are timm's, so that its weights load unchanged. Attention is computed
step by step, since fused kernels never hold the probabilities that are shown here:

    blocks.N   the class token's row of block N's attention, averaged over heads, at the patches
    rollout    Attention Rollout (Abnar, Zuidema; ACL 2020, arXiv:2005.00928): the class token's row of
               prod_N rownorm(A_N + I), A_N the attention of block N averaged over heads, at the patches

Both are shares: each value is in 0..1, and a map adds up to at most 1, as the class token keeps a share for itself.
Knows nothing of pictures, training or files.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from attnserve.export.architecture import Transformer

EPSILON = 1e-6  # of every LayerNorm, in the authors' code, torchvision and timm
ROLLOUT = "rollout"


class Evidence(NamedTuple):
    """Everything one forward pass computed that explains it."""

    logits: Tensor  # (N, num_classes)
    maps: dict[str, Tensor]  # (N, grid, grid) by site name, in the order of computation

    def outputs(self) -> list[Tensor]:
        """What the served graph gives besides the logits, in order."""
        return list(self.maps.values())


class SelfAttention(nn.Module):
    """Multi-head self-attention: softmax(q k^T / sqrt(width / heads)) v in every head, then a linear map."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, T, width) -> the same shape, and the attention averaged over heads, (N, T, T), whose rows add up to 1."""
        count, tokens, width = x.shape
        parts = self.qkv(x).reshape(count, tokens, 3, self.heads, width // self.heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4).unbind(0)  # each (N, heads, T, width / heads)
        weights = torch.softmax((q * q.shape[3] ** -0.5) @ k.transpose(2, 3), dim=3)  # (N, heads, T, T)
        return self.proj((weights @ v).transpose(1, 2).reshape(count, tokens, width)), weights.mean(1)


class Block(nn.Module):
    """One encoder block, normalised before each of its halves."""

    def __init__(self, width: int, heads: int, mlp_width: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, EPSILON)
        self.attn = SelfAttention(width, heads)
        self.norm2 = nn.LayerNorm(width, EPSILON)
        self.mlp = nn.Sequential()
        self.mlp.add_module("fc1", nn.Linear(width, mlp_width))
        self.mlp.add_module("act", nn.GELU())
        self.mlp.add_module("fc2", nn.Linear(mlp_width, width))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, T, width) -> the same shape, and the attention averaged over heads, (N, T, T)."""
        change, attention = self.attn(self.norm1(x))
        x = x + change
        return x + self.mlp(self.norm2(x)), attention


class ViT(nn.Module):
    """The network of a `Transformer`: (N, 3, H, W) float32, normalised -> (N, num_classes) logits."""

    def __init__(self, architecture: Transformer) -> None:
        super().__init__()
        width, self.grid = architecture.width, architecture.grid
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, architecture.patch, architecture.patch)})
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + self.grid**2, width))
        blocks = (Block(width, architecture.heads, architecture.mlp_width) for _ in range(architecture.depth))
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(width, EPSILON)
        self.head = nn.Linear(width, architecture.num_classes)

    @property
    def conv1(self) -> nn.Conv2d:
        """The first convolution, into which export folds the normalisation's scale."""
        return cast(nn.Conv2d, self.patch_embed["proj"])

    def evidence(self, x: Tensor) -> Evidence:
        """Logits, every block's row and the rollout, all from one pass."""
        patches = self.conv1(x).flatten(2).transpose(1, 2)  # (N, grid^2, width)
        x = torch.cat([self.cls_token.expand(patches.shape[0], -1, -1), patches], dim=1) + self.pos_embed
        attentions: list[Tensor] = []
        for block in self.blocks:
            x, attention = block(x)
            attentions.append(attention)
        shares = [*(attention[:, 0] for attention in attentions), rollout(attentions)]  # each (N, T)
        maps = [share[:, 1:].reshape(x.shape[0], self.grid, self.grid) for share in shares]
        return Evidence(cast(Tensor, self.head(self.norm(x)[:, 0])), dict(zip(self.sites, maps, strict=True)))

    @property
    def sites(self) -> list[str]:
        """Names of what `evidence` shows besides the logits."""
        return [*(f"blocks.{i}" for i in range(len(self.blocks))), ROLLOUT]

    def place(self, layer: str) -> str:
        """The module whose output is meant by a block's name: the tokens that its attention is given."""
        return f"{layer}.norm1"

    def forward(self, x: Tensor) -> Tensor:
        """The logits alone."""
        return self.evidence(x).logits


def rollout(attentions: Sequence[Tensor]) -> Tensor:
    """The class token's row of prod_N rownorm(A_N + I), (N, T), from each block's attention in order, (N, T, T) each.

    A row of A adds up to 1, so rownorm halves A + I; and one row takes products of a vector with matrices only.
    """
    *earlier, last = attentions
    row = (last[:, :1] + torch.eye(1, last.shape[2])) / 2
    for attention in reversed(earlier):
        row = (row @ attention + row) / 2  # (N, 1, T)
    return row[:, 0]
