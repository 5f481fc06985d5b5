"""A restored map as the tokens in it, for a convolution that multiplies them alone."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .matmul import linear, trains_in_float32

_TAPS = 9
# Of the cells: with more tokens the convolution of the whole map is about as fast (estimated from one shape, Zen 5).
_MOST_TOKENS = 0.75


class SparseMap(NamedTuple):
    """What `restore` would make a map (B,C,F,F) of.

    rows (B*K+1,C) are the tokens and, last, zeros. products (B*F*F,9) int64 says for each cell and each tap of a 3 x 3
    convolution which row's product with which tap the cell adds: row * 9 + tap. shape is (B,F,F).
    """

    rows: Tensor
    products: Tensor
    shape: tuple[int, int, int]


def is_worthwhile(tokens: Tensor, grid: int) -> bool:
    """Whether training computes a 3 x 3 convolution of `tokens` (B,K,C) on a grid faster with a `SparseMap`."""
    return trains_in_float32(tokens) and 0 < tokens.shape[1] <= _MOST_TOKENS * grid * grid


def sparse_map(tokens: Tensor, ids: Tensor, grid: int) -> SparseMap:
    """The map that `restore` makes of tokens (B,K,C) and their cells ids (B,K), F = `grid`."""
    batch, kept, channels = tokens.shape
    nothing = batch * kept
    bordered = ids.new_full((batch, (grid + 2) ** 2), nothing)
    cells = (ids // grid + 1) * (grid + 2) + ids % grid + 1
    bordered.scatter_(1, cells, torch.arange(nothing, dtype=torch.int64, device=ids.device).view(batch, kept))
    neighbours = bordered.view(batch, grid + 2, grid + 2).unfold(1, 3, 1).unfold(2, 3, 1).reshape(-1, _TAPS)
    taps = torch.arange(_TAPS, dtype=torch.int64, device=ids.device)
    products = torch.where(neighbours == nothing, 0, taps) + neighbours * _TAPS
    return SparseMap(torch.cat((tokens.flatten(0, 1), tokens.new_zeros(1, channels))), products, (batch, grid, grid))


def convolve(x: SparseMap, weight: Tensor, bias: Tensor) -> Tensor:
    """`torch.nn.functional.conv2d` of the map with a border of zeros: weight (O,C,3,3), bias (O,) -> (B,O,F,F)."""
    outputs, channels = weight.shape[:2]
    by_tap = weight.permute(2, 3, 0, 1).reshape(_TAPS * outputs, channels)
    found = linear(x.rows, by_tap, by_tap.new_zeros(_TAPS * outputs)).view(-1, outputs)
    nothing = _TAPS * (len(x.rows) - 1)
    added = torch.nn.functional.embedding_bag(x.products, found, mode="sum", padding_idx=nothing)
    return (added + bias).view(*x.shape, outputs).permute(0, 3, 1, 2).contiguous()
