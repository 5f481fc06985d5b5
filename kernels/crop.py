"""The search crop in one launch: geometry, zero border, resize and normalization, no image in between.

The resize is OpenCV's `resize` (INTER_LINEAR on uint8) to the bit: coordinates rounded to float32, weights in 11-bit
fixed point, and a vertical pass that cuts each of its two products before adding them. Two special cases of OpenCV's
need no code here. For an exact halving it takes the mean of four pixels, which the weights of one half give to the
bit. For columns beyond the border it sets the weights to one and zero, and here both columns are the border's, whose
weights add up to one. Rows beyond the border keep their weights, there as here, and that does show in the last bit.
"""

import torch
import triton
import triton.language as tl

from . import dependent_launch
from .dependent_launch import wait_for_inputs

ROWS, COLUMNS = 4, 64


@triton.jit
def _round_half_even(x):
    low = tl.floor(x)
    up = (x - low > 0.5) | ((x - low == 0.5) & (low != 2.0 * tl.floor(low * 0.5)))
    return tl.where(up, low + 1.0, low)


@triton.jit
def _taps(index, side, step):
    """First and second source index and their weights in 1/2048, for destination indices `index`."""
    position = ((index.to(tl.float64) + 0.5) * step - 0.5).to(tl.float32)
    low = tl.floor(position)
    fraction = position - low
    first = low.to(tl.int32)
    weight_first = _round_half_even((1.0 - fraction) * 2048.0).to(tl.int32)
    weight_second = _round_half_even(fraction * 2048.0).to(tl.int32)
    second = tl.minimum(tl.maximum(first + 1, 0), side - 1)
    return tl.minimum(tl.maximum(first, 0), side - 1), second, weight_first, weight_second


@triton.jit
def _pixels(frame, rows, columns, height, width, channel):
    # The last row and column of the frame count as border, as in the published `sample_target`.
    inside = (rows >= 0) & (rows < height - 1)
    mask = inside[:, None] & ((columns >= 0) & (columns < width - 1))[None, :]
    offset = (rows.to(tl.int64) * width)[:, None] + columns[None, :]
    return tl.load(frame + offset * 3 + channel, mask=mask, other=0).to(tl.int32)


@triton.jit(do_not_specialize=["height", "width", "size"])
def _crop(
    frame, box, patch, scale, height, width, factor: tl.float64, size, mean0, mean1, mean2, std0, std1, std2,
    TILE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    wait_for_inputs(PDL)
    batch = tl.program_id(2)
    w, h = tl.load(box + 4 * batch + 2), tl.load(box + 4 * batch + 3)
    exact_side = tl.ceil(tl.sqrt(w * h) * factor)
    left = _round_half_even(tl.load(box + 4 * batch) + 0.5 * w - exact_side * 0.5).to(tl.int32)
    top = _round_half_even(tl.load(box + 4 * batch + 1) + 0.5 * h - exact_side * 0.5).to(tl.int32)
    side = exact_side.to(tl.int32)
    size_f64 = size.to(tl.float64)
    if (tl.program_id(0) == 0) & (tl.program_id(1) == 0):
        tl.store(scale + batch, size_f64 / exact_side)
    step = 1.0 / (size_f64 / exact_side)
    y = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    x = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    y0, y1, b0, b1 = _taps(y, side, step)
    x0, x1, a0, a1 = _taps(x, side, step)
    y0, y1, x0, x1 = y0 + top, y1 + top, x0 + left, x1 + left
    mask = (y < size)[:, None] & (x < size)[None, :]
    for channel in tl.static_range(3):
        p00 = _pixels(frame, y0, x0, height, width, channel)
        p01 = _pixels(frame, y0, x1, height, width, channel)
        p10 = _pixels(frame, y1, x0, height, width, channel)
        p11 = _pixels(frame, y1, x1, height, width, channel)
        upper = (p00 * a0[None, :] + p01 * a1[None, :]) >> 4
        lower = (p10 * a0[None, :] + p11 * a1[None, :]) >> 4
        value = (((b0[:, None] * upper) >> 16) + ((b1[:, None] * lower) >> 16) + 2) >> 2
        mean = mean0 if channel == 0 else (mean1 if channel == 1 else mean2)
        std = std0 if channel == 0 else (std1 if channel == 1 else std2)
        # IEEE division: the same numbers as PyTorch's, where `/` would compile to an approximation.
        normalized = tl.div_rn(tl.div_rn(value.to(tl.float32), 255.0) - mean, std)
        if TILE == 0:
            row = (batch * 3 + channel) * size + y
            at = (row.to(tl.int64) * size)[:, None] + x[None, :]
        else:
            cell = ((batch * (size // TILE) + y // TILE) * (size // TILE))[:, None] + (x // TILE)[None, :]
            within = ((channel * TILE + y % TILE) * TILE)[:, None] + (x % TILE)[None, :]
            at = cell.to(tl.int64) * (3 * TILE * TILE) + within
        tl.store(patch + at, normalized.to(patch.dtype.element_ty), mask=mask)


def crop(
    frame: torch.Tensor,
    box: torch.Tensor,
    factor: float,
    size: int,
    dtype: torch.dtype,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    tile: int = 0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Square crops around boxes, resized and normalized.

    Args:
        frame: (height,width,3) uint8 RGB.
        box: (B,4) float64 xywh in pixels, w and h positive; read on the device, nothing waits for the host.
        factor: side of the crop over sqrt(w * h).
        size: Z, side of the patch in pixels.
        dtype: of the patch.
        mean, std: of the normalization.
        tile: P, side of a ViT's patches, which divides `size`; 0 for an image.

    Returns:
        patch (B,3,Z,Z) = (pixel / 255 - mean) / std, or with a `tile` its pixels in the order in which patch embedding
        multiplies them: (B,(Z/P)^2,3*P*P); scale (B,) float64, patch pixels per frame pixel.
    """
    batch = box.shape[0]
    shape = ((size // tile) ** 2, 3 * tile * tile) if tile else (3, size, size)
    patch = torch.empty(batch, *shape, dtype=dtype, device=frame.device)
    scale = torch.empty(batch, dtype=torch.float64, device=frame.device)
    with torch.cuda.device_of(frame):
        _crop[(triton.cdiv(size, COLUMNS), triton.cdiv(size, ROWS), batch)](
            frame.contiguous(), box.contiguous(), patch, scale, frame.shape[0], frame.shape[1], float(factor), size,
            *mean, *std,
            # Fused multiply-add would round coordinates differently from OpenCV's separate operations.
            TILE=tile, ROWS=ROWS, COLUMNS=COLUMNS, enable_fp_fusion=False, **dependent_launch.options(frame.device),
        )  # fmt: skip
    return patch, scale
