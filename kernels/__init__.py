"""Triton kernels: tensors in, tensors out, no dispatch. `supports` says beforehand whether an op can run.

The functions here trust their arguments: `ostrack_fast.ops` checks shapes and dtypes and chooses the backend.
"""

import functools

import torch
import triton

from .attention import attention, attention_backward, attention_with_lse
from .crop import crop
from .decode import decode
from .eliminate import MAX_CANDIDATES, eliminate, eliminate_backward
from .restore import MAX_CHANNELS, restore, restore_backward

__all__ = [
    "attention",
    "attention_backward",
    "attention_with_lse",
    "crop",
    "decode",
    "eliminate",
    "eliminate_backward",
    "restore",
    "restore_backward",
    "supports",
]

HEAD_DIMS = (32, 64, 96, 128)
MAX_TOKENS = 1024
MAX_BATCH = 65535  # third dimension of a CUDA grid
MAX_GRID = 64


@functools.cache
def _device_reason(device: torch.device) -> str | None:
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


def _needs_gradient(*tensors: torch.Tensor) -> bool:
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def _attention_reason(qkv: torch.Tensor, template_mask: torch.Tensor | None = None) -> str | None:
    if qkv.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return f"qkv must be float32, float16 or bfloat16, is {qkv.dtype}"
    if qkv.shape[4] not in HEAD_DIMS:
        return f"head dimension must be one of {HEAD_DIMS}, is {qkv.shape[4]}"
    if not 1 <= qkv.shape[1] <= MAX_TOKENS:
        return f"1 to {MAX_TOKENS} tokens, are {qkv.shape[1]}"
    if not 1 <= qkv.shape[0] <= MAX_BATCH:
        return f"batch of 1 to {MAX_BATCH}, is {qkv.shape[0]}"
    if template_mask is not None and not 1 <= template_mask.shape[-1] <= qkv.shape[1]:
        return f"1 to {qkv.shape[1]} template tokens, are {template_mask.shape[-1]}"
    return None


def _eliminate_reason(tokens: torch.Tensor, score: torch.Tensor, ids: torch.Tensor, keep: int) -> str | None:
    if not 1 <= score.shape[1] <= MAX_CANDIDATES:
        return f"1 to {MAX_CANDIDATES} candidates, are {score.shape[1]}"
    if score.dtype != torch.float32:
        return f"score must be float32, is {score.dtype}"
    if not 1 <= tokens.shape[0] <= MAX_BATCH:
        return f"batch of 1 to {MAX_BATCH}, is {tokens.shape[0]}"
    return None


def _restore_reason(
    tokens: torch.Tensor,
    ids: torch.Tensor,
    grid: int,
    norm_weight: torch.Tensor | None = None,
    norm_bias: torch.Tensor | None = None,
    eps: float = 1e-6,
) -> str | None:
    if not 1 <= grid <= MAX_GRID:
        return f"grid side of 1 to {MAX_GRID}, is {grid}"
    if not 1 <= tokens.shape[1] <= grid * grid:
        return f"1 to {grid * grid} tokens, are {tokens.shape[1]}"
    if not 1 <= tokens.shape[0] <= MAX_BATCH:
        return f"batch of 1 to {MAX_BATCH}, is {tokens.shape[0]}"
    if norm_weight is not None and tokens.shape[2] > MAX_CHANNELS:
        return f"LayerNorm over up to {MAX_CHANNELS} channels, are {tokens.shape[2]}"
    if norm_weight is not None and tokens.dtype == torch.float64:
        return "the fused LayerNorm computes in float32, tokens are float64"
    if (norm_weight is None) != (norm_bias is None):
        return "LayerNorm needs both weight and bias, or neither"
    if norm_weight is not None and _needs_gradient(tokens, norm_weight, norm_bias):
        return "the fused LayerNorm has no backward pass"
    return None


def _crop_reason(
    frame: torch.Tensor, box: torch.Tensor, factor: float, size: int, dtype: torch.dtype = torch.float32
) -> str | None:
    if frame.dtype != torch.uint8 or box.dtype != torch.float64:
        return f"frame must be uint8 and box float64, are {frame.dtype} and {box.dtype}"
    if dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return f"patch must be float32, float16 or bfloat16, is {dtype}"
    if box.device != frame.device:
        return f"box must be where the frame is, {frame.device}, is on {box.device}"
    if not 1 <= box.shape[0] <= MAX_BATCH:
        return f"batch of 1 to {MAX_BATCH}, is {box.shape[0]}"
    return None


def _decode_reason(
    score_map: torch.Tensor,
    size_map: torch.Tensor,
    offset_map: torch.Tensor,
    window: torch.Tensor | None = None,
) -> str | None:
    maps = (score_map, size_map, offset_map)
    if any(m.dtype not in (torch.float32, torch.float16, torch.bfloat16) for m in maps):
        return f"maps must be float32, float16 or bfloat16, are {[str(m.dtype) for m in maps]}"
    if not 1 <= score_map.shape[-1] <= MAX_GRID:
        return f"map side of 1 to {MAX_GRID}, is {score_map.shape[-1]}"
    if _needs_gradient(*maps):
        return "decode has no backward pass"
    return None


_REASONS = {
    "attention": _attention_reason,
    "eliminate": _eliminate_reason,
    "restore": _restore_reason,
    "crop": _crop_reason,
    "decode": _decode_reason,
}


def supports(op: str, **arguments: object) -> str | None:
    """Why the op cannot run here with these arguments (its own, by name), in words; None when it can."""
    if op not in _REASONS:
        return f"no Triton kernel for {op!r}"
    tensors = [value for value in arguments.values() if isinstance(value, torch.Tensor)]
    return _device_reason(tensors[0].device) or _REASONS[op](**arguments)
