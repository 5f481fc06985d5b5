"""The activation of the MLPs, as training computes it on a CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import native
from .registry import Backend, Op, forced_backend
from .tensors import Seeded, check_one_device, describe


def _check(x: Tensor) -> None:
    if not x.is_floating_point():
        raise ValueError(f"x must be float, got {describe(x)}")


def _outputs(x: Tensor) -> Tensor:
    return x.new_empty(x.shape)


def reference(x: Tensor) -> Tensor:
    """x Phi(x), Phi the normal distribution function; see `ostrack_fast.ops.gelu`."""
    return torch.nn.functional.gelu(x)


def _save(ctx: Any, inputs: tuple, outputs: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _gradient(ctx: Any, grad: Tensor | None) -> tuple:
    return (None if grad is None else gelu_backward_op(grad, *ctx.saved_tensors),)


def _native(x: Tensor) -> Tensor:
    out = _outputs(x)
    native.call("gelu", x.device, native.dense(x).view(-1), out.view(-1))
    return out


def _native_unless(*tensors: Tensor) -> str | None:
    if tensors[0].dtype not in (torch.float32, torch.bfloat16):
        return f"no kernel for {tensors[0].dtype}, only float32 and bfloat16"
    if native.cpu_level() == "portable":
        return "needs AVX2 and FMA, which this processor or OSTRACK_FAST_CPU_CAPABILITY excludes"
    return None


def _example(dtype: torch.dtype, device: torch.device, *shape: int) -> tuple:
    return (3 * Seeded(shape[0], device).normal(*shape, dtype=dtype),)


gelu_op = Op(
    "gelu(Tensor x) -> Tensor",
    check=_check,
    outputs=_outputs,
    reference=reference,
    save=_save,
    gradient=_gradient,
    backends={"native": Backend(_native, _native_unless)},
    sizes={"small": [(2, 3, 5)], "typical": [(320, 3072)], "edge": [(1,), (33,), (8200,), (3, 0)]},
    example=_example,
)


def _check_backward(grad: Tensor, x: Tensor) -> None:
    _check(x)
    if grad.shape != x.shape or grad.dtype != x.dtype:
        raise ValueError(f"grad must be {describe(x)} as x, got {describe(grad)}")
    check_one_device(grad=grad, x=x)


def _outputs_backward(grad: Tensor, x: Tensor) -> Tensor:
    return x.new_empty(x.shape)


def _reference_backward(grad: Tensor, x: Tensor) -> Tensor:
    return torch.ops.aten.gelu_backward(grad, x)


def _native_backward(grad: Tensor, x: Tensor) -> Tensor:
    out = _outputs_backward(grad, x)
    native.call("gelu_backward", x.device, native.dense(x).view(-1), native.dense(grad).view(-1), out.view(-1))
    return out


gelu_backward_op = Op(
    "gelu_backward(Tensor grad, Tensor x) -> Tensor",
    check=_check_backward,
    outputs=_outputs_backward,
    reference=_reference_backward,
    backends={"native": Backend(_native_backward, _native_unless)},
    sizes=gelu_op.sizes,
    example=lambda *arguments: (*_example(*arguments), *_example(*arguments)),
)


def gelu(x: Tensor) -> Tensor:
    """GELU with the exact erf; by the compiled kernels where its gradient is recorded on a CPU, else by PyTorch.

    Args:
        x: of any shape, float.

    Returns:
        The same shape and dtype.
    """
    # What is no tensor is refused by PyTorch's function.
    recorded = isinstance(x, Tensor) and x.is_cpu and x.requires_grad and torch.is_grad_enabled()
    trains = recorded and not torch.compiler.is_compiling() and forced_backend() != "reference"
    if not trains or gelu_op.unsupported_reason("native", x) is not None:
        return torch.nn.functional.gelu(x)
    return gelu_op(x)
