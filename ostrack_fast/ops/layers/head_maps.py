"""The head's maps of what its last layer gives each cell."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import isqrt

import torch
from torch import Tensor

from .. import native
from ..registry import forced_backend
from ..tensors import check_no_derivative, describe

Maps = tuple[Tensor, Tensor, Tensor]


def head_maps(device: torch.device) -> Callable[[Tensor], Maps]:
    """A function of rows on the device, which gives maps: score (B,1,F,F), size (B,2,F,F), offset (B,2,F,F).

    Its rows are (B,F*F,5) float32: score, offset x and y, width, height of each cell. Score and size are their
    sigmoids, cut to 1e-4 and 1 - 1e-4. It raises ValueError for rows of another shape, and carries no gradient.
    """
    compiled = forced_backend() in (None, "native") and native.unsupported_reason("head_maps", device) is None
    return partial(_maps, _native if compiled else _reference)


def _maps(compute: Callable[[Tensor, int], Maps], rows: Tensor) -> Maps:
    check_no_derivative("head_maps", rows)
    grid = isqrt(rows.shape[1]) if rows.dim() == 3 else 0
    if grid == 0 or rows.shape[1:] != (grid * grid, 5) or rows.dtype != torch.float32:
        raise ValueError(f"rows must be float32 (B,F*F,5), are {describe(rows)}")
    return compute(rows, grid)


def _reference(rows: Tensor, grid: int) -> Maps:
    maps = rows.transpose(1, 2).reshape(len(rows), 5, grid, grid)
    probability = maps.sigmoid().clamp(min=1e-4, max=1 - 1e-4)
    return probability[:, :1], probability[:, 3:], maps[:, 1:3]


def _native(rows: Tensor, grid: int) -> Maps:
    maps = rows.new_empty(len(rows), 5, grid, grid)
    native.call("head_maps", rows.device, native.dense(rows), maps)
    return maps[:, :1], maps[:, 3:], maps[:, 1:3]
