"""From the head's maps to the box at the best cell, one program per batch element."""

import torch
import triton
import triton.language as tl

from . import dependent_launch
from .boxes import best_cell
from .dependent_launch import wait_for_inputs


@triton.jit
def _decode(
    score_map, size_map, offset_map, window, box, score, F: tl.constexpr, BLOCK: tl.constexpr, WINDOW: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    wait_for_inputs(PDL)
    batch = tl.program_id(0)
    cells = tl.arange(0, BLOCK)
    mask = cells < F * F
    response = tl.load(score_map + batch * F * F + cells, mask=mask, other=float("-inf")).to(tl.float32)
    if WINDOW:
        # Beyond the map the response stays -inf: the window reads as one there, not zero.
        response *= tl.load(window + cells, mask=mask, other=1.0).to(tl.float32)
    best = best_cell(response, cells, mask, F)
    plane = 2 * batch * F * F + best
    x = ((best % F) + tl.load(offset_map + plane).to(tl.float32)) / F
    y = ((best // F) + tl.load(offset_map + plane + F * F).to(tl.float32)) / F
    tl.store(box + batch * 4, x)
    tl.store(box + batch * 4 + 1, y)
    tl.store(box + batch * 4 + 2, tl.load(size_map + plane).to(tl.float32))
    tl.store(box + batch * 4 + 3, tl.load(size_map + plane + F * F).to(tl.float32))
    tl.store(score + batch, tl.load(score_map + batch * F * F + best).to(tl.float32))


def decode(
    score_map: torch.Tensor, size_map: torch.Tensor, offset_map: torch.Tensor, window: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The box at the best cell of the (windowed) score map.

    Args:
        score_map (B,1,F,F), size_map (B,2,F,F), offset_map (B,2,F,F): float32, float16 or bfloat16.
        window: (F,F), multiplies the score before the arg-max; None for none.

    Returns:
        box (B,4) float32, cxcywh in units of the crop: ((column + offset) / F, (row + offset) / F, size); score (B,)
        float32, without the window. The first cell in row-major order wins a tie.
    """
    batch, grid = score_map.shape[0], score_map.shape[-1]
    box = score_map.new_empty(batch, 4, dtype=torch.float32)
    score = score_map.new_empty(batch, dtype=torch.float32)
    with torch.cuda.device_of(score_map):
        _decode[(batch,)](
            score_map.contiguous(), size_map.contiguous(), offset_map.contiguous(),
            None if window is None else window.contiguous(), box, score,
            F=grid, BLOCK=triton.next_power_of_2(grid * grid), WINDOW=window is not None,
            enable_fp_fusion=True, **dependent_launch.options(score_map.device),
        )  # fmt: skip
    return box, score
