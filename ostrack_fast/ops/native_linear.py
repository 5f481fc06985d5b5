"""The compiled products of frozen layers on the CPU: weights packed once; LayerNorm and what follows the sum fused."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from . import native
from .native import _C
from .tensors import check_no_derivative, describe

_ROWS = {torch.float32: 0, torch.bfloat16: 2}
_PRODUCTS = {**_ROWS, torch.int8: 3}
Activation = Literal["none", "gelu", "relu"]
_ACTIVATIONS: dict[Activation, int] = {"none": 0, "gelu": 1, "relu": 2}


def reason(weight: Tensor, dtype: torch.dtype = torch.float32, groups: int = 1) -> str | None:
    """Why `Linear`, `Conv3x3` or `RestoreConv3x3` cannot run such a layer here, or None."""
    if dtype not in _PRODUCTS:
        return f"no CPU kernel for matmuls in {dtype}; only float32, bfloat16 and int8"
    try:
        _packed_bytes(weight, dtype, groups)
    except TypeError:
        return "needs AVX2 and FMA, which this processor or OSTRACK_FAST_CPU_CAPABILITY excludes"
    except ValueError as error:
        return f"{error} (weight {tuple(weight.shape)}, groups {groups})"
    return None


def _sizes(weight: Tensor, groups: int) -> tuple[int, int, int, int]:
    """Outputs, inputs, taps, groups."""
    return weight.shape[0], weight.shape[1] * groups, weight[0, 0].numel(), groups


def _packed_bytes(weight: Tensor, dtype: torch.dtype, groups: int) -> int:
    count = torch.zeros(1, dtype=torch.int64, device="cpu")
    _C.cpu_linear_packed_bytes(_PRODUCTS[dtype], *_sizes(weight, groups), count.data_ptr())
    return int(count)


def _packed(weight: Tensor, bias: Tensor, dtype: torch.dtype, groups: int = 1) -> Tensor:
    packed = torch.empty(_packed_bytes(weight, dtype, groups), dtype=torch.uint8, device="cpu")
    rows = (
        weight.detach().to(torch.float32).flatten(2).transpose(1, 2)
        if weight.dim() > 2
        else weight.detach().to(torch.float32)
    )
    rows, bias = rows.contiguous(), bias.detach().to(torch.float32).contiguous()
    _C.cpu_linear_pack(
        _PRODUCTS[dtype],
        rows.data_ptr(),
        bias.data_ptr(),
        packed.data_ptr(),
        *_sizes(weight, groups),
        torch.get_num_threads(),
    )
    return packed


def _result_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.bfloat16 if dtype == torch.int8 else dtype


def _readable(x: Tensor) -> Tensor:
    check_no_derivative("a frozen layer", x)
    if not x.is_floating_point() or not x.is_cpu:
        raise ValueError(f"x must be float and on the CPU, is {describe(x)} on {x.device}")
    x = x.resolve_neg() if x.is_neg() else x
    return x if x.dtype in _ROWS else x.to(torch.float32)


def _items(tensor: Tensor) -> Tensor | None:
    """(...,C) as (B,R,C) with rows that follow each other, if it lies so in memory."""
    if tensor.dim() == 3:
        (_, rows, width), (_, row, one) = tensor.shape, tensor.stride()
        dense = (one == 1 or width == 1) and (row == width or rows == 1)
        return tensor if dense or tensor.numel() == 0 else None
    return tensor.view(1, -1, tensor.shape[-1]) if tensor.is_contiguous() else None


def _dense(tensor: Tensor) -> Tensor:
    items = _items(tensor)
    if items is None:
        items = _items(tensor.contiguous())
        assert items is not None
    return items


class Linear:
    """See `ostrack_fast.ops.linear`. With dtype int8 x and the result are float32 or bfloat16."""

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor,
        norm_eps: float | None = None,
        activation: Activation = "none",
        dtype: torch.dtype = torch.float32,
    ):
        self._packed = _packed(weight, bias, dtype)
        self._outputs, self.inputs = weight.shape
        self._product, self._dtype = _PRODUCTS[dtype], _result_dtype(dtype)
        self._norm_eps = -1.0 if norm_eps is None else norm_eps
        self._activation = _ACTIVATIONS[activation]

    def __call__(self, x: Tensor, residual: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        *outer, inputs = x.shape
        shape = (*outer, self._outputs)
        if inputs != self.inputs:
            raise ValueError(f"x must be (...,{self.inputs}), is {tuple(x.shape)}")
        if out is None:
            out = torch.empty(shape, dtype=self._dtype if residual is None else torch.float32, device="cpu")
        to = _items(out)
        if to is None or out.shape != shape or out.dtype not in _ROWS or not out.is_cpu:
            raise ValueError(
                f"out must be {shape}, float32 or bfloat16, with dense rows; is {tuple(out.shape)} with strides "
                f"{out.stride()}, {out.dtype}"
            )
        rows = _dense(_readable(x))
        added = None
        if residual is out and out.dtype == torch.float32:
            added = to
        elif residual is not None:
            if residual.shape != shape or not residual.is_floating_point() or not residual.is_cpu:
                raise ValueError(f"residual must be float {shape} on the CPU, is {describe(residual)}")
            added = _dense(residual.resolve_neg().to(torch.float32))
        batch, count, _ = rows.shape
        item = to.stride(0)
        _C.cpu_linear(
            self._product,
            self._packed.data_ptr(),
            _ROWS[rows.dtype],
            native.address(rows),
            rows.stride(0),
            0 if added is None else native.address(added),
            0 if added is None else item if added is to else added.stride(0),
            _ROWS[to.dtype],
            native.address(to),
            item,
            batch,
            count,
            self._outputs,
            self.inputs,
            self._norm_eps,
            self._activation,
            torch.get_num_threads(),
        )
        return out


class Conv3x3:
    """See `ostrack_fast.ops.conv3x3`. With dtype int8 x and the result are float32 or bfloat16."""

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor,
        groups: int = 1,
        activation: Activation = "relu",
        dtype: torch.dtype = torch.float32,
    ):
        self._packed = _packed(weight, bias, dtype, groups)
        self._outputs, self.inputs, _, self._groups = _sizes(weight, groups)
        self._product, self._dtype = _PRODUCTS[dtype], _result_dtype(dtype)
        self._activation = _ACTIVATIONS[activation]

    def __call__(self, x: Tensor) -> Tensor:
        if x.dim() != 4 or x.shape[1] != x.shape[2] or x.shape[3] != self.inputs:
            raise ValueError(f"x must be (B,F,F,{self.inputs}), is {tuple(x.shape)}")
        x = _readable(x).contiguous()
        batch, side = x.shape[:2]
        out = torch.empty(batch, side, side, self._outputs, dtype=self._dtype, device="cpu")
        _C.cpu_conv3x3(
            self._product,
            self._packed.data_ptr(),
            _ROWS[x.dtype],
            native.address(x),
            _ROWS[out.dtype],
            native.address(out),
            batch,
            side,
            self._outputs,
            self.inputs,
            self._groups,
            self._activation,
            torch.get_num_threads(),
        )
        return out


class RestoreConv3x3:
    """See `ostrack_fast.ops.layers.restore_conv3x3`: one linear layer from each token to what it gives its neighbours.

    Places without a token cost nothing, and no map of tokens is made.
    """

    multiplies_tokens = True

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor,
        norm: tuple[Tensor, Tensor, float],
        grid: int,
        activation: Activation = "relu",
        dtype: torch.dtype = torch.float32,
    ):
        outputs, inputs = weight.shape[:2]
        scale, shift, eps = norm
        taps = weight.detach().permute(2, 3, 0, 1).reshape(-1, inputs).double()
        shifted = taps @ shift.double()
        self.layer = Linear(taps.mul_(scale.double()), shifted, eps, dtype=dtype)  # in place: it is a copy, and large
        self._bias = bias.detach().to(torch.float32).contiguous()
        self._outputs, self._grid, self._dtype = outputs, grid, _result_dtype(dtype)
        self._activation = _ACTIVATIONS[activation]

    def __call__(self, tokens: Tensor, ids: Tensor) -> Tensor:
        batch, count, _ = tokens.shape
        if ids.shape != (batch, count) or ids.dtype != torch.int64 or not ids.is_cpu:
            raise ValueError(f"ids must be int64 {(batch, count)}, are {describe(ids)}")
        products = torch.empty(batch, count, 9 * self._outputs, dtype=torch.float32, device="cpu")
        self.layer(tokens, out=products)
        ids = ids.contiguous()
        out = torch.empty(batch, self._grid, self._grid, self._outputs, dtype=self._dtype, device="cpu")
        _C.cpu_restore_conv3x3(
            native.address(products),
            native.address(ids),
            self._bias.data_ptr(),
            _ROWS[out.dtype],
            native.address(out),
            batch,
            count,
            self._outputs,
            self._grid,
            self._activation,
            torch.get_num_threads(),
        )
        return out
