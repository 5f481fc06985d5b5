"""restore: the tokens that are left go back to their cells of the map, zeros elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from ostrack_fast.config import ModelConfig

from .case import Case, Comparison, compare_op


def upstream(tokens: Tensor, ids: Tensor, removed: Tensor, grid: int) -> Tensor:
    """Append zeros, scatter to float cells made integers, permute."""
    batch, kept, channels = tokens.shape
    missing = grid * grid - kept
    padded = torch.cat([tokens, torch.zeros(batch, missing, channels, dtype=tokens.dtype, device=tokens.device)], dim=1)
    cells = torch.cat([ids, removed], dim=1).unsqueeze(-1).expand(batch, -1, channels).to(torch.int64)
    full = torch.zeros_like(padded).scatter_(dim=1, index=cells, src=padded)
    return full.unsqueeze(-1).permute(0, 3, 2, 1).contiguous().view(batch, channels, grid, grid)


def torch_best(tokens: Tensor, ids: Tensor, grid: int, first: Tensor) -> Tensor:
    """Copy rows into zeros, transpose. first: (B,1), where each sample's rows begin."""
    batch, _, channels = tokens.shape
    full = tokens.new_zeros(batch * grid * grid, channels)
    full.index_copy_(0, (ids + first).flatten(), tokens.flatten(0, 1))
    return full.view(batch, grid * grid, channels).transpose(1, 2).contiguous().view(batch, channels, grid, grid)


def cases(cfg: ModelConfig, batch: int, dtype: torch.dtype, device: torch.device) -> Iterator[Case]:
    grid, kept, channels = cfg.search_grid, cfg.search_tokens()[-1], cfg.embed_dim

    def build() -> Comparison:
        tokens = torch.randn(batch, kept, channels, device=device).to(dtype)
        order = torch.stack([torch.randperm(grid * grid) for _ in range(batch)]).to(device)
        ids, removed = order[:, :kept].contiguous(), order[:, kept:].float()
        first = torch.arange(0, batch * grid * grid, grid * grid, device=device)[:, None]
        baselines = partial(upstream, tokens, ids.float(), removed, grid), partial(torch_best, tokens, ids, grid, first)
        return compare_op("restore", {"tokens": tokens, "ids": ids, "grid": grid}, dtype, *baselines)

    moved = batch * ((kept + grid * grid) * channels * dtype.itemsize + 8.0 * kept)
    yield Case("restore", f"{kept} to {grid} x {grid}, C {channels}", batch, dtype, device, 0.0, moved, build)


def test_restore(check_then_time, case, implementation):
    check_then_time(case, implementation)
