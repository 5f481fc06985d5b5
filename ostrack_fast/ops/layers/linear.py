"""A frozen linear layer: LayerNorm before the matmul, bias, activation and residual after it, in one pass."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import native_linear
from ..registry import Backend, LayerOp, Preference, Sizes, triton_kernels
from ..tensors import Seeded, describe, ieee_float32, without_autocast
from .kinds import (
    Activation,
    Layer,
    activate,
    check_rows,
    check_weight,
    has_amx_bfloat16,
    native_unless,
    reference_unless,
    triton_unless,
)


class Linear:
    """activation(norm(x) W' + b) + residual in plain PyTorch; see `linear`."""

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor,
        norm_eps: float | None = None,
        activation: Activation = "none",
        dtype: torch.dtype = torch.float32,
    ):
        self.weight, self.bias, self.norm_eps = weight.to(dtype), bias.to(dtype), norm_eps
        self.activation: Activation = activation
        self.inputs = weight.shape[1]

    def __call__(self, x: Tensor, residual: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        check_rows(x, self.inputs, self.weight)
        shape = (*x.shape[:-1], self.weight.shape[0])
        for name, value in (("residual", residual), ("out", out)):
            if value is not None and (value.shape != shape or not value.is_floating_point()):
                raise ValueError(f"{name} must be float {shape}, is {describe(value)}")
        y = _linear(x, self.weight, self.bias, self.norm_eps, self.activation)
        y = y if residual is None else residual + y
        return y if out is None else out.copy_(y)


@without_autocast
def _linear(x: Tensor, weight: Tensor, bias: Tensor, norm_eps: float | None, activation: Activation) -> Tensor:
    if norm_eps is not None:
        x = torch.nn.functional.layer_norm(x, x.shape[-1:], eps=norm_eps)
    with ieee_float32(weight, "matmul"):
        y = torch.nn.functional.linear(x.to(weight.dtype), weight, bias)
    return activate(y, activation)


def _check(weight: Tensor, bias: Tensor, norm_eps: float | None, activation: Activation, dtype: torch.dtype) -> None:
    check_weight(weight, bias, 2, activation, dtype)
    if norm_eps is not None and not norm_eps >= 0:
        raise ValueError(f"norm_eps must not be negative, is {norm_eps}")


def _triton(weight: Tensor, bias: Tensor, norm_eps: float | None, activation: Activation, dtype: torch.dtype) -> Layer:
    return triton_kernels().Linear(weight, bias, norm_eps, activation, dtype)


def _native_unless(
    weight: Tensor, bias: Tensor, norm_eps: float | None, activation: Activation, dtype: torch.dtype
) -> str | None:
    return native_unless(weight, dtype) or native_linear.reason(weight, dtype)


def _triton_unless(
    weight: Tensor, bias: Tensor, norm_eps: float | None, activation: Activation, dtype: torch.dtype
) -> str | None:
    return triton_unless(weight, dtype)


def _reference_unless(
    weight: Tensor, bias: Tensor, norm_eps: float | None, activation: Activation, dtype: torch.dtype
) -> str | None:
    return reference_unless(dtype)


def _in_float32(
    weight: Tensor, bias: Tensor, norm_eps: float | None, activation: Activation, dtype: torch.dtype
) -> bool:
    return dtype == torch.float32


def _in_bfloat16_with_amx(
    weight: Tensor, bias: Tensor, norm_eps: float | None, activation: Activation, dtype: torch.dtype
) -> bool:
    return dtype == torch.bfloat16 and has_amx_bfloat16()


def _example(
    dtype: torch.dtype,
    device: torch.device,
    inputs: int,
    outputs: int,
    norm_eps: float | None,
    activation: Activation,
) -> tuple:
    random = Seeded(inputs, device)
    return random.normal(outputs, inputs) * inputs**-0.5, random.normal(outputs), norm_eps, activation, dtype


def _inputs(
    weight: Tensor,
    bias: Tensor,
    norm_eps: float | None,
    activation: Activation,
    dtype: torch.dtype,
    batch: int = 2,
    tokens: int | None = None,
) -> tuple[Tensor, Tensor | None]:
    (outputs, inputs), random = weight.shape, Seeded(0, weight.device)
    rows = tokens or (9 if outputs < 768 else 320)
    x = random.normal(batch, rows, inputs)
    return x, random.normal(batch, rows, outputs) if norm_eps is None else None


_SIZES: Sizes = {
    "small": [(6, 8, None, "none")],
    "typical": [(768, 768, 1e-6, "none")],
    "edge": [
        (768, 100, 1e-6, "gelu"), (3, 1, None, "none"), (50, 49, 1e-6, "relu"), (64, 33, None, "gelu"),
        (130, 48, 1e-6, "none"), (1540, 17, None, "none"),
    ],
}  # fmt: skip


linear_op = LayerOp(
    "linear",
    check=_check,
    backends={
        "native": Backend(native_linear.Linear, _native_unless),
        "triton": Backend(_triton, _triton_unless),
        "reference": Backend(Linear, _reference_unless),
    },
    preferences=(
        # float32 runs on no tensor core: cuBLAS has more kernels for that than one Triton tile.
        Preference("cuda", ("reference", "triton", "native"), _in_float32),
        # PyTorch's bfloat16 matmuls use AMX tiles, ours do not.
        Preference("cpu", ("reference", "native"), _in_bfloat16_with_amx),
    ),
    sizes=_SIZES,
    example=_example,
    inputs=_inputs,
)


def linear(
    weight: Tensor,
    bias: Tensor,
    norm_eps: float | None = None,
    activation: Activation = "none",
    dtype: torch.dtype = torch.float32,
) -> Layer:
    """A frozen linear layer: activation(norm(x) W' + b) + residual in one pass over memory.

    Args:
        weight: (O,I) float32. bias: (O,) float32.
        norm_eps: normalize x over its last dimension first (LayerNorm without affine), in float32.
        activation: "gelu" is the exact one, with erf.
        dtype: compute dtype of the matmul; sums are float32. int8 quantizes the rows of weight beforehand and those of
            x as they come, symmetrically, each row by itself.

    Returns:
        A function `(x, residual=None, out=None)` of x (...,I) float32 or `dtype` (for int8 bfloat16), dense. It
        returns (...,O): float32 with a residual, which is (...,O) float32 too, else `dtype` (for int8 as `result_dtype`
        says). `out`, which may be `residual`, takes the result: rows must be dense, as in a slice along the second of
        three dimensions.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit; the function raises it too.
        RuntimeError: the backend that is asked for cannot run such a layer; the function: a derivative is wanted.
    """
    return linear_op.build(weight, bias, norm_eps, activation, dtype)
