"""Linear layers that keep little for the backward pass: what an elementwise operation gives again is not stored.

Of a block's activations this saves both LayerNorms' results and the MLP's hidden features behind their GELU, a third of
all. The backward pass reads its inputs once more for each, which no matmul waits for.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.autograd.function import once_differentiable
from torch.nn.functional import gelu, linear


def _worthwhile(x: Tensor) -> bool:
    """On a GPU memory is short and elementwise operations are nearly free; on a CPU it is the other way round."""
    return x.is_cuda


def _recomputes(x: Tensor, *modules: nn.Module) -> bool:
    """Whether to train without storing: where it is worthwhile, and nobody asks for more than a first gradient.

    What compiles or transforms the model, or listens to its modules, sees the modules.
    """
    plain = torch.is_grad_enabled() and not torch.compiler.is_compiling() and forward_ad._current_level < 0
    return (
        plain
        and _worthwhile(x)
        and not torch._C._are_functorch_transforms_active()
        and all(each.training and not each._forward_hooks and not each._forward_pre_hooks for each in modules)
    )


def _compute_dtype(x: Tensor) -> torch.dtype:
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def norm_linear(norm: nn.LayerNorm, layer: nn.Linear, x: Tensor) -> Tensor:
    """layer(norm(x)) for tokens x (B,N,C); under autocast as there, LayerNorm in float32."""
    if not _recomputes(x, norm, layer):
        return layer(norm(x))
    return _NormLinear.apply(x, norm.weight, norm.bias, layer.weight, layer.bias, norm.eps, _compute_dtype(x))


def gelu_linear(layer: nn.Linear, hidden: Tensor) -> Tensor:
    """layer(gelu(hidden)) for features hidden (B,N,C)."""
    if not _recomputes(hidden, layer):
        return layer(gelu(hidden))
    return _GeluLinear.apply(hidden, layer.weight, layer.bias, _compute_dtype(hidden))


def _linear(x: Tensor, weight: Tensor, bias: Tensor, dtype: torch.dtype) -> Tensor:
    with torch.autocast(x.device.type, enabled=False):
        return linear(x.to(dtype), weight.to(dtype), bias.to(dtype))


def _of_parameters(
    grad: Tensor, x: Tensor, weight: Tensor, wanted: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of weight and bias of a linear layer from those of its result, and its input in the same dtype."""
    rows = grad.flatten(0, -2)
    of_weight = (rows.t() @ x.flatten(0, -2)).to(weight.dtype) if wanted[0] else None
    return of_weight, rows.sum(0, dtype=weight.dtype) if wanted[1] else None


class _NormLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, shift: Tensor, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype
    ) -> Tensor:
        normed, mean, rstd = torch.native_layer_norm(x, x.shape[-1:], scale, shift, eps)
        ctx.save_for_backward(x, scale, shift, weight, mean, rstd)
        ctx.eps, ctx.dtype = eps, dtype
        return _linear(normed, weight, bias, dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple:
        x, scale, shift, weight, mean, rstd = ctx.saved_tensors
        of_weight = of_bias = None
        wanted = ctx.needs_input_grad
        if any(wanted[3:5]):
            normed = torch.native_layer_norm(x, x.shape[-1:], scale, shift, ctx.eps)[0].to(ctx.dtype)
            of_weight, of_bias = _of_parameters(grad, normed, weight, wanted[3:5])
        of_normed = (grad @ weight.to(ctx.dtype)).to(x.dtype)
        of_norm = torch.ops.aten.native_layer_norm_backward(
            of_normed, x, x.shape[-1:], mean, rstd, scale, shift, list(wanted[:3])
        )
        return *of_norm, of_weight, of_bias, None, None


class _GeluLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.save_for_backward(hidden, weight)
        ctx.dtype = dtype
        return _linear(gelu(hidden), weight, bias, dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple:
        hidden, weight = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        of_weight = of_bias = of_hidden = None
        if any(wanted[1:3]):
            of_weight, of_bias = _of_parameters(grad, gelu(hidden).to(ctx.dtype), weight, wanted[1:3])
        if wanted[0]:
            of_active = (grad @ weight.to(ctx.dtype)).to(hidden.dtype)
            of_hidden = torch.ops.aten.gelu_backward(of_active, hidden)
        return of_hidden, of_weight, of_bias, None
