"""The search crop in the order in which patch embedding reads it, where a kernel writes it so."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from ..crop import IMAGE_MEAN, IMAGE_STD, crop_op
from ..registry import forced_backend, triton_kernels

CropPatches = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def crop_patches(factor: float, size: int, patch: int, dtype: torch.dtype, device: torch.device) -> CropPatches | None:
    """`ops.crop` without the copy that cuts its result into a ViT's patches.

    Args:
        factor, size, dtype: as for `ops.crop`. patch: P, side of the ViT's patches.

    Returns:
        A function of frame (h,w,3) uint8 and box (B,4) float64 on the device, which returns patches (B,(Z/P)^2,3*P*P)
        and the scale. None where Triton's kernels cannot run, or another backend is asked for.
    """
    frame = torch.empty(8, 8, 3, dtype=torch.uint8, device=device)
    box = torch.empty(1, 4, dtype=torch.float64, device=device)
    if forced_backend() not in (None, "triton") or crop_op.unsupported_reason(
        "triton", frame, box, factor, size, dtype
    ):
        return None
    how = {"factor": factor, "size": size, "dtype": dtype, "mean": IMAGE_MEAN, "std": IMAGE_STD, "tile": patch}
    return partial(triton_kernels().crop, **how)
