"""LayerNorm outside the main loop: what one layer's epilogue leaves for the next layer's LayerNorm.

An epilogue that adds to the residual stream holds the new rows in registers. It also writes them in the compute dtype,
less a shift of each row, with partial sums of what it wrote and of its square. With them LayerNorm and matmul commute
(see `linear`): the next layer is a plain GEMM in the compute dtype, and mean and variance correct its result.

The shift is the row's mean as it was before the addition. As far as one addition does not move it, the rows then lie
near zero whatever their mean, and neither the rounding nor the difference in the variance loses what they hold.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

GRAIN = 32  # columns of a partial sum: every tile of a half-precision GEMM is a multiple


class NormRows(NamedTuple):
    """Rows of the residual stream, ready for a LayerNorm.

    rows: (B,n,C) in the compute dtype, each less its shift. sums: (B,n,1+2G) float32: the shift, then for each of the G
    groups of 32 channels the sum of the shifted values and of their squares, both of unrounded values.
    """

    rows: torch.Tensor
    sums: torch.Tensor


def empty_norm_rows(shape: tuple[int, ...], channels: int, dtype: torch.dtype, device: torch.device) -> NormRows:
    """Memory for (*shape,C) rows."""
    columns = 1 + 2 * triton.cdiv(channels, GRAIN)
    return NormRows(
        torch.empty(*shape, channels, dtype=dtype, device=device),
        torch.empty(*shape, columns, dtype=torch.float32, device=device),
    )


@triton.jit
def load_sums(sums, rows, M, C: tl.constexpr, PADDED: tl.constexpr):
    """Partial sums of rows and of their squares, [rows, PADDED] each; rows past the last one read as zero."""
    GRAINS: tl.constexpr = (C + 31) // 32
    grains = tl.arange(0, PADDED)
    at = sums + rows.to(tl.int64)[:, None] * (1 + 2 * GRAINS) + 1 + grains[None, :]
    mask = (rows < M)[:, None] & (grains < GRAINS)[None, :]
    return tl.load(at, mask=mask, other=0.0), tl.load(at + GRAINS, mask=mask, other=0.0)


@triton.jit
def load_shift(sums, rows, M, C: tl.constexpr):
    """The shift of rows."""
    GRAINS: tl.constexpr = (C + 31) // 32
    return tl.load(sums + rows.to(tl.int64) * (1 + 2 * GRAINS), mask=rows < M, other=0.0)


@triton.jit
def statistics(totals, squares, C: tl.constexpr):
    """Mean and variance of the shifted rows."""
    mean = tl.sum(totals, axis=1) / C
    return mean, tl.maximum(tl.sum(squares, axis=1) / C - mean * mean, 0.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def store_rows(
    value, shifts, rows, start, first_column, columns, mask, norm_rows, sums, M, N: tl.constexpr
):  # fmt: skip
    """Write the tile `value` of the residual stream for the next LayerNorm. `start` is the offset of each row."""
    GRAINS: tl.constexpr = (N + 31) // 32
    R: tl.constexpr = value.shape[0]
    TILE_GRAINS: tl.constexpr = value.shape[1] // 32
    valid = rows < M
    shift = tl.load(shifts + rows, mask=valid, other=0.0)
    centred = tl.where(mask, value - shift[:, None], 0.0)
    tl.store(norm_rows + start[:, None] + columns[None, :], centred.to(norm_rows.dtype.element_ty), mask=mask)
    # Rows of the stream are dense, so that a row's number follows from its offset.
    row = sums + start // N * (1 + 2 * GRAINS)
    tl.store(row, shift, mask=valid & (first_column == 0))
    grains = first_column // 32 + tl.arange(0, TILE_GRAINS)
    at = row[:, None] + 1 + grains[None, :]
    inside = valid[:, None] & (grains < GRAINS)[None, :]
    tl.store(at, tl.sum(tl.reshape(centred, [R, TILE_GRAINS, 32]), axis=2), mask=inside)
    tl.store(at + GRAINS, tl.sum(tl.reshape(centred * centred, [R, TILE_GRAINS, 32]), axis=2), mask=inside)
