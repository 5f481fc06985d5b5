"""The ops in plain PyTorch: the specification, what runs on any device, and what kernels are tested against.

Of any op, `OPS[name].reference` is what it was declared with.
"""

from __future__ import annotations

from torch import Tensor

from .attention import attention_backward, attention_map, candidate_score, cross_attention
from .attention import reference as attention_with_lse
from .crop import IMAGE_MEAN, IMAGE_STD, crop_pixels, crop_window
from .crop import reference as crop
from .decode import best_cell
from .decode import reference as decode
from .eliminate import ranking
from .eliminate import reference as eliminate
from .layers.conv3x3 import Conv3x3
from .layers.linear import Linear
from .restore import reference as restore

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
    "crop",
    "crop_pixels",
    "crop_window",
    "cross_attention",
    "decode",
    "eliminate",
    "ranking",
    "restore",
]


def attention(qkv: Tensor, template_mask: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """Multi-head attention and the score of every candidate; see `ostrack_fast.ops.attention`."""
    return cross_attention(qkv[:, :, 0], qkv[:, :, 1:], template_mask)
