"""restore: the tokens that are left go back to their cells of the map, zeros elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from .case import Case, Comparison, Setting, compare


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


def removed_cells(ids: Tensor, grid: int) -> Tensor:
    """(B,F*F-K) float, the cells that are not among ids (B,K)."""
    free = torch.ones(len(ids), grid * grid, dtype=torch.bool, device=ids.device).scatter_(1, ids, False)
    return free.nonzero()[:, 1].view(len(ids), -1).float()


def first_rows(ids: Tensor, grid: int) -> Tensor:
    """(B,1), where each sample's rows begin."""
    return torch.arange(0, len(ids) * grid * grid, grid * grid, device=ids.device)[:, None]


def cases(at: Setting) -> Iterator[Case]:
    grid, kept, channels = at.cfg.search_grid, at.cfg.search_tokens()[-1], at.cfg.embed_dim

    def build() -> Comparison:
        tokens, ids, *_ = arguments = at.example("restore", at.batch, kept, channels, grid)
        baselines = {
            "upstream": partial(upstream, tokens, ids.float(), removed_cells(ids, grid), grid),
            "torch": partial(torch_best, tokens, ids, grid, first_rows(ids, grid)),
        }
        return compare("restore", arguments, at.dtype, baselines)

    moved = at.batch * ((kept + grid * grid) * channels * at.dtype.itemsize + 8.0 * kept)
    yield at.case("restore", f"{kept} to {grid} x {grid}, C {channels}", 0.0, moved, build)
