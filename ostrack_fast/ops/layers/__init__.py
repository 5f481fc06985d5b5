"""What a frozen network is built of: layers with prepacked weights, on the backend that was chosen for each.

Layers carry no gradient. With autocast or a lower float32 precision around them they compute as they were built to.
"""

from __future__ import annotations

import torch

from .. import native
from ..native import result_dtype
from .attention import QueryAttention, cross_attention
from .conv3x3 import conv3x3
from .crop_patches import CropPatches, crop_patches
from .cut_patches import cut_patches
from .frame_tail import FrameTail, frame_tail
from .head_maps import head_maps
from .kinds import Activation, Layer
from .linear import linear, linear_op
from .restore_conv3x3 import restore_conv3x3

__all__ = [
    "Activation",
    "CropPatches",
    "FrameTail",
    "Layer",
    "QueryAttention",
    "conv3x3",
    "crop_patches",
    "cross_attention",
    "cut_patches",
    "fast_bfloat16",
    "frame_tail",
    "head_maps",
    "linear",
    "restore_conv3x3",
    "result_dtype",
    "why_no_int8",
    "why_slow_in_half",
]


def why_no_int8(device: torch.device) -> str | None:
    """Why int8 layers cannot run on this device, or None."""
    weight = torch.empty(1, 1, dtype=torch.float32, device=device)
    return linear_op.unsupported_reason("native", weight=weight, dtype=torch.int8)


def fast_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 faster than float32."""
    return native.has_cpu_feature("avx512_bf16") or native.has_cpu_feature("amx_bf16")


def why_slow_in_half(dtype: torch.dtype) -> str | None:
    """Why layers of a half-precision compute dtype are slower than float32 ones on this CPU, or None."""
    if dtype == torch.bfloat16 and fast_bfloat16():
        return None
    weight = torch.empty(1, 1, dtype=torch.float32, device="cpu")
    return linear_op.unsupported_reason("native", weight=weight, dtype=dtype)
