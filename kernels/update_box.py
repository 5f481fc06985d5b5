"""From what `decode` found to the target's box in the frame, on the device, so that the next crop waits for no host.

float64 with separately rounded operations: the side must be the one that `crop` took, to the bit.
"""

import torch
import triton
import triton.language as tl

from . import dependent_launch
from .boxes import along
from .dependent_launch import wait_for_inputs


@triton.jit(do_not_specialize=["height", "width"])
def _update_box(found, box, out, height, width, factor: tl.float64, margin: tl.float64, PDL: tl.constexpr):
    wait_for_inputs(PDL)
    found += tl.program_id(0) * 4
    box += tl.program_id(0) * 4
    out += tl.program_id(0) * 4
    x, y, w, h = tl.load(box), tl.load(box + 1), tl.load(box + 2), tl.load(box + 3)
    side = tl.ceil(tl.sqrt(w * h) * factor)
    left, new_w = along(tl.load(found), tl.load(found + 2), x, w, side, width, margin)
    top, new_h = along(tl.load(found + 1), tl.load(found + 3), y, h, side, height, margin)
    tl.store(out, left)
    tl.store(out + 1, top)
    tl.store(out + 2, new_w)
    tl.store(out + 3, new_h)


def update_box(
    found: torch.Tensor, box: torch.Tensor, frame_size: tuple[int, int], factor: float, margin: float
) -> torch.Tensor:
    """The target's box in the frame from its box in the crop, clipped to the frame.

    Args:
        found: (B,4) float32, cxcywh in units of the crop, as `decode` gives it.
        box: (B,4) float64, xywh in pixels, the box that the crop was taken around.
        frame_size: height and width of the frame, pixels.
        factor: side of the crop over sqrt(w * h) of `box`.
        margin: pixels that stay in the frame, and the least width and height.

    Returns:
        (B,4) float64, xywh in pixels. NaN stays NaN.
    """
    out = torch.empty_like(box, memory_format=torch.contiguous_format)
    with torch.cuda.device_of(box):
        _update_box[(box.shape[0],)](
            found.contiguous(), box.contiguous(), out, *frame_size, float(factor), float(margin), num_warps=1,
            # Fused multiply-add would round the side differently from the crop's.
            enable_fp_fusion=False, **dependent_launch.options(box.device),
        )  # fmt: skip
    return out
