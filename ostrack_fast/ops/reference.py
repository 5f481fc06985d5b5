"""Every op in plain PyTorch: the specification, what runs on any device, and what kernels are tested against."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .attention import attention_backward, attention_map, candidate_score, cross_attention
from .attention import reference as attention_with_lse
from .crop import IMAGE_MEAN, IMAGE_STD, crop_pixels, crop_window
from .decode import best_cell
from .eliminate import ranking
from .layers.conv3x3 import Conv3x3
from .layers.linear import Linear
from .registry import OPS

__all__ = [
    "IMAGE_MEAN",
    "IMAGE_STD",
    "Conv3x3",
    "Linear",
    "attention",
    "attention_backward",
    "attention_map",
    "attention_with_lse",
    "best_cell",
    "candidate_score",
    "crop_pixels",
    "crop_window",
    "cross_attention",
    "ranking",
]


def __getattr__(name: str) -> Any:
    """`reference.crop` and so on: the reference that an op was declared with."""
    if name in OPS:
        return OPS[name].reference
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def attention(qkv: Tensor, template_mask: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """Multi-head attention and the score of every candidate; see `ostrack_fast.ops.attention`."""
    return cross_attention(qkv[:, :, 0], qkv[:, :, 1:], template_mask)
