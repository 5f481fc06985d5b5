"""Products of what GELU makes of a matrix: an MLP's second layer in training, which so need not keep it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import gelu as plain_gelu

from . import native
from .gelu import gelu
from .matmul import (
    check,
    example,
    gradients,
    linear,
    native_reason,
    outputs,
    readable,
    reference,
    save,
    trains_in_float32,
    ways,
)
from .registry import Backend, Op, Sizes
from .tensors import Seeded, describe

_SIZES: Sizes = {
    "small": ways((5, 4, 6)),
    "typical": ways((320, 768, 768)),
    "edge": ways((9, 48, 48), (1, 1, 1), (67, 33, 50), (526, 514, 576)),
}


def _gelu_matmul(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """gelu(a) b + bias."""
    return reference(plain_gelu(a), b, bias)


def _gradient_of_a(a: Tensor, b: Tensor, grad: Tensor) -> Tensor:
    return matmul_gelu_backward_op(grad, b.t(), a)


def _gradient_of_b(a: Tensor, b: Tensor, grad: Tensor) -> Tensor:
    return matmul_gelu_op(grad.t(), a).t()  # lies in memory as a linear layer's weight does


def _native_gelu_matmul(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    out = outputs(a, b, bias)
    bias = None if bias is None else native.dense(bias)
    native.call("gelu_matmul", a.device, native.dense(a), readable(b), bias, out)
    return out


gelu_matmul_op = Op(
    "gelu_matmul(Tensor a, Tensor b, Tensor? bias=None) -> Tensor",
    check=check,
    outputs=outputs,
    reference=_gelu_matmul,
    save=save,
    gradient=gradients(_gradient_of_a, _gradient_of_b),
    backends={"native": Backend(_native_gelu_matmul, native_reason)},
    sizes=_SIZES,
    example=example,
)


def _matmul_gelu(a: Tensor, b: Tensor) -> Tensor:
    """a gelu(b)."""
    return reference(a, plain_gelu(b))


def _native_matmul_gelu(a: Tensor, b: Tensor) -> Tensor:
    out = outputs(a, b)
    native.call("matmul_gelu", a.device, readable(a), readable(b), out)
    return out


matmul_gelu_op = Op(
    "matmul_gelu(Tensor a, Tensor b) -> Tensor",
    check=check,
    outputs=outputs,
    reference=_matmul_gelu,
    backends={"native": Backend(_native_matmul_gelu, native_reason)},
    sizes=_SIZES,
    example=lambda *arguments: example(*arguments)[:2],
)


def _check_backward(a: Tensor, b: Tensor, x: Tensor) -> None:
    check(a, b)
    if x.shape != (a.shape[0], b.shape[1]) or x.dtype != a.dtype or x.device != a.device:
        raise ValueError(f"x must be ({a.shape[0]},{b.shape[1]}) of the dtype of a, got {describe(x)}")


def _outputs_backward(a: Tensor, b: Tensor, x: Tensor) -> Tensor:
    return outputs(a, b)


def _matmul_gelu_backward(a: Tensor, b: Tensor, x: Tensor) -> Tensor:
    """a b times GELU's derivative at x."""
    return torch.ops.aten.gelu_backward(reference(a, b), x)


def _native_matmul_gelu_backward(a: Tensor, b: Tensor, x: Tensor) -> Tensor:
    out = outputs(a, b)
    native.call("matmul_gelu_backward", a.device, native.dense(a), readable(b), native.dense(x), out)
    return out


def _native_backward_unless(a: Tensor, b: Tensor, x: Tensor) -> str | None:
    return native_reason(a, b)


def _example_backward(dtype: torch.dtype, device: torch.device, *numbers: Any) -> tuple:
    a, b, _ = example(dtype, device, *numbers)
    return a, b, Seeded(len(a), device).normal(len(a), b.shape[1], dtype=dtype)


matmul_gelu_backward_op = Op(
    "matmul_gelu_backward(Tensor a, Tensor b, Tensor x) -> Tensor",
    check=_check_backward,
    outputs=_outputs_backward,
    reference=_matmul_gelu_backward,
    backends={"native": Backend(_native_matmul_gelu_backward, _native_backward_unless)},
    sizes=_SIZES,
    example=_example_backward,
)


def gelu_linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`linear` of `gelu(x)`, which is not kept for the backward pass where `matmul` trains.

    Args:
        x: (...,I). weight: (O,I). bias: (O,).

    Returns:
        (...,O) in the dtype of x, or that of autocast.
    """
    if not trains_in_float32(x) or getattr(weight, "dtype", None) != x.dtype or x.dim() < 2 or x.numel() == 0:
        return linear(gelu(x), weight, bias)
    return gelu_matmul_op(x.flatten(0, -2), weight.t(), bias).unflatten(0, x.shape[:-1])
