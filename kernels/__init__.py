"""Triton kernels: tensors in, tensors out, no dispatch, no gradients. `unsupported_reason` says where none can run.

The functions here trust their arguments: `ostrack_fast.ops` checks shapes and dtypes and chooses the backend.
"""

import functools

import torch
import triton

from .attention import HEAD_DIMS, attention, attention_backward
from .conv3x3 import Conv3x3
from .crop import crop
from .decode import decode
from .eliminate import MAX_CANDIDATES, eliminate
from .frame_tail import FrameTail
from .gemm import Workspace
from .linear import Linear
from .restore import MAX_CHANNELS, restore

__all__ = [
    "HEAD_DIMS",
    "MAX_BATCH",
    "MAX_CANDIDATES",
    "MAX_CHANNELS",
    "MAX_GRID",
    "MAX_TOKENS",
    "MAX_WEIGHTS",
    "Conv3x3",
    "FrameTail",
    "Linear",
    "Workspace",
    "attention",
    "attention_backward",
    "crop",
    "decode",
    "dtype_reason",
    "eliminate",
    "range_reason",
    "restore",
    "unsupported_reason",
]

MAX_TOKENS = 1024
MAX_BATCH = 65535  # third dimension of a CUDA grid
MAX_GRID = 64
MAX_WEIGHTS = 2**31 - 1  # offsets of 32 bits


@functools.cache
def unsupported_reason(device: torch.device) -> str | None:
    if device.type == "cpu" and triton.knobs.runtime.interpret:
        return None
    if device.type != "cuda":
        return f"Triton kernels need a CUDA device, the tensors are on {device}"
    if torch.version.hip is not None:
        return "these kernels are tested for NVIDIA GPUs only"
    capability = torch.cuda.get_device_capability(device)
    if capability < (8, 0):
        return "Triton needs compute capability 8.0 or newer, this GPU has {}.{}".format(*capability)
    return None


def dtype_reason(*dtypes: torch.dtype) -> str | None:
    """Why the kernels that compute, rather than move numbers about, cannot take these dtypes."""
    other = [str(dtype) for dtype in dtypes if dtype not in (torch.float32, torch.float16, torch.bfloat16)]
    return f"float32, float16 or bfloat16 needed, got {', '.join(other)}" if other else None


def range_reason(what: str, value: int, most: int) -> str | None:
    return None if 1 <= value <= most else f"{what} of 1 to {most} needed, is {value}"
