"""decode: from the head's maps to the box of the highest windowed score."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from torch import Tensor

from .case import Case, Comparison, Setting, compare_op, run_under_pytest


def upstream(score_map: Tensor, size_map: Tensor, offset_map: Tensor, window: Tensor) -> tuple[Tensor, Tensor]:
    """Window, max, two gathers, concatenate."""
    grid = score_map.shape[-1]
    _, best = torch.max((window * score_map).flatten(1), dim=1, keepdim=True)
    row, column = torch.div(best, grid, rounding_mode="floor"), best % grid
    index = best.unsqueeze(1).expand(best.shape[0], 2, 1)
    size = size_map.flatten(2).gather(dim=2, index=index)
    offset = offset_map.flatten(2).gather(dim=2, index=index).squeeze(-1)
    center = [(column.float() + offset[:, :1]) / grid, (row.float() + offset[:, 1:]) / grid]
    return torch.cat([*center, size.squeeze(-1)], dim=1), score_map.flatten(1).gather(1, best).squeeze(1)


def torch_best(score_map: Tensor, size_map: Tensor, offset_map: Tensor, window: Tensor) -> tuple[Tensor, Tensor]:
    """Arg-max, gathers."""
    grid = score_map.shape[-1]
    score = score_map.flatten(1)
    best = (score * window.flatten()).argmax(1, keepdim=True)
    both = best[:, None].expand(-1, 2, -1)
    offset, size = offset_map.flatten(2).gather(2, both)[..., 0], size_map.flatten(2).gather(2, both)[..., 0]
    cell = torch.cat((best % grid, best // grid), dim=1)
    return torch.cat(((offset + cell) / grid, size), dim=1), score.gather(1, best)[:, 0]


def hann(grid: int) -> Tensor:
    """The window (F,F) that the upstream tracker multiplies the score map with."""
    side = torch.from_numpy(0.5 * (1 - np.cos(2 * np.pi / (grid + 1) * np.arange(1, grid + 1)))).float()
    return side[:, None] * side[None]


def cases(at: Setting) -> Iterator[Case]:
    grid = at.cfg.search_grid

    def build() -> Comparison:
        score, size, offset = (torch.rand(at.batch, n, grid, grid, device=at.device).to(at.dtype) for n in (1, 2, 2))
        # One clear peak: without it, rounding to bfloat16 would make several cells the highest.
        score *= 0.5
        score[:, 0, grid // 2, grid // 3] = 0.9
        maps = {"score_map": score, "size_map": size, "offset_map": offset, "window": hann(grid).to(at.device)}
        return compare_op("decode", maps, at.dtype, (partial(upstream, **maps), partial(torch_best, **maps)))

    moved = grid * grid * (5.0 * at.batch * at.dtype.itemsize + 4)
    yield at.case("decode", f"{grid} x {grid}", 0.0, moved, build)


test_decode = run_under_pytest
