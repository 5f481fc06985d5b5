"""attention with the score of the search tokens, at the full token counts of the presets."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from ostrack_fast.config import ModelConfig

from .case import Case, Comparison, compare_op


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


def upstream(qkv: Tensor, template_mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    return dense_attention(qkv, template_mask)[:2]


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


def cases(cfg: ModelConfig, batch: int, dtype: torch.dtype, device: torch.device) -> Iterator[Case]:
    template, heads, width = cfg.template_grid**2, cfg.num_heads, cfg.embed_dim // cfg.num_heads
    total, row = template + cfg.search_grid**2, center_row(cfg)

    def build() -> Comparison:
        qkv = torch.randn(batch, total, 3, heads, width, device=device).to(dtype)
        mask = torch.zeros(template, dtype=torch.bool, device=device)
        mask[row] = True
        baselines = partial(upstream, qkv, mask), partial(torch_best, qkv, row, template)
        return compare_op("attention", {"qkv": qkv, "template_mask": mask}, dtype, *baselines)

    flops = 4.0 * batch * heads * total**2 * width
    moved = batch * (4.0 * total * cfg.embed_dim * dtype.itemsize + 4 * (total - template))
    shape = f"{template}+{total - template} tokens, {heads} heads of {width}"
    yield Case("attention", shape, batch, dtype, device, flops, moved, build)


def test_attention(check_then_time, case, implementation):
    check_then_time(case, implementation)
