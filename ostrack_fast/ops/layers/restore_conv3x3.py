"""The head's first convolution: final LayerNorm, restoration to the grid, and the convolution of that map."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import native, native_linear
from ..registry import Backend, LayerOp, Preference
from ..restore import restore_op
from ..tensors import Seeded, check_no_derivative, describe
from .conv3x3 import conv3x3, conv3x3_op
from .kinds import Layer, check_weight, has_amx_bfloat16

Norm = tuple[Tensor, Tensor, float]


class RestoreThenConv3x3:
    """See `restore_conv3x3`: makes the whole map, then convolves it with `layer`."""

    multiplies_tokens = False

    def __init__(self, layer: Layer, norm: Norm, tokens: int, grid: int, dtype: torch.dtype):
        self.layer = layer
        example = norm[0].new_empty(1, tokens, norm[0].shape[0])
        ids = torch.empty(1, tokens, dtype=torch.int64, device=example.device)
        self._how = (grid, *norm, True, native.result_dtype(dtype))
        self._restore = restore_op.bind(example, ids, *self._how)

    def __call__(self, tokens: Tensor, ids: Tensor) -> Tensor:
        check_no_derivative("a frozen layer", tokens)
        return self.layer(self._restore(tokens, ids, *self._how).permute(0, 2, 3, 1))


def _check(weight: Tensor, bias: Tensor, norm: Norm, tokens: int, grid: int, dtype: torch.dtype) -> None:
    check_weight(weight, bias, 4, "relu", dtype)
    scale, shift, eps = norm
    for name, value in (("weight", scale), ("bias", shift)):
        if value.shape != (weight.shape[1],) or not value.is_floating_point():
            raise ValueError(f"the norm's {name} must be float ({weight.shape[1]},), got {describe(value)}")
    if not eps >= 0 or grid < 1 or not 0 <= tokens <= grid * grid:
        raise ValueError(f"{tokens} tokens on a grid of {grid} x {grid} with eps={eps}: out of range")


def _compose(
    weight: Tensor, bias: Tensor, norm: Norm, tokens: int, grid: int, dtype: torch.dtype = torch.float32
) -> RestoreThenConv3x3:
    return RestoreThenConv3x3(conv3x3(weight, bias, dtype=dtype), norm, tokens, grid, dtype)


def _native(
    weight: Tensor, bias: Tensor, norm: Norm, tokens: int, grid: int, dtype: torch.dtype
) -> RestoreThenConv3x3 | native_linear.RestoreConv3x3:
    if tokens == grid * grid:  # multiplying tokens one by one saves nothing
        return _compose(weight, bias, norm, tokens, grid, dtype)
    return native_linear.RestoreConv3x3(weight, bias, norm, grid, dtype=dtype)


def _native_unless(weight: Tensor, bias: Tensor, norm: Norm, tokens: int, grid: int, dtype: torch.dtype) -> str | None:
    return conv3x3_op.unsupported_reason("native", weight, bias, 1, "relu", dtype)


def _triton_unless(weight: Tensor, bias: Tensor, norm: Norm, tokens: int, grid: int, dtype: torch.dtype) -> str | None:
    return conv3x3_op.unsupported_reason("triton", weight, bias, 1, "relu", dtype)


def _reference_unless(
    weight: Tensor, bias: Tensor, norm: Norm, tokens: int, grid: int, dtype: torch.dtype
) -> str | None:
    return conv3x3_op.unsupported_reason("reference", weight, bias, 1, "relu", dtype)


def _in_bfloat16_with_amx(weight: Tensor, bias: Tensor, norm: Norm, tokens: int, grid: int, dtype: torch.dtype) -> bool:
    return dtype == torch.bfloat16 and has_amx_bfloat16()


def _example(dtype: torch.dtype, device: torch.device, inputs: int, outputs: int, tokens: int, grid: int) -> tuple:
    weight, bias, *_ = conv3x3_op.example(dtype, device, inputs, outputs, 1)
    norm = (torch.ones_like(weight[0, :, 0, 0]), torch.zeros_like(weight[0, :, 0, 0]), 1e-6)
    return weight, bias, norm, tokens, grid, dtype


def _inputs(
    weight: Tensor, bias: Tensor, norm: Norm, tokens: int, grid: int, dtype: torch.dtype, batch: int = 2
) -> tuple[Tensor, Tensor]:
    random = Seeded(tokens, weight.device)
    ids = random.orders(batch, grid * grid)[:, :tokens].contiguous()
    return random.normal(batch, tokens, weight.shape[1]), ids


restore_conv3x3_op = LayerOp(
    "restore_conv3x3",
    check=_check,
    backends={
        "native": Backend(_native, _native_unless),
        "triton": Backend(_compose, _triton_unless),
        "reference": Backend(_compose, _reference_unless),
    },
    preferences=(Preference("cpu", ("reference", "native"), _in_bfloat16_with_amx),),
    sizes={
        "small": [(6, 4, 4, 3)],
        "typical": [(768, 96, 89, 16)],
        "edge": [(7, 3, 1, 1), (7, 3, 0, 3), (64, 17, 1, 1), (64, 17, 30, 7)],
    },
    example=_example,
    inputs=_inputs,
)


def restore_conv3x3(
    weight: Tensor,
    bias: Tensor,
    norm: Norm,
    tokens: int,
    grid: int,
    dtype: torch.dtype = torch.float32,
) -> RestoreThenConv3x3 | native_linear.RestoreConv3x3:
    """The final LayerNorm, `ops.restore` and `conv3x3`, in one: the head's first convolution.

    Candidate elimination leaves most cells of the map empty. On a CPU only the tokens are multiplied then; elsewhere,
    and where all are there, the map is made and the convolution goes over it.

    Args:
        weight: (O,C,3,3) float32. bias: (O,) float32. dtype: as for `linear`.
        norm: weight (C,), bias (C,) and eps of the LayerNorm.
        tokens: how many there will be. grid: side F of the map.

    Returns:
        A function of tokens (B,K,C) float32 and their cells ids (B,K): relu(convolution) (B,F,F,O) in `dtype`
        (for int8 as `result_dtype` says).
    """
    return restore_conv3x3_op.build(weight, bias, norm, tokens, grid, dtype)
