"""The one-stream ViT: template and search tokens through the same blocks, candidates eliminated on the way.

Parameter names are those of the published `VisionTransformerCE` (and so of timm's ViT).
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from .. import ops
from ..config import ModelConfig


class Features(NamedTuple):
    """What the backbone hands on.

    tokens (B,T+K,C) after the final LayerNorm, or (B,K,C) where they are the search tokens alone; ids (B,K) cells of
    the search tokens that are left; removed: per eliminating block (B,n) int64, or None where it kept everything;
    scores: per eliminating block the candidates' score (B,S) and the cells (B,S) it belongs to; attn (B,H,N,N) of the
    last block, or None.
    """

    tokens: Tensor
    ids: Tensor
    removed: list[Tensor | None]
    scores: list[tuple[Tensor, Tensor]]
    attn: Tensor | None


class PatchEmbed(nn.Module):
    def __init__(self, cfg: ModelConfig):
        super().__init__()
        self.proj = nn.Conv2d(3, cfg.embed_dim, cfg.patch_size, cfg.patch_size)

    def forward(self, image: Tensor) -> Tensor:
        return self.proj(image).flatten(2).transpose(1, 2)


class Linear(nn.Linear):
    """A linear layer that trains on a CPU by the project's GEMMs."""

    def forward(self, x: Tensor) -> Tensor:
        return ops.linear(x, self.weight, self.bias)


class Attention(nn.Module):
    def __init__(self, cfg: ModelConfig):
        super().__init__()
        self.num_heads = cfg.num_heads
        self.qkv = Linear(cfg.embed_dim, 3 * cfg.embed_dim)
        self.proj = Linear(cfg.embed_dim, cfg.embed_dim)

    def packed(self, x: Tensor) -> Tensor:
        """Query, key and value side by side, (B,N,3,H,D)."""
        return self.qkv(x).unflatten(2, (3, self.num_heads, -1))

    def forward(self, x: Tensor, template_mask: Tensor | None, first: int = 0) -> tuple[Tensor, Tensor | None]:
        """What the tokens from `first` on take from all of them, and the score (None without a mask)."""
        out, score = ops.attention(self.packed(x), template_mask)
        return self.proj(out[:, first:]), score


class Mlp(nn.Module):
    def __init__(self, cfg: ModelConfig):
        super().__init__()
        hidden = int(cfg.embed_dim * cfg.mlp_ratio)
        self.fc1 = Linear(cfg.embed_dim, hidden)
        self.fc2 = Linear(hidden, cfg.embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.fc1(x)
        # What may stand in its place, such as a layer in another dtype, takes what GELU made.
        if self.training and type(self.fc2) is Linear:
            return ops.gelu_linear(hidden, self.fc2.weight, self.fc2.bias)
        return self.fc2(ops.gelu(hidden))


class DropPath(nn.Module):
    """Stochastic depth (arXiv:1603.09382): in training a sample's branch is left out with this probability.

    Kept branches are divided by the share that is kept, so that the mean stays. Processes that train one model together
    draw for the whole batch, the same in each, and `part` says which of how many equal parts of it this one has.
    """

    def __init__(self, probability: float):
        super().__init__()
        self.probability = probability
        self.part = (0, 1)

    def drawn(self, x: Tensor) -> Tensor:
        """What the branch of each sample of x (B,N,C) is multiplied by, the same in all dtypes: (B,1,1)."""
        kept, (number, parts) = 1 - self.probability, self.part
        drawn = x.new_empty(parts, x.shape[0], 1, 1, dtype=torch.float32).bernoulli_(kept)
        return drawn.div_(kept)[number].to(x.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Branches (B,N,C) with some left out."""
        return x * self.drawn(x) if self.training and self.probability > 0 else x

    def residual(self, x: Tensor, branch: Callable[[Tensor], Tensor], first: int = 0) -> Tensor:
        """The tokens (B,N,C) from `first` on, and what the branch makes of x for them.

        On a CPU a sample whose branch is left out does not go through it. A GPU's graphs need all samples.
        """
        rest = x[:, first:]
        if not (x.is_cpu and self.training and self.probability > 0) or torch.compiler.is_compiling():
            return rest + self(branch(x))
        drawn = self.drawn(x)
        kept = drawn.flatten().nonzero().flatten()
        if len(kept) in (0, len(x)):  # with none the weights still get a gradient, zeros
            return rest + branch(x) * drawn
        return rest.index_add(0, kept, (branch(x.index_select(0, kept)) * drawn[kept]).to(rest.dtype))


class Block(nn.Module):
    """A pre-norm transformer block; elimination sits after the attention residual, before the MLP."""

    def __init__(self, cfg: ModelConfig, drop_path: float, keep_ratio: float = 1.0):
        super().__init__()
        self.norm1 = nn.LayerNorm(cfg.embed_dim, eps=1e-6)
        self.attn = Attention(cfg)
        self.norm2 = nn.LayerNorm(cfg.embed_dim, eps=1e-6)
        self.mlp = Mlp(cfg)
        self.drop_path = DropPath(drop_path)
        # The published code keeps the share of candidates that a block leaves here.
        self.keep_ratio_search = keep_ratio

    def forward(
        self, x: Tensor, ids: Tensor, template_mask: Tensor | None = None, keep: int | None = None, first: int = 0
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """Returns tokens, ids, the removed ids (None without elimination) and the score (None without a mask).

        Tokens before `first` are attended to and then left out.
        """
        score = removed = None
        if template_mask is None:
            x = self.drop_path.residual(x, lambda x: self.attn(self.norm1(x), None, first)[0], first)
        else:  # every sample's candidates need a score
            attended, score = self.attn(self.norm1(x), template_mask, first)
            x = x[:, first:] + self.drop_path(attended)
        if score is not None and keep is not None and keep < ids.shape[1]:
            x, ids, removed = ops.eliminate(x, score, ids, keep)
        return self.drop_path.residual(x, lambda x: self.mlp(self.norm2(x))), ids, removed, score


class VisionTransformer(nn.Module):
    def __init__(self, cfg: ModelConfig):
        super().__init__()
        self.cfg = cfg
        template, search = cfg.template_grid**2, cfg.search_grid**2
        self.patch_embed = PatchEmbed(cfg)
        # The pretrained ViT's class token and position table: unused here, part of every published checkpoint.
        self.cls_token = nn.Parameter(torch.zeros(1, 1, cfg.embed_dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, (224 // cfg.patch_size) ** 2 + 1, cfg.embed_dim))
        self.pos_embed_z = nn.Parameter(torch.zeros(1, template, cfg.embed_dim))
        self.pos_embed_x = nn.Parameter(torch.zeros(1, search, cfg.embed_dim))
        # Added to template tokens inside the target's box, and to those outside of it.
        self.box_embed = nn.Parameter(torch.zeros(2, cfg.embed_dim)) if cfg.template_box else None
        rates = [cfg.drop_path * i / max(cfg.depth - 1, 1) for i in range(cfg.depth)]
        ratios = dict(zip(cfg.ce_layers, cfg.ce_keep_ratio, strict=True))
        self.blocks = nn.ModuleList(Block(cfg, rate, ratios.get(i, 1.0)) for i, rate in enumerate(rates))
        # Attributes of the published backbone, for code that reads them.
        self.embed_dim, self.cat_mode = cfg.embed_dim, "direct"
        self.ce_loc = list(cfg.ce_layers) or None
        self.norm = nn.LayerNorm(cfg.embed_dim, eps=1e-6)
        self.apply(_init_weights)

    def embed_template(self, template: Tensor, box: Tensor | None = None) -> Tensor:
        """Template image (B,3,Z,Z) -> tokens (B,T,C) with positions: constant for as long as a target is tracked.

        Args:
            box: (B,4) xywh of the target in units of the template crop, for a network with `template_box`; None where
                it is not known, for `square_box`.
        """
        tokens = self.patch_embed(template) + self.pos_embed_z
        return tokens if self.box_embed is None else tokens + box_embedding(self.box_embed, box, self.cfg)

    def embed_search(self, search: Tensor) -> Tensor:
        """Search image (B,3,X,X) -> tokens (B,S,C) with positions."""
        return self.patch_embed(search) + self.pos_embed_x

    def forward_tokens(
        self,
        z: Tensor,
        x: Tensor,
        template_mask: Tensor | None = None,
        keep_rate: float | None = None,
        return_last_attn: bool = False,
        search_only: bool = False,
    ) -> Features:
        """The features of all tokens, or of the search tokens alone."""
        ratios = dict(zip(self.cfg.ce_layers, self.cfg.ce_keep_ratio, strict=True))
        ids = torch.arange(x.shape[1], dtype=torch.int64, device=x.device).expand(x.shape[0], -1)
        tokens = torch.cat((z, x), dim=1)
        removed: list[Tensor | None] = []
        scores: list[tuple[Tensor, Tensor]] = []
        attn = None
        for index, block in enumerate(cast("list[Block]", self.blocks)):
            last = index == len(self.blocks) - 1
            first = z.shape[1] if search_only and last else 0
            if return_last_attn and last:
                attn = ops.reference.attention_map(block.attn.packed(block.norm1(tokens)))
            if index not in ratios:
                tokens, *_ = block(tokens, ids, first=first)
                continue
            ratio = ratios[index]
            if ratio < 1 and keep_rate is not None:
                ratio = keep_rate
            before = ids
            tokens, ids, gone, score = block(tokens, ids, template_mask, ceil(ratio * ids.shape[1]), first)
            removed.append(gone)
            scores.append((score, before))
        return Features(self.norm(tokens), ids, removed, scores, attn)


def box_coverage(box: Tensor, grid: int) -> Tensor:
    """The share of each template token's patch that the target's box covers: (B,T,1) float32 in [0, 1].

    Args:
        box: (B,4) xywh in units of the template crop.
        grid: patches along each side of the crop, T = grid * grid.
    """
    edges = torch.arange(grid + 1, dtype=torch.float32, device=box.device)
    low, high = box[:, :2, None] * grid, (box[:, :2] + box[:, 2:])[..., None] * grid
    along = (torch.minimum(edges[1:], high) - torch.maximum(edges[:-1], low)).clamp(0, 1).float()  # (B,2,grid)
    return (along[:, 1, :, None] * along[:, 0, None, :]).flatten(1)[..., None]


def square_box(cfg: ModelConfig, device: torch.device | str = "cpu") -> Tensor:
    """A target as wide as high in the middle of its template crop, (1,4) xywh in units of the crop."""
    side = 1 / cfg.template_factor
    return torch.tensor([[(1 - side) / 2, (1 - side) / 2, side, side]], dtype=torch.float32, device=device)


def box_embedding(vectors: Tensor, box: Tensor | None, cfg: ModelConfig) -> Tensor:
    """What the target's box adds to the template's tokens: (B,T,C), or (1,T,C) for None.

    A token inside the box adds the first of the vectors (2,C), one outside of it the second, others a mean by coverage:
    as LoRAT's embedding of foreground and background (arXiv:2403.05231). None stands for `square_box`.
    """
    covered = box_coverage(square_box(cfg, vectors.device) if box is None else box, cfg.template_grid)
    return (covered * vectors[0] + (1 - covered) * vectors[1]).to(vectors.dtype)


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
