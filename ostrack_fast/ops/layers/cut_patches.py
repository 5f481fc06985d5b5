"""Images cut into the patches that a ViT embeds."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from .. import native
from ..registry import forced_backend
from ..tensors import check_no_derivative, describe


def cut_patches(patch: int, device: torch.device) -> Callable[[Tensor], Tensor]:
    """A function that cuts images (B,C,H,W) on the device into square patches, row by row: (B,H/P*W/P,C*P*P).

    Args:
        patch: P, side of a patch in pixels, which divides H and W.

    It raises ValueError for images of another shape. It carries no gradient.
    """
    compiled = forced_backend() in (None, "native") and native.unsupported_reason("patches", device) is None
    return partial(_cut, _native if compiled else _reference, patch)


def _cut(copy: Callable[[Tensor, int], Tensor], patch: int, image: Tensor) -> Tensor:
    check_no_derivative("cut_patches", image)
    if image.dim() != 4 or image.shape[2] % patch or image.shape[3] % patch or not image.is_floating_point():
        raise ValueError(f"image must be float (B,C,H,W) with H and W multiples of {patch}, is {describe(image)}")
    return copy(image, patch)


def _reference(image: Tensor, patch: int) -> Tensor:
    batch, channels, height, width = image.shape
    cut = image.view(batch, channels, height // patch, patch, width // patch, patch).permute(0, 2, 4, 1, 3, 5)
    return cut.reshape(batch, height // patch * (width // patch), channels * patch * patch)


def _native(image: Tensor, patch: int) -> Tensor:
    batch, channels, height, width = image.shape
    patches = image.new_empty(batch, height // patch * (width // patch), channels, patch, patch)
    native.call("patches", image.device, native.dense(image), patches)
    return patches.flatten(2)
