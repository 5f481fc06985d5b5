"""decode: from the head's maps to the box of the highest windowed score."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from .case import Case, Comparison, Setting, compare


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


def cases(at: Setting) -> Iterator[Case]:
    grid = at.cfg.search_grid

    def build() -> Comparison:
        maps = at.example("decode", at.batch, grid)
        baselines = {"upstream": partial(upstream, *maps), "torch": partial(torch_best, *maps)}
        return compare("decode", maps, at.dtype, baselines)

    moved = grid * grid * (5.0 * at.batch * at.dtype.itemsize + 4)
    yield at.case("decode", f"{grid} x {grid}", 0.0, moved, build)
