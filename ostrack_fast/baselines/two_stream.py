"""Two-stream trackers on OSTrack's parts: one ViT for each image alone, and a fusion of both results behind it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn

from ..config import ModelConfig
from ..model.head import CenterHead
from ..model.vit import Block, Features, Mlp
from .variant import Variant


class CrossBlock(nn.Module):
    """A pre-norm transformer block whose queries (B,N,C) attend to a memory (B,M,C)."""

    def __init__(self, cfg: ModelConfig):
        super().__init__()
        width = cfg.embed_dim
        self.num_heads = cfg.num_heads
        self.norm1, self.norm_memory, self.norm2 = (nn.LayerNorm(width, eps=1e-6) for _ in range(3))
        self.q, self.kv, self.proj = nn.Linear(width, width), nn.Linear(width, 2 * width), nn.Linear(width, width)
        self.mlp = Mlp(cfg)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        q = self.q(self.norm1(x)).unflatten(2, (self.num_heads, -1)).transpose(1, 2)
        k, v = self.kv(self.norm_memory(memory)).unflatten(2, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        attended = nn.functional.scaled_dot_product_attention(q, k, v)
        x = x + self.proj(attended.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


class TwoStream(Variant, ABC):
    """Template and search region each through the ViT alone, then `fuse`, then the shared head.

    The two streams share their weights, as STARK's and SwinTrack's do. The template's features do not depend on the
    search region, so a tracker computes them once for each target.

    Args:
        cfg: of the ViT and the crops, as OSTrack's.
        fusion: of the blocks behind the streams, see `fusion_config`.
    """

    def __init__(self, cfg: ModelConfig, fusion: ModelConfig):
        super().__init__(cfg)
        width = fusion.embed_dim
        self.bottleneck = nn.Linear(cfg.embed_dim, width)
        self.encoder = nn.ModuleList(Block(fusion, 0.0) for _ in range(fusion.depth))
        self.encoder_norm = nn.LayerNorm(width, eps=1e-6)
        self.box_head = CenterHead(replace(cfg, embed_dim=width, num_heads=1))

    @abstractmethod
    def fuse(self, template: Tensor, search: Tensor) -> Tensor:
        """Encoded tokens (B,T,W) and (B,S,W) -> the search region's (B,S,W) that the head reads."""

    def stream(self, tokens: Tensor) -> Tensor:
        """One image's tokens (B,N,C) through the ViT, with its final LayerNorm."""
        ids = torch.arange(tokens.shape[1], dtype=torch.int64, device=tokens.device).expand(len(tokens), -1)
        for block in cast("list[Block]", self.backbone.blocks):
            tokens, *_ = block(tokens, ids)
        return self.backbone.norm(tokens)

    def embed_template(self, template: Tensor, box: Tensor | None = None) -> Tensor:
        """The template's features (B,T,C), behind its stream."""
        return self.stream(super().embed_template(template, box))

    def stream_search(self, search: Tensor) -> Tensor:
        """The search region's features (B,S,C), behind its stream."""
        return self.stream(self.backbone.embed_search(search))

    def forward_tokens(
        self,
        z: Tensor,
        search: Tensor,
        ce_template_mask: Tensor | None = None,
        ce_keep_rate: float | None = None,
        return_last_attn: bool = False,
        search_only: bool = False,
    ) -> tuple[Features, Tensor, tuple[Tensor, Tensor, Tensor]]:
        """As `OSTrack.forward_tokens`; nothing is eliminated, and no attention is returned."""
        rows = z.shape[1]
        x = self.bottleneck(torch.cat((z, self.stream_search(search)), dim=1))
        ids = torch.arange(x.shape[1], dtype=torch.int64, device=x.device).expand(len(x), -1)
        for block in cast("list[Block]", self.encoder):
            x, *_ = block(x, ids)
        x = self.encoder_norm(x)
        fused = self.fuse(x[:, :rows], x[:, rows:])
        grid = self.cfg.search_grid
        feature_map = fused.transpose(1, 2).unflatten(2, (grid, grid)).contiguous()
        score, size, offset = self.box_head.get_score_map(feature_map)
        tokens = fused if search_only else torch.cat((x[:, :rows], fused), dim=1)
        features = Features(tokens, ids[:, : grid**2], [], [], None)
        return features, feature_map, (score, size, offset.to(score.dtype))


def fusion_config(cfg: ModelConfig, width: int, head_width: int, depth: int, mlp_ratio: float) -> ModelConfig:
    """The blocks behind the streams of a ViT: sizes are those behind a ViT-B, and shrink with width and depth.

    Args:
        width, depth: behind a ViT of width 768 and 12 blocks.
        head_width: channels of each attention head, which stay.
    """
    own = max(head_width, cfg.embed_dim * width // 768 // head_width * head_width)
    return replace(
        cfg,
        embed_dim=own,
        num_heads=own // head_width,
        depth=max(1, cfg.depth * depth // 12),
        mlp_ratio=mlp_ratio,
        ce_layers=(),
        ce_keep_ratio=(),
    )


def init_linear(module: nn.Module) -> None:
    """Start linear layers as the ViT's own are started."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
