"""What follows the head's 3 x 3 convolutions, in one launch: from their features to the target's box in the frame.

The 1 x 1 convolutions, sigmoid, clamp, window, arg-max and box update, one program per batch element. Only the score is
computed in every cell; offset and size only in the best one. Sums are float32, the box float64 as `boxes` says.
"""

import torch
import triton
import triton.language as tl

from . import dependent_launch
from .boxes import along, best_cell, clamp
from .dependent_launch import wait_for_inputs

PART = tl.constexpr(8)  # channels at a time: 16 bytes of half precision a cell


@triton.jit
def _probability(logit):
    return clamp(1.0 / (1.0 + tl.exp(-logit)), 1e-4, 1.0 - 1e-4)


@triton.jit
def _sizes(features, weight, bias, cells, mask, C: tl.constexpr):
    """Widths and heights at all cells, whose features of the tower for size begin at `features`."""
    widths, heights = tl.zeros(cells.shape, tl.float32), tl.zeros(cells.shape, tl.float32)
    for first in range(0, C, PART):  # unrolled, it would need more registers than there are
        some = first + tl.arange(0, PART)
        at = features + cells[:, None] * (3 * C) + some[None, :]
        x = tl.load(at, mask=mask[:, None] & (some < C)[None, :], other=0.0).to(tl.float32)
        widths += tl.sum(x * tl.load(weight + some, mask=some < C, other=0.0)[None, :], axis=1)
        heights += tl.sum(x * tl.load(weight + C + some, mask=some < C, other=0.0)[None, :], axis=1)
    return _probability(widths + tl.load(bias)), _probability(heights + tl.load(bias + 1))


@triton.jit
def _padded(width, height):
    pad = 0.5 * (width + height)
    return tl.sqrt((width + pad) * (height + pad))


@triton.jit
def _at_least_one(ratio):
    return tl.maximum(ratio, 1.0 / ratio)


@triton.jit
def _at_cell(features, weight, bias, channels, C: tl.constexpr):
    """One output of a 1 x 1 convolution at the cell whose features of its tower begin at `features`."""
    mask = channels < C
    x = tl.load(features + channels, mask=mask, other=0.0).to(tl.float32)
    return tl.sum(x * tl.load(weight + channels, mask=mask, other=0.0), axis=0) + tl.load(bias)


@triton.jit(do_not_specialize=["height", "width"])
def _frame_tail(
    features, weight, bias, window, box, out, height, width, factor: tl.float64, margin: tl.float64,
    penalty: tl.float32, influence: tl.float32, keep: tl.float32, F: tl.constexpr, C: tl.constexpr,
    CELLS: tl.constexpr, CHANNELS: tl.constexpr, SMOOTH: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """`features` are those of the towers for score, offset and size, C channels each, one after the other in a cell."""
    cells, channels = tl.arange(0, CELLS), tl.arange(0, CHANNELS)
    mask = cells < F * F
    wait_for_inputs(PDL)
    batch = tl.program_id(0)
    features += batch.to(tl.int64) * (F * F * 3 * C)
    box += batch * 4
    out += batch * 5
    old_x, old_y, old_w, old_h = tl.load(box), tl.load(box + 1), tl.load(box + 2), tl.load(box + 3)
    side = tl.ceil(tl.sqrt(old_w * old_h) * factor)
    logits = tl.zeros([CELLS], tl.float32)
    for first in tl.static_range(0, C, PART):
        some = first + tl.arange(0, PART)
        at = features + cells[:, None] * (3 * C) + some[None, :]
        x = tl.load(at, mask=mask[:, None] & (some < C)[None, :], other=0.0).to(tl.float32)
        logits += tl.sum(x * tl.load(weight + some, mask=some < C, other=0.0)[None, :], axis=1)
    score = _probability(logits + tl.load(bias))
    favoured = tl.load(window + cells, mask=mask, other=1.0)
    if SMOOTH:
        before_w, before_h = (old_w / side).to(tl.float32), (old_h / side).to(tl.float32)
        widths, heights = _sizes(features + 2 * C, weight + 3 * C, bias + 3, cells, mask, C)
        size_change = _at_least_one(_padded(widths, heights) / _padded(before_w, before_h))
        shape_change = _at_least_one((widths / heights) / (before_w / before_h))
        likely = score * tl.exp(-penalty * (size_change * shape_change - 1.0))
        response = likely + influence * (favoured - likely)
    else:
        response = score * favoured
    # Beyond the map the response is -inf, which no cell of it is.
    response = tl.where(mask, response, float("-inf"))
    best = best_cell(response, cells, mask, F)
    of_offset = features + best * (3 * C) + C
    x = ((best % F) + _at_cell(of_offset, weight + C, bias + 1, channels, C)) / F
    y = ((best // F) + _at_cell(of_offset, weight + 2 * C, bias + 2, channels, C)) / F
    w = _probability(_at_cell(of_offset + C, weight + 3 * C, bias + 3, channels, C))
    h = _probability(_at_cell(of_offset + C, weight + 4 * C, bias + 4, channels, C))
    if SMOOTH:
        w += keep * (before_w - w)
        h += keep * (before_h - h)
    left, new_w = along(x, w, old_x, old_w, side, width, margin)
    top, new_h = along(y, h, old_y, old_h, side, height, margin)
    tl.store(out, left)
    tl.store(out + 1, top)
    tl.store(out + 2, new_w)
    tl.store(out + 3, new_h)
    tl.store(out + 4, tl.sum(tl.where(cells == best, score, 0.0), axis=0).to(tl.float64))


class FrameTail:
    """The last layers of the head, decoding and box update, with the weights laid out once.

    Args:
        weight: (5,C) float, of the 1 x 1 convolutions: score, offset x and y, width, height, each over the C channels
            of its own tower.
        bias: (5,) float. window: (F,F), multiplies the score before the arg-max.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor, window: torch.Tensor):
        self.weight, self.bias, self.window = (each.detach().float().contiguous() for each in (weight, bias, window))

    def __call__(
        self,
        features: torch.Tensor,
        box: torch.Tensor,
        frame_size: tuple[int, int],
        factor: float,
        margin: float,
        smoothing: tuple[float, float, float] | None = None,
    ) -> torch.Tensor:
        """The targets' boxes in the frame and their scores.

        Args:
            features: (B,F,F,3C), float32, float16 or bfloat16: the towers for score, offset and size.
            box: (B,4) float64 xywh in pixels, which the crops were taken around.
            frame_size: height and width of the frame, pixels. factor: side of the crop over sqrt(w * h) of `box`.
            margin: pixels that stay in the frame, and the least width and height.
            smoothing: penalty, influence and keep of SiamRPN's post-processing; None for the window's product.

        Returns:
            (B,5) float64: xywh in pixels and the score without the window. NaN stays NaN.

        Raises:
            ValueError: the features are not of that many cells and channels.
        """
        grid, channels = self.window.shape[0], self.weight.shape[1]
        if features.shape != (len(box), grid, grid, 3 * channels):
            raise ValueError(f"features must be ({len(box)},{grid},{grid},{3 * channels}), are {tuple(features.shape)}")
        out = box.new_empty(len(box), 5)
        with torch.cuda.device_of(features):
            _frame_tail[(len(box),)](
                features.contiguous(), self.weight, self.bias, self.window, box.contiguous(), out, *frame_size,
                float(factor), float(margin), *(smoothing or (0.0, 0.0, 0.0)), F=grid, C=channels,
                CELLS=triton.next_power_of_2(grid * grid), CHANNELS=triton.next_power_of_2(channels),
                SMOOTH=smoothing is not None, num_warps=8, enable_fp_fusion=False,
                **dependent_launch.options(features.device),
            )  # fmt: skip
        return out
