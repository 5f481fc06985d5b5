"""Products of matrices that change from step to step: what a linear layer multiplies in training, forward and back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import native
from .registry import Backend, Op, forced_backend
from .tensors import Seeded, check_one_device, describe, ieee_float32


def check(a: Tensor, b: Tensor, bias: Tensor | None = None) -> None:
    """Raises ValueError unless these can be multiplied."""
    if a.dim() != 2 or b.dim() != 2 or a.shape[1] != b.shape[0]:
        raise ValueError(f"a (R,I) and b (I,O) needed, got {describe(a)} and {describe(b)}")
    if bias is not None and bias.shape != b.shape[1:]:
        raise ValueError(f"bias must be ({b.shape[1]},), got {describe(bias)}")
    others = (b,) if bias is None else (b, bias)
    if not a.is_floating_point() or any(each.dtype != a.dtype for each in others):
        raise ValueError(f"all must be of one float dtype, got {', '.join(map(describe, (a, *others)))}")
    check_one_device(a=a, b=b, bias=bias)


def outputs(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """(R,O), uninitialized."""
    return a.new_empty(a.shape[0], b.shape[1])


def reference(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """a b + bias; see `ostrack_fast.ops.matmul`."""
    with ieee_float32(a, "matmul"):
        return a @ b if bias is None else torch.addmm(bias, a, b)


def save(ctx: Any, inputs: tuple, outputs: Tensor) -> None:
    """What `gradients` takes."""
    ctx.save_for_backward(*inputs[:2])


def gradients(
    of_a: Callable[[Tensor, Tensor, Tensor], Tensor], of_b: Callable[[Tensor, Tensor, Tensor], Tensor]
) -> Callable[[Any, Tensor | None], tuple]:
    """The gradient of a product with a bias, from functions of (a, b, gradient) for either matrix."""

    def gradient(ctx: Any, grad: Tensor | None) -> tuple:
        if grad is None:
            return None, None, None
        a, b = ctx.saved_tensors
        _, wants_a, wants_b, wants_bias = ctx.needs_input_grad  # of the op itself none
        return (
            of_a(a, b, grad) if wants_a else None,
            of_b(a, b, grad) if wants_b else None,
            grad.sum(0) if wants_bias else None,
        )

    return gradient


def _gradient_of_a(a: Tensor, b: Tensor, grad: Tensor) -> Tensor:
    return matmul_op(grad, b.t(), None)


def _gradient_of_b(a: Tensor, b: Tensor, grad: Tensor) -> Tensor:
    """It lies in memory as `b` does: PyTorch copies a weight's gradient that lies otherwise than the weight."""
    return matmul_op(grad.t(), a, None).t() if b.stride(0) == 1 else matmul_op(a.t(), grad, None)


def readable(matrix: Tensor) -> Tensor:
    """The matrix with dense rows or columns, as the kernel reads it."""
    matrix = matrix.resolve_neg() if matrix.is_neg() else matrix
    return matrix if 1 in matrix.stride() else matrix.contiguous()


def _native(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    out = outputs(a, b, bias)
    native.call("matmul", a.device, readable(a), readable(b), None if bias is None else native.dense(bias), out)
    return out


def native_reason(a: Tensor, b: Tensor, bias: Tensor | None = None) -> str | None:
    """Why the kernel cannot multiply these, or None."""
    if a.dtype != torch.float32:
        return f"no kernel for {a.dtype}, only float32: PyTorch multiplies half precisions as fast"
    if a.numel() == 0 or b.numel() == 0:
        return "no kernel for an empty matrix"
    if native.cpu_level() == "portable":
        return "needs AVX2 and FMA, which this processor or OSTRACK_FAST_CPU_CAPABILITY excludes"
    return None


def example(
    dtype: torch.dtype, device: torch.device, rows: int, inputs: int, outputs: int, turned: str, with_bias: bool
) -> tuple:
    """`turned`: which of "a" and "b" have dense columns instead of rows."""
    random = Seeded(rows, device)
    a, b = random.normal(rows, inputs, dtype=dtype), random.normal(inputs, outputs, dtype=dtype)
    a, b = (x.t().contiguous().t() if name in turned else x for name, x in (("a", a), ("b", b)))
    return a, b, random.normal(outputs, dtype=dtype) if with_bias else None


def ways(*sizes: tuple[int, int, int]) -> list[tuple]:
    """Rows, inputs, outputs: each as forward, with the gradient of `a`, and with that of `b`; and all turned."""
    return [(*each, *way) for each in sizes for way in (("b", True), ("", False), ("a", False), ("ab", True))]


matmul_op = Op(
    "matmul(Tensor a, Tensor b, Tensor? bias=None) -> Tensor",
    check=check,
    outputs=outputs,
    reference=reference,
    save=save,
    gradient=gradients(_gradient_of_a, _gradient_of_b),
    backends={"native": Backend(_native, native_reason)},
    sizes={
        "small": ways((5, 4, 6)),
        "typical": ways((320, 768, 768)),
        # Parts of tiles, panels and strips; one of everything; several blocks of rows; by quarters.
        "edge": ways((9, 48, 48), (67, 33, 50), (1, 1, 1), (70, 130, 17), (2, 3, 100), (300, 1100, 3), (526, 514, 576)),
    },
    example=example,
)


def matmul(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """a b + bias, of matrices of which neither is a constant.

    On CPUs with AVX2 and no AVX-512, matrices of at least 512 rows, inputs and outputs, all even and outputs a multiple
    of 192, are multiplied by Strassen's algorithm (1969). It rounds in proportion to the largest elements of the
    matrices instead of those of each row and column: by the norm of the result, 1.5 times as much as MKL. What is not
    finite spreads to other rows and columns.

    Args:
        a: (R,I), b: (I,O), bias: (O,) or None; of one float dtype. Transposed views are read as they lie in memory.

    Returns:
        (R,O).
    """
    return matmul_op(a, b, bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`torch.nn.functional.linear`; by `matmul` where gradients in float32 are recorded on a CPU.

    PyTorch's own multiplies float32 by AVX2 code on AMD processors with AVX-512, which takes twice as long.

    Args:
        x: (...,I). weight: (O,I). bias: (O,).

    Returns:
        (...,O) in the dtype of x, or that of autocast.
    """
    if not trains_in_float32(x) or getattr(weight, "dtype", None) != x.dtype or x.dim() < 2 or x.numel() == 0:
        return torch.nn.functional.linear(x, weight, bias)
    return matmul_op(x.flatten(0, -2), weight.t(), bias).unflatten(0, x.shape[:-1])


def trains_in_float32(x: Tensor) -> bool:
    """Whether a gradient is recorded op by op, in float32 on a CPU where `matmul` has a kernel."""
    # What is no tensor is refused by PyTorch's function, which then runs.
    if not isinstance(x, Tensor) or not x.is_cpu or x.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
        return False
    recorded = torch.is_grad_enabled() and not torch.compiler.is_compiling() and forced_backend() != "reference"
    return recorded and matmul_op.unsupported_reason("native", x.new_empty(1, 1), x.new_empty(1, 1)) is None
