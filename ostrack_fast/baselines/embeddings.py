"""OSTrack with the embeddings that the paper tried and left out: of the identity, and of relative positions."""

from __future__ import annotations

from functools import lru_cache
from typing import cast

import torch
from torch import Tensor, nn

from ..config import ModelConfig
from ..model.vit import Attention, Block, VisionTransformer
from .variant import Variant


class IdentityOSTrack(Variant):
    """A learned vector marks all tokens of the template, and another those of the search region."""

    def __init__(self, cfg: ModelConfig):
        super().__init__(cfg)
        self.backbone = _IdentityTransformer(cfg)


class _IdentityTransformer(VisionTransformer):
    def __init__(self, cfg: ModelConfig):
        super().__init__(cfg)
        self.identity = nn.Parameter(torch.empty(2, 1, cfg.embed_dim).normal_(std=0.02))

    def embed_template(self, template: Tensor, box: Tensor | None = None) -> Tensor:
        return super().embed_template(template, box) + self.identity[0]

    def embed_search(self, search: Tensor) -> Tensor:
        return super().embed_search(search) + self.identity[1]


class RelativeOSTrack(Variant):
    """Every block adds to its attention logits a learned number for each head and distance between two tokens.

    Within an image the distance is that of rows and columns, as in the Swin transformer (arXiv:2103.14030); from one
    image to the other there is one number each way. The paper does not say how it did it.
    """

    def __init__(self, cfg: ModelConfig):
        super().__init__(cfg)
        for block in cast("list[Block]", self.backbone.blocks):
            block.attn = RelativeAttention(cfg)


class RelativeAttention(Attention):
    """`Attention` of all template and search tokens, with the numbers of their distances added to the logits."""

    def __init__(self, cfg: ModelConfig):
        super().__init__(cfg)
        self.grids = cfg.template_grid, cfg.search_grid
        entries = sum((2 * grid - 1) ** 2 for grid in self.grids) + 2
        self.distance = nn.Parameter(torch.zeros(cfg.num_heads, entries))
        for layer in (self.qkv, self.proj):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, template_mask: Tensor | None, first: int = 0) -> tuple[Tensor, Tensor | None]:
        q, k, v = self.packed(x).permute(2, 0, 3, 1, 4)
        bias = self.distance[:, relative_index(*self.grids).to(x.device)].to(q.dtype)
        out = nn.functional.scaled_dot_product_attention(q, k, v, bias[None])
        return self.proj(out.transpose(1, 2).flatten(2)[:, first:]), None


@lru_cache(maxsize=8)
def relative_index(template_grid: int, search_grid: int) -> Tensor:
    """Which number belongs to each query and key: (N,N) int64, the template's tokens before the search region's."""
    rows, first = [], 0
    sides = template_grid, search_grid
    across = sum((2 * grid - 1) ** 2 for grid in sides)
    for number, grid in enumerate(sides):
        cell = torch.arange(grid**2, dtype=torch.int64, device="cpu")
        row, column = cell // grid, cell % grid
        apart = (row[:, None] - row + grid - 1) * (2 * grid - 1) + column[:, None] - column + grid - 1 + first
        other = torch.full((grid**2, sides[1 - number] ** 2), across + number, dtype=torch.int64, device="cpu")
        rows.append(torch.cat((apart, other) if number == 0 else (other, apart), dim=1))
        first += (2 * grid - 1) ** 2
    return torch.cat(rows)
