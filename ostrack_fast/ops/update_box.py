"""From the box found in the crop to the target's box in the frame."""

from __future__ import annotations

from math import inf

import torch
from torch import Tensor

from . import native
from .registry import Backend, Op, triton_kernel, triton_kernels
from .tensors import Seeded, check_one_device, describe


def _check(found: Tensor, box: Tensor, frame_size: tuple[int, int], factor: float, margin: float) -> None:
    if found.dim() != 2 or found.shape[1] != 4 or found.shape != box.shape or box.dtype != torch.float64:
        raise ValueError(f"found (B,4) and float64 box (B,4) needed, got {describe(found)} and {describe(box)}")
    if not found.is_floating_point():
        raise ValueError(f"found must be float, got {describe(found)}")
    if len(frame_size) != 2 or not min(frame_size) > 0 or not 0 < factor < inf or not 0 <= margin < inf:
        raise ValueError(f"frame_size={frame_size} and factor={factor} must be positive, margin={margin} not negative")
    check_one_device(found=found, box=box)


def _outputs(found: Tensor, box: Tensor, frame_size: tuple[int, int], factor: float, margin: float) -> Tensor:
    return box.new_empty(box.shape)


def reference(found: Tensor, box: Tensor, frame_size: tuple[int, int], factor: float, margin: float) -> Tensor:
    """From what `decode` found to the target's box in the frame, clipped; see `ostrack_fast.ops.update_box`."""
    side = (box[:, 2:].prod(1, keepdim=True).sqrt() * factor).ceil()
    centre, extent = (found.double() * side).split(2, dim=1)
    corner = box[:, :2] + 0.5 * box[:, 2:] - 0.5 * side + centre - 0.5 * extent
    edge = box.new_tensor(frame_size).flip(0)
    low = corner.clamp(min=0).minimum(edge - margin)
    high = (corner + extent).clamp(min=margin).minimum(edge)
    return torch.cat((low, (high - low).clamp(min=margin)), dim=1)


def _native(found: Tensor, box: Tensor, frame_size: tuple[int, int], factor: float, margin: float) -> Tensor:
    moved = _outputs(found, box, frame_size, factor, margin)
    native.call("update_box", box.device, native.dense(found), native.dense(box), moved, *frame_size, factor, margin)
    return moved


def _native_unless(found: Tensor, box: Tensor, frame_size: tuple[int, int], factor: float, margin: float) -> str | None:
    return None if found.dtype == torch.float32 else f"found must be float32, is {found.dtype}"


def _triton(found: Tensor, box: Tensor, frame_size: tuple[int, int], factor: float, margin: float) -> Tensor:
    return triton_kernel("update_box")(found, box, frame_size, factor, margin)


def _triton_unless(found: Tensor, box: Tensor, frame_size: tuple[int, int], factor: float, margin: float) -> str | None:
    if found.dtype != torch.float32:
        return f"found must be float32, is {found.dtype}"
    kernels = triton_kernels()
    return kernels.range_reason("batch", box.shape[0], kernels.MAX_BATCH)


def _example(dtype: torch.dtype, device: torch.device, batch: int) -> tuple:
    random = Seeded(batch, device)
    # `found` is float32 in whatever dtype the network runs: decode says so.
    return random.uniform(batch, 4), 1 + 50 * random.uniform(batch, 4, dtype=torch.float64), (90, 70), 4.0, 10.0


update_box_op = Op(
    "update_box(Tensor found, Tensor box, SymInt[] frame_size, float factor, float margin) -> Tensor",
    check=_check,
    outputs=_outputs,
    reference=reference,
    backends={"native": Backend(_native, _native_unless), "triton": Backend(_triton, _triton_unless)},
    sizes={"small": [(2,)], "typical": [(1,)], "edge": [(1,), (33,), (70,)]},
    example=_example,
)


def update_box(found: Tensor, box: Tensor, frame_size: tuple[int, int], factor: float, margin: float) -> Tensor:
    """From what `decode` found in the crops around `box` to the targets' boxes in the frame.

    Args:
        found: (B,4) float cxcywh in units of the crop. box: (B,4) float64 xywh, pixels. frame_size: (h,w).
        factor: of `crop`. margin: pixels of a box that stay inside the frame (upstream's `clip_box`).

    Returns:
        (B,4) float64 xywh, pixels; NaN where `found` is. No gradient.
    """
    return update_box_op(found, box, frame_size, factor, margin)
