"""Triton kernels: tensors in, tensors out, no dispatch. `supports` says beforehand whether an op can run.

The functions here trust their arguments: `ostrack_fast.ops` checks shapes and dtypes and chooses the backend.
"""

import functools

import torch
import triton

from .advance import advance
from .attention import attention, attention_backward, attention_with_lse
from .conv3x3 import Conv3x3
from .crop import crop
from .decode import decode
from .eliminate import MAX_CANDIDATES, eliminate, eliminate_backward
from .linear import Linear
from .product import Workspace
from .restore import MAX_CHANNELS, restore, restore_backward

__all__ = [
    "Conv3x3",
    "Linear",
    "Workspace",
    "advance",
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
MAX_WEIGHTS = 2**31 - 1  # offsets of 32 bits


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


def _dtype_reason(*dtypes: torch.dtype) -> str | None:
    """Why the kernels that compute, rather than move numbers about, cannot take these dtypes."""
    other = [str(dtype) for dtype in dtypes if dtype not in (torch.float32, torch.float16, torch.bfloat16)]
    return f"float32, float16 or bfloat16 needed, got {', '.join(other)}" if other else None


def _range_reason(what: str, value: int, most: int) -> str | None:
    return None if 1 <= value <= most else f"{what} of 1 to {most} needed, is {value}"


def _attention_reason(qkv: torch.Tensor, template_mask: torch.Tensor | None = None) -> str | None:
    batch, tokens, _, _, width = qkv.shape
    if width not in HEAD_DIMS:
        return f"head dimension must be one of {HEAD_DIMS}, is {width}"
    return (
        _dtype_reason(qkv.dtype)
        or _range_reason("number of tokens", tokens, MAX_TOKENS)
        or _range_reason("batch", batch, MAX_BATCH)
        or (template_mask is not None and _range_reason("number of template tokens", template_mask.shape[-1], tokens))
        or None
    )


def _eliminate_reason(tokens: torch.Tensor, score: torch.Tensor, ids: torch.Tensor, keep: int) -> str | None:
    if score.dtype != torch.float32:
        return f"score must be float32, is {score.dtype}"
    return _range_reason("number of candidates", score.shape[1], MAX_CANDIDATES) or _range_reason(
        "batch", tokens.shape[0], MAX_BATCH
    )


def _restore_reason(
    tokens: torch.Tensor,
    ids: torch.Tensor,
    grid: int,
    norm_weight: torch.Tensor | None = None,
    norm_bias: torch.Tensor | None = None,
    eps: float = 1e-6,
    channels_last: bool = False,
    dtype: torch.dtype | None = None,
) -> str | None:
    if norm_weight is not None and tokens.shape[2] > MAX_CHANNELS:
        return f"LayerNorm over up to {MAX_CHANNELS} channels, are {tokens.shape[2]}"
    if norm_weight is not None and tokens.dtype == torch.float64:
        return "the fused LayerNorm computes in float32, tokens are float64"
    if (norm_weight is None) != (norm_bias is None):
        return "LayerNorm needs both weight and bias, or neither"
    converts = dtype not in (None, tokens.dtype)
    if converts and (reason := _dtype_reason(tokens.dtype, dtype)):
        return f"map of another dtype than the tokens: {reason}"
    if norm_weight is not None and _needs_gradient(tokens, norm_weight, norm_bias):
        return "the fused LayerNorm has no backward pass"
    if (channels_last or converts) and _needs_gradient(tokens):
        return "a map of another layout or dtype than the tokens' has no backward pass"
    return (
        _range_reason("grid side", grid, MAX_GRID)
        or _range_reason("number of tokens", tokens.shape[1], grid * grid)
        or _range_reason("batch", tokens.shape[0], MAX_BATCH)
    )


def _crop_reason(
    frame: torch.Tensor, box: torch.Tensor, factor: float, size: int, dtype: torch.dtype = torch.float32
) -> str | None:
    if frame.dtype != torch.uint8 or box.dtype != torch.float64:
        return f"frame must be uint8 and box float64, are {frame.dtype} and {box.dtype}"
    if box.device != frame.device:
        return f"box must be where the frame is, {frame.device}, is on {box.device}"
    return _dtype_reason(dtype) or _range_reason("batch", box.shape[0], MAX_BATCH)


def _decode_reason(
    score_map: torch.Tensor,
    size_map: torch.Tensor,
    offset_map: torch.Tensor,
    window: torch.Tensor | None = None,
) -> str | None:
    maps = (score_map, size_map, offset_map)
    if _needs_gradient(*maps):
        return "decode has no backward pass"
    return (
        _dtype_reason(*(m.dtype for m in maps))
        or _range_reason("map side", score_map.shape[-1], MAX_GRID)
        or _range_reason("batch", score_map.shape[0], MAX_BATCH)
    )


def _weight_reason(weight: torch.Tensor, dtype: torch.dtype) -> str | None:
    if _needs_gradient(weight):
        return "weights are frozen, there is no backward pass"
    return _dtype_reason(dtype) or _range_reason("number of weights", weight.numel(), MAX_WEIGHTS)


def _linear_reason(
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    norm_eps: float | None = None,
    activation: str = "none",
    dtype: torch.dtype = torch.float32,
) -> str | None:
    return _weight_reason(weight, dtype)


def _conv3x3_reason(
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    groups: int = 1,
    activation: str = "relu",
    dtype: torch.dtype = torch.float32,
) -> str | None:
    return _weight_reason(weight, dtype)


def _advance_reason(
    found: torch.Tensor, box: torch.Tensor, frame_size: tuple[int, int], factor: float, margin: float
) -> str | None:
    if found.dtype != torch.float32 or box.dtype != torch.float64:
        return f"found must be float32 and box float64, are {found.dtype} and {box.dtype}"
    if box.device != found.device:
        return f"box must be where found is, {found.device}, is on {box.device}"
    return _range_reason("batch", box.shape[0], MAX_BATCH)


_REASONS = {
    "advance": _advance_reason,
    "attention": _attention_reason,
    "attention_backward": _attention_reason,
    "eliminate": _eliminate_reason,
    "restore": _restore_reason,
    "linear": _linear_reason,
    "conv3x3": _conv3x3_reason,
    "crop": _crop_reason,
    "decode": _decode_reason,
}


def supports(op: str, **arguments: object) -> str | None:
    """Why the op cannot run here with these arguments (its own, by name), in words; None when it can."""
    if op not in _REASONS:
        return f"no Triton kernel for {op!r}"
    tensors = [value for value in arguments.values() if isinstance(value, torch.Tensor)]
    return _device_reason(tensors[0].device) or _REASONS[op](**arguments)
