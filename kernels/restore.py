"""Search tokens back on their grid, with or without the final LayerNorm.

Each program owns a few cells of the map and looks for the token that goes there, so that empty cells are written by
the same launch and nothing has to be zeroed before.
"""

import torch
import triton
import triton.language as tl

from . import dependent_launch
from .dependent_launch import wait_for_inputs

CELLS = 16  # 32 bytes of half precision: one sector of the transposed store
BLOCK_C = 64  # channels per program: a frame of one batch element is 16 x 12 programs
CELLS_CHANNELS_LAST = 2  # whole tokens then: nothing is transposed, so nothing is gained by more
MAX_CHANNELS = 2048  # a block of CELLS whole tokens is held in registers for the LayerNorm


@triton.jit(do_not_specialize=["K"])
def _restore(
    tokens, ids, out, norm_weight, norm_bias, eps, batch_stride, K, F: tl.constexpr, C: tl.constexpr,
    CELLS: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr, ROW: tl.constexpr, NORM: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    wait_for_inputs(PDL)
    batch = tl.program_id(2)
    cells = tl.program_id(0) * CELLS + tl.arange(0, CELLS)
    channels = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    index = tl.arange(0, BLOCK_K)
    at = tl.load(ids + batch * K + index, mask=index < K, other=-1)
    token = tl.max(tl.where(at[None, :] == cells[:, None], index[None, :], -1), axis=1)
    tokens += batch.to(tl.int64) * batch_stride
    mask = (token >= 0)[:, None] & (channels < C)[None, :]
    value = tl.load(tokens + token[:, None] * C + channels[None, :], mask=mask, other=0.0)
    if NORM:
        row = tl.arange(0, ROW)
        row_mask = (token >= 0)[:, None] & (row < C)[None, :]
        whole = tl.load(tokens + token[:, None] * C + row[None, :], mask=row_mask, other=0.0).to(tl.float32)
        # The square of a large float32 is not a float32. Rows that hold one are halved 72 times first, which is exact;
        # the variance of such a row is zero or much more than the least epsilon.
        large = tl.max(tl.abs(whole), axis=1) > 1e17
        shrink = tl.where(large, 2.0**-72, 1.0)
        whole *= shrink[:, None]
        mean = tl.sum(whole, axis=1) / C
        centred = tl.where(row_mask, whole - mean[:, None], 0.0)
        variance = tl.sum(centred * centred, axis=1) / C
        scale = tl.div_rn(1.0, tl.sqrt_rn(variance + tl.where(large, 1e-37, eps)))
        weight = tl.load(norm_weight + channels, mask=channels < C, other=0.0).to(tl.float32)
        bias = tl.load(norm_bias + channels, mask=channels < C, other=0.0).to(tl.float32)
        normed = (value.to(tl.float32) * shrink[:, None] - mean[:, None]) * scale[:, None] * weight[None, :] + bias[
            None, :
        ]
        value = tl.where(mask, normed, 0.0)
    value = value.to(out.dtype.element_ty)
    out += batch.to(tl.int64) * C * F * F
    mask = (channels < C)[None, :] & (cells < F * F)[:, None]
    if CHANNELS_LAST:
        tl.store(out + cells[:, None] * C + channels[None, :], value, mask=mask)
    else:
        tl.store(out + channels[:, None] * (F * F) + cells[None, :], tl.trans(value), mask=tl.trans(mask))


def restore(
    tokens: torch.Tensor,
    ids: torch.Tensor,
    grid: int,
    norm_weight: torch.Tensor | None = None,
    norm_bias: torch.Tensor | None = None,
    eps: float = 1e-6,
    channels_last: bool = False,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Put search tokens on their grid; cells that no id names are exact zeros.

    Args:
        tokens: (B,K,C), any floating dtype; may be a slice along K.
        ids: (B,K) int64, distinct cells in [0, grid * grid).
        grid: F, side of the grid.
        norm_weight, norm_bias: (C,), apply LayerNorm over channels first, computed in float32; both or
            neither.
        eps: of that LayerNorm.
        channels_last: lay the map out as (B,F,F,C) in memory.
        dtype: of the map, by default that of tokens.

    Returns:
        map (B,C,F,F).
    """
    batch, kept, channels = tokens.shape
    if tokens.stride()[1:] != (channels, 1):
        tokens = tokens.contiguous()
    norm = [None if each is None else each.contiguous() for each in (norm_weight, norm_bias)]
    row = triton.next_power_of_2(channels)
    if channels_last:
        cells, block, warps = CELLS_CHANNELS_LAST, min(row, 1024), 4
        out = tokens.new_empty(batch, grid, grid, channels, dtype=dtype).permute(0, 3, 1, 2)
    else:
        cells, block, warps = CELLS, BLOCK_C, 8
        out = tokens.new_empty(batch, channels, grid, grid, dtype=dtype)
    with torch.cuda.device_of(tokens):
        _restore[(triton.cdiv(grid * grid, cells), triton.cdiv(channels, block), batch)](
            tokens, ids.contiguous(), out, *norm, eps, tokens.stride(0), kept,
            F=grid, C=channels, CELLS=cells, BLOCK_K=triton.next_power_of_2(kept), BLOCK_C=block, ROW=row,
            NORM=norm_weight is not None, CHANNELS_LAST=channels_last, num_warps=warps, enable_fp_fusion=True,
            **dependent_launch.options(tokens.device),
        )  # fmt: skip
    return out
