"""A frozen 3 x 3 convolution over channels-last maps, with bias and activation."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import native_linear
from ..registry import Backend, LayerOp, Preference, triton_kernels
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


class Conv3x3:
    """activation of a 3 x 3 convolution with frozen weights, in plain PyTorch; see `conv3x3`."""

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor,
        groups: int = 1,
        activation: Activation = "relu",
        dtype: torch.dtype = torch.float32,
    ):
        self.weight = weight.to(dtype, memory_format=torch.channels_last)
        self.bias, self.groups = bias.to(dtype), groups
        self.activation: Activation = activation
        self.inputs = weight.shape[1] * groups

    def __call__(self, x: Tensor) -> Tensor:
        check_rows(x, self.inputs, self.weight)
        if x.dim() != 4 or x.shape[1] != x.shape[2]:
            raise ValueError(f"x must be (B,F,F,{self.inputs}), is {describe(x)}")
        return _conv3x3(x, self.weight, self.bias, self.groups, self.activation)


@without_autocast
def _conv3x3(x: Tensor, weight: Tensor, bias: Tensor, groups: int, activation: Activation) -> Tensor:
    # cuDNN multiplies float32 as TF32 unless it is told not to.
    with ieee_float32(weight, "conv"):
        y = torch.nn.functional.conv2d(x.to(weight.dtype).permute(0, 3, 1, 2), weight, bias, padding=1, groups=groups)
    return activate(y, activation).permute(0, 2, 3, 1).contiguous()


def _check(weight: Tensor, bias: Tensor, groups: int, activation: Activation, dtype: torch.dtype) -> None:
    check_weight(weight, bias, 4, activation, dtype)
    if groups < 1 or weight.shape[0] % groups:
        raise ValueError(f"groups {groups} do not divide the {weight.shape[0]} outputs")


def _triton(weight: Tensor, bias: Tensor, groups: int, activation: Activation, dtype: torch.dtype) -> Layer:
    return triton_kernels().Conv3x3(weight, bias, groups, activation, dtype)


def _native_unless(weight: Tensor, bias: Tensor, groups: int, activation: Activation, dtype: torch.dtype) -> str | None:
    return native_unless(weight, dtype) or native_linear.reason(weight, dtype, groups)


def _triton_unless(weight: Tensor, bias: Tensor, groups: int, activation: Activation, dtype: torch.dtype) -> str | None:
    return triton_unless(weight, dtype)


def _reference_unless(
    weight: Tensor, bias: Tensor, groups: int, activation: Activation, dtype: torch.dtype
) -> str | None:
    return reference_unless(dtype)


def _in_float32(weight: Tensor, bias: Tensor, groups: int, activation: Activation, dtype: torch.dtype) -> bool:
    return dtype == torch.float32


def _in_bfloat16_with_amx(
    weight: Tensor, bias: Tensor, groups: int, activation: Activation, dtype: torch.dtype
) -> bool:
    return dtype == torch.bfloat16 and has_amx_bfloat16()


def _example(dtype: torch.dtype, device: torch.device, inputs: int, outputs: int, groups: int) -> tuple:
    random = Seeded(inputs, device)
    weight = random.normal(outputs, inputs // groups, 3, 3) * (9 * inputs) ** -0.5
    return weight, random.normal(outputs), groups, "relu", dtype


def _inputs(
    weight: Tensor,
    bias: Tensor,
    groups: int,
    activation: Activation,
    dtype: torch.dtype,
    batch: int = 2,
    grid: int | None = None,
) -> tuple[Tensor]:
    side = grid or (16 if weight.shape[1] >= 768 else 5)
    return (Seeded(side, weight.device).normal(batch, side, side, weight.shape[1] * groups),)


conv3x3_op = LayerOp(
    "conv3x3",
    check=_check,
    backends={
        "native": Backend(native_linear.Conv3x3, _native_unless),
        "triton": Backend(_triton, _triton_unless),
        "reference": Backend(Conv3x3, _reference_unless),
    },
    preferences=(
        # float32 runs on no tensor core: cuDNN has more kernels for that than one Triton tile.
        Preference("cuda", ("reference", "triton", "native"), _in_float32),
        Preference("cpu", ("reference", "native"), _in_bfloat16_with_amx),
    ),
    sizes={
        "small": [(6, 4, 1)],
        "typical": [(768, 96, 1)],
        "edge": [(96, 48, 3), (7, 3, 1), (64, 17, 1), (390, 33, 3)],
    },
    example=_example,
    inputs=_inputs,
)


def conv3x3(
    weight: Tensor,
    bias: Tensor,
    groups: int = 1,
    activation: Activation = "relu",
    dtype: torch.dtype = torch.float32,
) -> Layer:
    """A frozen 3 x 3 convolution, zero border, on maps (B,F,F,I): returns a function `x -> (B,F,F,O)` in `dtype`.

    Args:
        weight: (O,I/groups,3,3) float32. bias: (O,) float32. dtype: as for `linear`; float32 is never TF32.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit; the function raises it too.
        RuntimeError: the backend that is asked for cannot run such a layer; the function: a derivative is wanted.
    """
    return conv3x3_op.build(weight, bias, groups, activation, dtype)
