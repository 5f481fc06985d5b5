"""attention with the score of the search tokens, at the full token counts of the presets."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from ostrack_fast.config import ModelConfig

from .case import Case, Comparison, Setting, compare


def dense_attention(qkv: Tensor, template_mask: Tensor | None) -> tuple[Tensor, Tensor | None, Tensor]:
    """Upstream, with the map (B,H,N,N) that a block hands on; the score by boolean-mask indexing, None without mask."""
    batch, tokens, _, heads, width = qkv.shape
    query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    probability = ((query @ key.transpose(-2, -1)) * width**-0.5).softmax(dim=-1)
    out = (probability @ value).transpose(1, 2).reshape(batch, tokens, heads * width)
    if template_mask is None:
        return out, None, probability
    template = template_mask.shape[-1]
    rows = probability[:, :, :template, template:]
    chosen = template_mask.expand(batch, -1)[:, None, :, None].expand(-1, heads, -1, rows.shape[3])
    return out, rows[chosen].view(batch, heads, -1, rows.shape[3]).mean(dim=2).mean(dim=1), probability


def torch_best(qkv: Tensor, row: int | None, template: int) -> tuple[Tensor, Tensor | None]:
    """SDPA, and the score of the one template row as a matrix-vector product; no score without a row."""
    query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    out = functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
    if row is None:
        return out, None
    logits = (query[:, :, row : row + 1] * qkv.shape[-1] ** -0.5) @ key.transpose(-2, -1)
    return out, logits.softmax(-1, dtype=torch.float32)[..., template:].mean((1, 2))


def center_row(cfg: ModelConfig) -> int:
    """The template token that ranks the candidates with CTR_POINT, as published."""
    return cfg.template_grid**2 // 2 - cfg.template_grid // 2 - 1


def cases(at: Setting) -> Iterator[Case]:
    """With the score of the search tokens and without, over all tokens and over those that the last block has."""
    cfg, template = at.cfg, at.cfg.template_grid**2
    heads, width, row = cfg.num_heads, cfg.embed_dim // cfg.num_heads, center_row(cfg)

    def build(total: int, scored: bool) -> Comparison:
        qkv, mask = at.example("attention", at.batch, total, heads, width, template, (row,) if scored else None)
        baselines = {
            "upstream": partial(dense_attention, qkv, mask),
            "torch": partial(torch_best, qkv, row if scored else None, template),
        }
        return compare("attention", (qkv, mask), at.dtype, baselines, select=lambda found: found[: 1 + scored])

    for search in dict.fromkeys((cfg.search_tokens()[0], cfg.search_tokens()[-1])):
        for scored in (True, False):
            total = template + search
            flops = 4.0 * at.batch * heads * total**2 * width
            moved = at.batch * (4.0 * total * cfg.embed_dim * at.dtype.itemsize + 4 * search * scored)
            shape = f"{template}+{search} tokens, {heads} heads of {width}{'' if scored else ', no score'}"
            yield at.case("attention", shape, flops, moved, build, total, scored)
