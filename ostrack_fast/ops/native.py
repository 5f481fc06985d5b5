"""The compiled C++ and CUDA kernels: tensors in, tensors out, over the C ABI of `csrc/ostrack_fast.h`.

The functions take what `ostrack_fast.ops` has checked (shapes that agree, one device) and make their inputs dense;
they have no backward pass. `supports` says in words why a kernel cannot take a call.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import native_linear
from .native_linear import Conv3x3 as Conv3x3
from .native_linear import Linear as Linear
from .reference import IMAGE_MEAN, IMAGE_STD

try:
    from .. import _C
except ImportError as error:
    _C = None  # type: ignore[assignment]
    _missing = (
        f"the compiled module ostrack_fast._C cannot be imported ({error}) from {Path(__file__).parents[1]}: "
        "install the package with pip, and if this is a source checkout, with pip install -e ."
    )

_DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
_MEAN = torch.tensor(IMAGE_MEAN, dtype=torch.float32)
_INV_STD = torch.tensor([1 / value for value in IMAGE_STD], dtype=torch.float32)
_CUDA_HEAD_DIMS = (32, 64, 96, 128)
_MAX_GRID = 4096
_MAX_CROP = 16384


def build_info() -> dict[str, Any]:
    """Version, compilers, CUDA architectures and detected CPU features of the compiled module.

    Raises:
        RuntimeError: the module is not built.
    """
    if _C is None:
        raise RuntimeError(_missing)
    return _C.build_info()


@cache
def _cuda_problem(device: int) -> str | None:
    """Why the compiled CUDA kernels cannot run on this device, or None."""
    count, reason = _C.cuda_device_count()
    if count <= device:
        return f"the CUDA runtime built into ostrack_fast._C sees {count} devices ({reason})"
    major, minor = torch.cuda.get_device_capability(device)
    built = _C.build_info()["cuda_architectures"]
    real = [int(name.removesuffix("-real")) for name in built if not name.endswith("-virtual")]
    virtual = [int(name.removesuffix("-virtual")) for name in built if not name.endswith("-real")]
    # Machine code runs on its own major generation from its minor number on; PTX on everything newer.
    if any(arch // 10 == major and arch % 10 <= minor for arch in real) or any(
        arch <= 10 * major + minor for arch in virtual
    ):
        return None
    return f"built for CUDA architectures {' '.join(built)}, not for this device's {major}.{minor}"


def supports(op: str, **arguments: Any) -> str | None:
    """Why the compiled kernel of `op` cannot take these arguments (named as in `ostrack_fast.ops`), or None."""
    if _C is None:
        return _missing
    tensors = [value for value in arguments.values() if isinstance(value, Tensor)]
    device = tensors[0].device
    if device.type not in ("cpu", "cuda"):
        return f"no kernels for device {device.type}"
    if not hasattr(_C, f"{device.type}_{op}"):
        return f"no compiled {device.type} kernel for {op} in this build"
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return "the compiled kernels have no backward pass"
    if device.type == "cuda":
        problem = _cuda_problem(device.index or 0)
        if problem is not None:
            return problem
    return _REASONS[op](device, **arguments)


def _float_reason(dtype: torch.dtype) -> str | None:
    return None if dtype in _DTYPES else f"no kernel for {dtype}; only float32, float16 and bfloat16"


def _attention_reason(device: torch.device, qkv: Tensor, template_mask: Tensor | None = None) -> str | None:
    width = qkv.shape[-1]
    if device.type == "cpu":
        return _float_reason(qkv.dtype) if width <= 512 else f"head dimension of at most 512, is {width}"
    if width not in _CUDA_HEAD_DIMS:
        return f"head dimension must be one of {_CUDA_HEAD_DIMS}, is {width}"
    if qkv.dtype == torch.bfloat16 and torch.cuda.get_device_capability(device) < (8, 0):
        return "bfloat16 needs compute capability 8.0 or newer"
    return _float_reason(qkv.dtype)


def _eliminate_reason(device: torch.device, tokens: Tensor, score: Tensor, ids: Tensor, keep: int) -> str | None:
    if score.dtype != torch.float32:
        return f"score must be float32, is {score.dtype}"
    return None if tokens.element_size() in (2, 4, 8) else f"no kernel for {tokens.dtype}"


def _restore_reason(
    device: torch.device, tokens: Tensor, ids: Tensor, grid: int, dtype: torch.dtype | None = None, **_: Any
) -> str | None:
    if (dtype or tokens.dtype).itemsize not in (2, 4, 8):
        return f"no kernel for {dtype or tokens.dtype}"
    return None if grid <= _MAX_GRID else f"grid side of at most {_MAX_GRID}, is {grid}"


def _crop_reason(
    device: torch.device, frame: Tensor, box: Tensor, factor: float, size: int, dtype: torch.dtype = torch.float32
) -> str | None:
    return _float_reason(dtype) if size <= _MAX_CROP else f"crop side of at most {_MAX_CROP}, is {size}"


def _decode_reason(
    device: torch.device, score_map: Tensor, size_map: Tensor, offset_map: Tensor, window: Tensor | None = None
) -> str | None:
    if not score_map.dtype == size_map.dtype == offset_map.dtype:
        return f"the maps must have one dtype, have {score_map.dtype}, {size_map.dtype} and {offset_map.dtype}"
    grid = score_map.shape[-1]
    return _float_reason(score_map.dtype) if grid <= _MAX_GRID else f"map side of at most {_MAX_GRID}, is {grid}"


def _advance_reason(
    device: torch.device, found: Tensor, box: Tensor, frame_size: tuple[int, int], factor: float, margin: float
) -> str | None:
    return None if found.dtype == torch.float32 else f"found must be float32, is {found.dtype}"


_REASONS: dict[str, Callable[..., str | None]] = {
    "advance": _advance_reason,
    "attention": _attention_reason,
    "conv3x3": native_linear.reason,
    "crop": _crop_reason,
    "decode": _decode_reason,
    "eliminate": _eliminate_reason,
    "linear": native_linear.reason,
    "restore": _restore_reason,
    "restore_conv3x3": native_linear.reason,
}


def _call(op: str, tensor: Tensor, *arguments: Any) -> None:
    """Runs the kernel for the tensor's device, on its current stream or on as many threads as PyTorch uses."""
    if tensor.is_cuda:
        with torch.cuda.device(tensor.device):
            getattr(_C, "cuda_" + op)(*arguments, torch.cuda.current_stream().cuda_stream)
    else:
        getattr(_C, "cpu_" + op)(*arguments, torch.get_num_threads())


def attention(qkv: Tensor, template_mask: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """See `ostrack_fast.ops.attention`."""
    return _attention(qkv, template_mask, None)


def attention_with_lse(qkv: Tensor, template_mask: Tensor | None = None) -> tuple[Tensor, Tensor | None, Tensor]:
    """`attention`, and the natural logarithm of every softmax denominator, (B,H,N) float32."""
    lse = torch.empty(qkv.shape[0], qkv.shape[3], qkv.shape[1], dtype=torch.float32, device=qkv.device)
    return *_attention(qkv, template_mask, lse), lse


def _attention(qkv: Tensor, template_mask: Tensor | None, lse: Tensor | None) -> tuple[Tensor, Tensor | None]:
    qkv = qkv.contiguous()
    batch, tokens, _, heads, width = qkv.shape
    out = qkv.new_empty(batch, tokens, heads * width)
    if qkv.is_cpu:
        return out, _cpu_attention(qkv[:, :, 0], qkv[:, :, 1:], template_mask, out, lse)
    mask, score = _mask_and_score(template_mask, batch, tokens)
    if qkv.data_ptr() % 16:  # a slice of something larger: the kernel reads 16 bytes at a time
        qkv = qkv.clone()
    template = 0 if template_mask is None else template_mask.shape[-1]
    # Held in variables: freed before the launch, their memory could be handed out again.
    scratch, tickets = _cuda_workspace(batch, heads, tokens, template, qkv.device, mask is not None)
    _call(
        "attention",
        qkv,
        _DTYPES[qkv.dtype],
        qkv.data_ptr(),
        _pointer(mask),
        _mask_batch(mask),
        out.data_ptr(),
        _pointer(score),
        _pointer(lse),
        _pointer(scratch),
        _pointer(tickets),
        batch,
        tokens,
        heads,
        width,
        template,
    )
    return out, score


def cross_attention(
    q: Tensor, kv: Tensor, template_mask: Tensor | None = None, out: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """See `ostrack_fast.ops.layers.cross_attention`; on the CPU only."""
    q, kv = q.contiguous(), kv.contiguous()
    batch, queries, heads, width = q.shape
    if out is None:
        out = q.new_empty(batch, queries, heads * width)
    return out, _cpu_attention(q, kv, template_mask, out, None)


def _cpu_attention(
    q: Tensor, kv: Tensor, template_mask: Tensor | None, out: Tensor, lse: Tensor | None
) -> Tensor | None:
    """Queries (B,M,H,D) of keys and values (B,N,2,H,D), both with dense heads, into out (B,M,C) with dense rows."""
    batch, queries, heads, width = q.shape
    tokens = kv.shape[1]
    mask, score = _mask_and_score(template_mask, batch, tokens)
    _call(
        "attention",
        q,
        _DTYPES[q.dtype],
        q.data_ptr(),
        *q.stride()[:2],
        kv.data_ptr(),
        *kv.stride()[:2],
        _pointer(mask),
        _mask_batch(mask),
        out.data_ptr(),
        out.stride(0),
        _pointer(score),
        _pointer(lse),
        batch,
        queries,
        tokens,
        heads,
        width,
        0 if template_mask is None else template_mask.shape[-1],
    )
    return score


def _mask_and_score(template_mask: Tensor | None, batch: int, tokens: int) -> tuple[Tensor | None, Tensor | None]:
    """The mask as the kernels read it, and where the score goes; no mask where there is nothing to score."""
    if template_mask is None:
        return None, None
    score = torch.empty(batch, tokens - template_mask.shape[-1], dtype=torch.float32, device=template_mask.device)
    return template_mask.contiguous() if score.numel() else None, score


def _mask_batch(mask: Tensor | None) -> int:
    return mask.shape[0] if mask is not None and mask.dim() == 2 else 1


def _cuda_workspace(
    batch: int, heads: int, tokens: int, template: int, device: torch.device, scored: bool
) -> tuple[Tensor | None, Tensor | None]:
    """What the CUDA attention kernel adds the score up in: shares of any content, and counters that start at zero."""
    if not scored:
        return None, None
    shares = batch * heads * -(-template // 32) * (tokens - template)
    return (
        torch.empty(shares, dtype=torch.float32, device=device),
        torch.zeros(batch, dtype=torch.int32, device=device),
    )


def _pointer(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def eliminate(tokens: Tensor, score: Tensor, ids: Tensor, keep: int) -> tuple[Tensor, Tensor, Tensor]:
    """See `ostrack_fast.ops.eliminate`."""
    tokens, score, ids = tokens.contiguous(), score.contiguous(), ids.contiguous()
    batch, total, channels = tokens.shape
    search = score.shape[1]
    template = total - search
    out = tokens.new_empty(batch, template + keep, channels)
    kept = ids.new_empty(batch, keep)
    removed = ids.new_empty(batch, search - keep)
    _call(
        "eliminate",
        tokens,
        tokens.element_size(),
        tokens.data_ptr(),
        score.data_ptr(),
        ids.data_ptr(),
        out.data_ptr(),
        kept.data_ptr(),
        removed.data_ptr(),
        batch,
        template,
        search,
        keep,
        channels,
    )
    return out, kept, removed


def restore(
    tokens: Tensor,
    ids: Tensor,
    grid: int,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    eps: float = 1e-6,
    channels_last: bool = False,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """See `ostrack_fast.ops.restore`. What the kernels have no code for, PyTorch does before them."""
    batch, kept, channels = tokens.shape
    places = grid * grid
    dtype = dtype or tokens.dtype
    on_cpu_in_rows = channels_last and tokens.is_cpu and tokens.dtype in _DTYPES and dtype in _DTYPES
    if on_cpu_in_rows and norm_weight is not None and norm_bias is not None:
        tokens, ids = tokens.contiguous(), ids.contiguous()
        weight, bias = norm_weight.float().contiguous(), norm_bias.float().contiguous()
        rows = tokens.new_empty(batch, grid, grid, channels, dtype=dtype)
        pointers = tokens.data_ptr(), ids.data_ptr(), weight.data_ptr(), bias.data_ptr()
        sizes = batch, kept, channels, grid
        _call("restore_norm", tokens, _DTYPES[tokens.dtype], *pointers, eps, _DTYPES[dtype], rows.data_ptr(), *sizes)
        return rows.permute(0, 3, 1, 2)
    if norm_weight is not None and norm_bias is not None:
        wide = torch.promote_types(tokens.dtype, torch.float32)
        weight, bias = norm_weight.to(wide), norm_bias.to(wide)
        tokens = torch.nn.functional.layer_norm(tokens.to(wide), (channels,), weight, bias, eps)
    tokens, ids = tokens.to(dtype).contiguous(), ids.contiguous()
    if channels_last:
        rows = tokens.new_zeros(batch * places, channels)
        if batch > 1:
            ids = ids + torch.arange(0, batch * places, places, device=ids.device)[:, None]
        rows.index_copy_(0, ids.view(-1), tokens.view(-1, channels))
        return rows.view(batch, grid, grid, channels).permute(0, 3, 1, 2)
    out = tokens.new_empty(batch, channels, grid, grid)
    _call(
        "restore",
        tokens,
        tokens.element_size(),
        tokens.data_ptr(),
        ids.data_ptr(),
        out.data_ptr(),
        batch,
        kept,
        channels,
        grid,
    )
    return out


def crop(
    frame: Tensor, box: Tensor, factor: float, size: int, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """See `ostrack_fast.ops.crop`."""
    frame, box = frame.contiguous(), box.contiguous()
    batch = box.shape[0]
    patch = torch.empty(batch, 3, size, size, dtype=dtype, device=frame.device)
    scale = torch.empty(batch, dtype=torch.float64, device=frame.device)
    _call(
        "crop",
        frame,
        _DTYPES[dtype],
        frame.data_ptr(),
        frame.shape[0],
        frame.shape[1],
        box.data_ptr(),
        factor,
        _MEAN.data_ptr(),
        _INV_STD.data_ptr(),
        patch.data_ptr(),
        scale.data_ptr(),
        batch,
        size,
    )
    return patch, scale


def decode(
    score_map: Tensor, size_map: Tensor, offset_map: Tensor, window: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """See `ostrack_fast.ops.decode`; box and score are float32."""
    score_map, size_map, offset_map = score_map.contiguous(), size_map.contiguous(), offset_map.contiguous()
    if window is not None:
        window = window.to(torch.float32).contiguous()
    batch, grid = score_map.shape[0], score_map.shape[-1]
    box = torch.empty(batch, 4, dtype=torch.float32, device=score_map.device)
    best = torch.empty(batch, dtype=torch.float32, device=score_map.device)
    _call(
        "decode",
        score_map,
        _DTYPES[score_map.dtype],
        score_map.data_ptr(),
        size_map.data_ptr(),
        offset_map.data_ptr(),
        _pointer(window),
        box.data_ptr(),
        best.data_ptr(),
        batch,
        grid,
    )
    return box, best


def advance(found: Tensor, box: Tensor, frame_size: tuple[int, int], factor: float, margin: float) -> Tensor:
    """See `ostrack_fast.ops.advance`."""
    found, box = found.contiguous(), box.contiguous()
    moved = torch.empty_like(box)
    batch = box.shape[0]
    _call("advance", box, found.data_ptr(), box.data_ptr(), *frame_size, factor, margin, moved.data_ptr(), batch)
    return moved
