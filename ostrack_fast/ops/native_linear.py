"""The compiled GEMMs of frozen layers on the CPU: weights are prepacked, LayerNorm is fused into the prologue, and
bias, activation and residual into the epilogue.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import native
from .native import _C
from .recording import launch
from .tensors import Activation, check_no_derivative, describe
from .threads import thread_count

_ROW_DTYPES = (torch.float32, torch.bfloat16)
_COMPUTE_DTYPES = (*_ROW_DTYPES, torch.int8)
_CPU = torch.device("cpu")


def reason(weight: Tensor, dtype: torch.dtype = torch.float32, groups: int = 1) -> str | None:
    """Why `Linear`, `Conv3x3` or `RestoreConv3x3` cannot run such a layer here, or None."""
    if dtype not in _COMPUTE_DTYPES:
        return f"no CPU kernel for matmuls in {dtype}; only float32, bfloat16 and int8"
    try:
        _packed_bytes(weight, dtype, groups)
    except TypeError:
        return "needs AVX2 and FMA, which this processor or OSTRACK_FAST_CPU_CAPABILITY excludes"
    except ValueError as error:
        return f"{error} (weight {tuple(weight.shape)}, groups {groups})"
    return None


def _packed_bytes(weight: Tensor, dtype: torch.dtype, groups: int) -> int:
    """Bytes of the prepacked weights; the weights themselves are not read, and may be on any device."""
    outputs, inputs = weight.shape[:2]
    shape = outputs, weight[0, 0].numel(), inputs
    unread = (0, native.code(torch.float32), shape, (shape[1] * shape[2], shape[2], 1))
    return _C.cpu_linear_packed_bytes(unread, native.code(dtype), groups)


class _PackedWeights:
    """Weight (O,I/groups) or (O,I/groups,3,3) and bias (O), prepacked.

    `view` is how they cross the C ABI.
    """

    def __init__(self, weight: Tensor, bias: Tensor, dtype: torch.dtype, groups: int = 1):
        self._bytes = torch.empty(_packed_bytes(weight, dtype, groups), dtype=torch.uint8, device="cpu")
        taps = weight.detach().to(torch.float32).flatten(2) if weight.dim() > 2 else weight.detach().float()[:, :, None]
        rows, bias = taps.transpose(1, 2).contiguous(), bias.detach().to(torch.float32).contiguous()
        native.call("linear_pack", _CPU, rows, bias, self._bytes, native.code(dtype), groups)
        self._view = native.view(self._bytes)

    @property
    def view(self) -> native.TensorView:
        # They may move: PyTorch puts what is sent to another process into memory that both share.
        if self._bytes.data_ptr() != self._view[0]:
            self._view = native.view(self._bytes)
        return self._view

    def __getstate__(self) -> Tensor:
        return self._bytes

    def __setstate__(self, state: Tensor) -> None:
        self._bytes, self._view = state, native.view(state)


def _readable(x: Tensor) -> Tensor:
    check_no_derivative("a frozen layer", x)
    if not x.is_floating_point() or not x.is_cpu:
        raise ValueError(f"x must be float and on the CPU, is {describe(x)} on {x.device}")
    x = x.resolve_neg() if x.is_neg() else x
    return x if x.dtype in _ROW_DTYPES else x.to(torch.float32)


def _rows_view(tensor: Tensor) -> Tensor | None:
    """View (...,C) as (B,R,C) with dense rows, or None if that needs a copy."""
    if tensor.dim() == 3:
        (_, rows, width), (_, row, one) = tensor.shape, tensor.stride()
        dense = (one == 1 or width == 1) and (row == width or rows == 1)
        return tensor if dense or tensor.numel() == 0 else None
    return tensor.view(1, -1, tensor.shape[-1]) if tensor.is_contiguous() else None


def _dense_rows(tensor: Tensor) -> Tensor:
    rows = _rows_view(tensor)
    if rows is None:
        rows = _rows_view(tensor.contiguous())
        assert rows is not None
    return rows


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
        self._packed = _PackedWeights(weight, bias, dtype)
        self._outputs, self.inputs = weight.shape
        self._compute_dtype, self._dtype = native.code(dtype), native.result_dtype(dtype)
        self._norm_eps = -1.0 if norm_eps is None else norm_eps
        self._activation = _C.activations[activation]

    def __call__(self, x: Tensor, residual: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        *outer, inputs = x.shape
        shape = (*outer, self._outputs)
        if inputs != self.inputs:
            raise ValueError(f"x must be (...,{self.inputs}), is {tuple(x.shape)}")
        if out is None:
            out = torch.empty(shape, dtype=self._dtype if residual is None else torch.float32, device="cpu")
        to = _rows_view(out)
        if to is None or out.shape != shape or out.dtype not in _ROW_DTYPES or not out.is_cpu:
            raise ValueError(
                f"out must be {shape}, float32 or bfloat16, with dense rows; is {tuple(out.shape)} with strides "
                f"{out.stride()}, {out.dtype}"
            )
        rows = _dense_rows(_readable(x))
        added = None
        if residual is out and out.dtype == torch.float32:
            added = to
        elif residual is not None:
            if residual.shape != shape or not residual.is_floating_point() or not residual.is_cpu:
                raise ValueError(f"residual must be float {shape} on the CPU, is {describe(residual)}")
            added = _dense_rows(residual.resolve_neg().to(torch.float32))
        result = native.view(to)
        shift = result if added is to else None if added is None else native.view(added)
        numbers = self._compute_dtype, self._norm_eps, self._activation
        launch(_C.cpu_linear, self._packed.view, native.view(rows), shift, result, *numbers, thread_count())
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
        self._packed = _PackedWeights(weight, bias, dtype, groups)
        self._outputs, self.inputs, self._groups = weight.shape[0], weight.shape[1] * groups, groups
        self._compute_dtype, self._dtype = native.code(dtype), native.result_dtype(dtype)
        self._activation = _C.activations[activation]

    def __call__(self, x: Tensor) -> Tensor:
        if x.dim() != 4 or x.shape[1] != x.shape[2] or x.shape[3] != self.inputs:
            raise ValueError(f"x must be (B,F,F,{self.inputs}), is {tuple(x.shape)}")
        x = _readable(x).contiguous()
        batch, side = x.shape[:2]
        out = torch.empty(batch, side, side, self._outputs, dtype=self._dtype, device="cpu")
        numbers = self._compute_dtype, self._groups, self._activation
        launch(_C.cpu_conv3x3, self._packed.view, native.view(x), native.view(out), *numbers, thread_count())
        return out


class RestoreConv3x3:
    """See `ostrack_fast.ops.layers.restore_conv3x3`: one linear layer from each token to what it gives its neighbours.

    Cells without a token cost nothing, and no map of tokens is made.
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
        rows = weight.detach().permute(2, 3, 0, 1).reshape(-1, inputs).double()
        shifted = rows @ shift.double()
        self.layer = Linear(rows.mul_(scale.double()), shifted, eps, dtype=dtype)  # in place: it is a copy, and large
        self._bias = bias.detach().to(torch.float32).contiguous()
        self._outputs, self._grid, self._dtype = outputs, grid, native.result_dtype(dtype)
        self._activation = _C.activations[activation]

    def __call__(self, tokens: Tensor, ids: Tensor) -> Tensor:
        batch, count, _ = tokens.shape
        if ids.shape != (batch, count) or ids.dtype != torch.int64 or not ids.is_cpu:
            raise ValueError(f"ids must be int64 {(batch, count)}, are {describe(ids)}")
        taps = torch.empty(batch, count, 9 * self._outputs, dtype=torch.float32, device="cpu")
        self.layer(tokens, out=taps)
        out = torch.empty(batch, self._grid, self._grid, self._outputs, dtype=self._dtype, device="cpu")
        taps = taps.view(batch, count, 9, self._outputs)
        native.call("restore_conv3x3", _CPU, taps, ids.contiguous(), self._bias, out, self._activation)
        return out
