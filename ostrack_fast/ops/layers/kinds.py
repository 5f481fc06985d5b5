"""What the layers share: their interface, activations, and the checks of constructors and calls."""

from __future__ import annotations

from typing import Any, Protocol, get_args

import torch
from torch import Tensor

from .. import native
from ..registry import triton_kernels
from ..tensors import Activation, check_no_derivative, check_one_device, describe


class Layer(Protocol):
    """`linear`'s and `conv3x3`'s results: call them with a tensor, and see their own documentation."""

    @property
    def inputs(self) -> int:
        """Features of a row of x."""

    def __call__(self, x: Tensor, residual: Tensor | None = None, out: Tensor | None = None) -> Tensor: ...


def activate(x: Tensor, activation: Activation) -> Tensor:
    """The activation of this name; "gelu" is the exact one, with erf."""
    if activation == "none":
        return x
    return torch.nn.functional.gelu(x) if activation == "gelu" else torch.relu(x)


def check_weight(weight: Tensor, bias: Tensor, dimensions: int, activation: Activation, dtype: torch.dtype) -> None:
    """Raises ValueError for what no layer can be built of."""
    taps = (3, 3) if dimensions == 4 else ()
    if weight.dim() != dimensions or tuple(weight.shape[2:]) != taps or not weight.is_floating_point():
        raise ValueError(
            f"weight must be float {('(O,I)', '(O,I/groups,3,3)')[dimensions == 4]}, got {describe(weight)}"
        )
    if 0 in weight.shape:
        raise ValueError(f"weight must not be empty, got {describe(weight)}")
    if bias.shape != weight.shape[:1] or not bias.is_floating_point():
        raise ValueError(f"bias must be float ({weight.shape[0]},), got {describe(bias)}")
    if activation not in get_args(Activation):
        raise ValueError(f"activation must be one of {', '.join(get_args(Activation))}, is {activation!r}")
    if not dtype.is_floating_point and dtype != torch.int8:
        raise ValueError(f"dtype must be a float one or int8, is {dtype}")
    check_one_device(weight=weight, bias=bias)


def check_rows(x: Tensor, inputs: int, weight: Tensor) -> None:
    """Raises for an x (...,inputs) that a layer with this weight cannot take."""
    check_no_derivative("a frozen layer", x)
    if x.dim() < 1 or x.shape[-1] != inputs or not x.is_floating_point():
        raise ValueError(f"x must be float (...,{inputs}), is {describe(x)}")
    check_one_device(x=x, weight=weight)


def native_unless(weight: Tensor, dtype: torch.dtype) -> str | None:
    """Why no compiled layer of this weight can be built, or None; `native_linear` knows more."""
    if torch.is_grad_enabled() and weight.requires_grad:
        return "the compiled kernels have no backward pass"
    return None


def triton_unless(weight: Tensor, dtype: torch.dtype) -> str | None:
    """Why no Triton layer of this weight can be built, or None."""
    kernels = triton_kernels()
    if torch.is_grad_enabled() and weight.requires_grad:
        return "weights are frozen, there is no backward pass"
    return kernels.dtype_reason(dtype) or kernels.range_reason("number of weights", weight.numel(), kernels.MAX_WEIGHTS)


def reference_unless(dtype: torch.dtype) -> str | None:
    """Why plain PyTorch cannot be the backend, or None."""
    return "only the compiled kernels quantize" if dtype == torch.int8 else None


def has_amx_bfloat16(*_: Any) -> bool:
    """Whether this processor multiplies bfloat16 tiles, which PyTorch's own layers use."""
    return native.has_cpu_feature("amx_bf16")
