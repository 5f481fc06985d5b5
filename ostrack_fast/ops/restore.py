"""Search tokens back on their grid, with or without the final LayerNorm."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import native
from .registry import Backend, Op, triton_kernel, triton_kernels
from .tensors import Seeded, check_one_device, describe


def _check(
    tokens: Tensor,
    ids: Tensor,
    grid: int,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    eps: float = 1e-6,
    channels_last: bool = False,
    dtype: torch.dtype | None = None,
) -> None:
    if tokens.dim() != 3 or ids.shape != tokens.shape[:2] or ids.dtype != torch.int64 or tokens.shape[2] == 0:
        raise ValueError(f"tokens (B,K,C) and int64 ids (B,K) needed, got {describe(tokens)} and {describe(ids)}")
    if not tokens.is_floating_point() or not (dtype is None or dtype.is_floating_point):
        raise ValueError(f"tokens and map must be float, got {describe(tokens)} and dtype={dtype}")
    if grid < 1 or tokens.shape[1] > grid * grid:
        raise ValueError(f"{tokens.shape[1]} tokens do not fit a grid of {grid} x {grid}")
    norm = {"norm_weight": norm_weight, "norm_bias": norm_bias}
    for name, value in norm.items():
        if (value is None) != (norm_weight is None):
            raise ValueError("LayerNorm needs norm_weight and norm_bias, or neither: got one of them")
        if value is not None and (value.shape != tokens.shape[2:] or not value.is_floating_point()):
            raise ValueError(f"{name} must be float ({tokens.shape[2]},), got {describe(value)}")
    if not eps >= 0:
        raise ValueError(f"eps={eps} must not be negative")
    check_one_device(tokens=tokens, ids=ids, **norm)


def _check_values(tokens: Tensor, ids: Tensor, grid: int, *_: Any) -> None:
    if ids.numel():
        low, high = (end.item() for end in ids.aminmax())
        if low < 0 or high >= grid * grid:
            raise ValueError(f"ids must lie in [0, {grid * grid}) on a grid of {grid} x {grid}, reach {low} to {high}")


def _outputs(
    tokens: Tensor,
    ids: Tensor,
    grid: int,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    eps: float = 1e-6,
    channels_last: bool = False,
    dtype: torch.dtype | None = None,
) -> Tensor:
    batch, _, channels = tokens.shape
    if channels_last:
        return tokens.new_empty(batch, grid, grid, channels, dtype=dtype or tokens.dtype).permute(0, 3, 1, 2)
    return tokens.new_empty(batch, channels, grid, grid, dtype=dtype or tokens.dtype)


def reference(
    tokens: Tensor,
    ids: Tensor,
    grid: int,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    eps: float = 1e-6,
    channels_last: bool = False,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Put search tokens back on their grid; see `ostrack_fast.ops.restore`."""
    batch, _, channels = tokens.shape
    dtype = dtype or tokens.dtype
    if norm_weight is not None and norm_bias is not None:
        # In float64, because the square of a large float32 is not a float32.
        weight, bias = norm_weight.double(), norm_bias.double()
        tokens = torch.nn.functional.layer_norm(tokens.double(), (channels,), weight, bias, eps)
    full = tokens.new_zeros(batch, grid * grid, channels, dtype=dtype)
    full = full.scatter(1, ids[..., None].expand(-1, -1, channels), tokens.to(dtype))
    channels_last_map = full.view(batch, grid, grid, channels).permute(0, 3, 1, 2)
    return channels_last_map if channels_last else channels_last_map.contiguous()


def _save(ctx: Any, inputs: tuple, outputs: Tensor) -> None:
    tokens, ids, _, weight, bias, ctx.eps, *_ = inputs
    ctx.save_for_backward(tokens, ids, weight, bias)


def _gradient(ctx: Any, grad_map: Tensor | None) -> tuple:
    if grad_map is None:
        return (None,) * 8
    tokens, ids, weight, bias = ctx.saved_tensors
    grad = grad_map.flatten(2).transpose(1, 2).gather(1, ids[..., None].expand(-1, -1, tokens.shape[2]))
    if weight is None:
        return grad.to(tokens.dtype), *(None,) * 7
    shape, (x, w, b) = tokens.shape[2:], (each.double() for each in (tokens, weight, bias))
    _, mean, rstd = torch.ops.aten.native_layer_norm(x, shape, w, b, ctx.eps)
    wanted = [True, True, True]
    found = torch.ops.aten.native_layer_norm_backward(grad.double(), x, shape, mean, rstd, w, b, wanted)
    of_tokens, of_weight, of_bias = (g.to(t.dtype) for g, t in zip(found, (tokens, weight, bias), strict=True))
    return of_tokens, None, None, of_weight, of_bias, None, None, None


def _native(
    tokens: Tensor,
    ids: Tensor,
    grid: int,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    eps: float = 1e-6,
    channels_last: bool = False,
    dtype: torch.dtype | None = None,
) -> Tensor:
    out = _outputs(tokens, ids, grid, None, None, eps, channels_last, dtype)
    tokens, ids = native.dense(tokens), native.dense(ids)
    if tokens.is_cuda:
        native.call("restore", tokens.device, tokens, ids, out)
    else:
        norm = [None if each is None else native.dense(each.to(torch.float32)) for each in (norm_weight, norm_bias)]
        native.call("restore", tokens.device, tokens, ids, *norm, out, eps)
    return out


def _native_unless(
    tokens: Tensor,
    ids: Tensor,
    grid: int,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    eps: float = 1e-6,
    channels_last: bool = False,
    dtype: torch.dtype | None = None,
) -> str | None:
    dtype = dtype or tokens.dtype
    if grid > native.MAX_GRID:
        return f"grid side of at most {native.MAX_GRID}, is {grid}"
    if norm_weight is None:
        if channels_last or dtype != tokens.dtype:
            return "without a LayerNorm no kernel for channels-last memory or another dtype"
        return native.element_reason(dtype)
    if tokens.is_cuda:
        return "no CUDA kernel with a LayerNorm"
    if not channels_last:
        return "with a LayerNorm a kernel for channels-last memory alone"
    return native.float_reason(tokens.dtype) or native.float_reason(dtype)


def _triton(
    tokens: Tensor,
    ids: Tensor,
    grid: int,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    eps: float = 1e-6,
    channels_last: bool = False,
    dtype: torch.dtype | None = None,
) -> Tensor:
    return triton_kernel("restore")(tokens, ids, grid, norm_weight, norm_bias, eps, channels_last, dtype)


def _triton_unless(
    tokens: Tensor,
    ids: Tensor,
    grid: int,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    eps: float = 1e-6,
    channels_last: bool = False,
    dtype: torch.dtype | None = None,
) -> str | None:
    kernels = triton_kernels()
    if norm_weight is not None and tokens.shape[2] > kernels.MAX_CHANNELS:
        return f"LayerNorm over up to {kernels.MAX_CHANNELS} channels, are {tokens.shape[2]}"
    if norm_weight is not None and tokens.dtype == torch.float64:
        return "the fused LayerNorm computes in float32, tokens are float64"
    if dtype not in (None, tokens.dtype) and (reason := kernels.dtype_reason(tokens.dtype, dtype)):
        return f"map of another dtype than the tokens: {reason}"
    return (
        kernels.range_reason("grid side", grid, kernels.MAX_GRID)
        or kernels.range_reason("number of tokens", tokens.shape[1], grid * grid)
        or kernels.range_reason("batch", tokens.shape[0], kernels.MAX_BATCH)
    )


def _example(
    dtype: torch.dtype, device: torch.device, batch: int, kept: int, channels: int, grid: int, fused: bool = False
) -> tuple:
    """`fused`: with a norm, and channels last."""
    random = Seeded(kept, device)
    tokens, ids = random.normal(batch, kept, channels, dtype=dtype), random.orders(batch, grid * grid)[:, :kept]
    norm = random.normal(2, channels).unbind() if fused else (None, None)
    return tokens, ids.contiguous(), grid, *norm, 1e-6, fused, None


def _both(*sizes: tuple[int, int, int, int]) -> list[tuple]:
    """Batch, tokens, channels, grid: each as it is and fused."""
    return [(*each, fused) for each in sizes for fused in (False, True)]


restore_op = Op(
    "restore(Tensor tokens, Tensor ids, SymInt grid, Tensor? norm_weight=None, Tensor? norm_bias=None, "
    "float eps=1e-06, bool channels_last=False, ScalarType? dtype=None) -> Tensor",
    check=_check,
    check_values=_check_values,
    outputs=_outputs,
    reference=reference,
    save=_save,
    gradient=_gradient,
    backends={"native": Backend(_native, _native_unless), "triton": Backend(_triton, _triton_unless)},
    sizes={
        "small": _both((2, 5, 4, 3)),
        "typical": _both((1, 89, 768, 16)),
        # Odd channels, no token, every cell taken, one of everything.
        "edge": _both((1, 89, 768, 16), (2, 5, 70, 3), (1, 0, 5, 1), (3, 9, 64, 3), (1, 1, 1, 1), (2, 30, 33, 7)),
    },
    example=_example,
)


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
    """Put search tokens in their cells of the grid, exact zeros elsewhere (section 3.3 of the paper).

    Args:
        tokens: (B,K,C) float. ids: (B,K) int64, different cells in [0, F*F). grid: F.
        norm_weight, norm_bias: (C,) float, a LayerNorm of the tokens first, in at least float32; both or neither.
        eps: of that LayerNorm.
        channels_last: lay the channels of a cell side by side in memory.
        dtype: of the map; that of the tokens when None.

    Returns:
        map (B,C,F,F), contiguous, or in channels-last memory.

    Raises:
        ValueError: also for an id off the grid, on the CPU; on a GPU asking would wait for it.
    """
    return restore_op(tokens, ids, grid, norm_weight, norm_bias, eps, channels_last, dtype)
