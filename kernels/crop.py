"""The search crop in one launch: geometry, zero border, resize and normalization, no image in between.

The resize is OpenCV's `resize` (INTER_LINEAR on uint8) to the bit: weights in 11-bit fixed point from coordinates in
float32, the vertical pass on products cut to 20 bits, and the mean of four for an exact halving. OpenCV sets the
weights of columns beyond the border to one and zero but leaves those of rows alone, which shows in the last bit.
"""

import torch
import triton
import triton.language as tl

ROWS, COLUMNS = 4, 64


@triton.jit
def _round_half_even(x):
    low = tl.floor(x)
    up = (x - low > 0.5) | ((x - low == 0.5) & (low != 2.0 * tl.floor(low * 0.5)))
    return tl.where(up, low + 1.0, low)


@triton.jit
def _taps(index, side, step, CLAMP_WEIGHT: tl.constexpr):
    """First and second source place and their weights in 1/2048, for destination places `index`."""
    position = ((index.to(tl.float64) + 0.5) * step - 0.5).to(tl.float32)
    low = tl.floor(position)
    fraction = position - low
    first = low.to(tl.int32)
    if CLAMP_WEIGHT:
        fraction = tl.where((first < 0) | (first >= side - 1), 0.0, fraction)
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
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
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
    y0, y1, b0, b1 = _taps(y, side, step, False)
    x0, x1, a0, a1 = _taps(x, side, step, True)
    y0, y1, x0, x1 = y0 + top, y1 + top, x0 + left, x1 + left
    mask = (y < size)[:, None] & (x < size)[None, :]
    for channel in tl.static_range(3):
        p00 = _pixels(frame, y0, x0, height, width, channel)
        p01 = _pixels(frame, y0, x1, height, width, channel)
        p10 = _pixels(frame, y1, x0, height, width, channel)
        p11 = _pixels(frame, y1, x1, height, width, channel)
        upper = (p00 * a0[None, :] + p01 * a1[None, :]) >> 4
        lower = (p10 * a0[None, :] + p11 * a1[None, :]) >> 4
        blended = (((b0[:, None] * upper) >> 16) + ((b1[:, None] * lower) >> 16) + 2) >> 2
        value = tl.where(side == 2 * size, (p00 + p01 + p10 + p11 + 2) >> 2, blended)
        mean = mean0 if channel == 0 else (mean1 if channel == 1 else mean2)
        std = std0 if channel == 0 else (std1 if channel == 1 else std2)
        # IEEE division: the same numbers as PyTorch's, where `/` would compile to an approximation.
        normalized = tl.div_rn(tl.div_rn(value.to(tl.float32), 255.0) - mean, std)
        row = (batch * 3 + channel) * size + y
        tl.store(
            patch + (row.to(tl.int64) * size)[:, None] + x[None, :], normalized.to(patch.dtype.element_ty), mask=mask
        )


def crop(
    frame: torch.Tensor,
    box: torch.Tensor,
    factor: float,
    size: int,
    dtype: torch.dtype = torch.float32,
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406),
    std: tuple[float, float, float] = (0.229, 0.224, 0.225),
) -> tuple[torch.Tensor, torch.Tensor]:
    """Square crops around boxes, resized and normalized.

    Args:
        frame: (height,width,3) uint8 RGB.
        box: (B,4) float64 xywh in pixels, w and h positive; read on the device, nothing waits for the host.
        factor: side of the crop over sqrt(w * h).
        size: Z, side of the patch in pixels.
        dtype: of the patch.
        mean, std: of the normalization, ImageNet's by default.

    Returns:
        patch (B,3,Z,Z) = (pixel / 255 - mean) / std; scale (B,) float64, patch pixels per frame pixel.
    """
    batch = box.shape[0]
    patch = torch.empty(batch, 3, size, size, dtype=dtype, device=frame.device)
    scale = torch.empty(batch, dtype=torch.float64, device=frame.device)
    with torch.cuda.device_of(frame):
        _crop[(triton.cdiv(size, COLUMNS), triton.cdiv(size, ROWS), batch)](
            frame.contiguous(), box.contiguous(), patch, scale, frame.shape[0], frame.shape[1], float(factor), size,
            *mean, *std,
            # Fused multiply-add would round coordinates differently from OpenCV's separate operations.
            ROWS=ROWS, COLUMNS=COLUMNS, enable_fp_fusion=False,
        )  # fmt: skip
    return patch, scale
