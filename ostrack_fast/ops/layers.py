"""What a frozen network is built of: chosen once for the backend that runs it, weights as that backend wants them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor

from . import dispatch, native, native_linear, reference, restore
from .reference import Activation


class Layer(Protocol):
    """`linear`'s and `conv3x3`'s results: call them with a tensor, and see their own documentation."""

    @property
    def inputs(self) -> int:
        """Features of a row of x."""

    def __call__(self, x: Tensor, residual: Tensor | None = None, out: Tensor | None = None) -> Tensor: ...


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
        dtype: of the product's factors; sums are float32. int8 quantizes the rows of weight beforehand and those of x
            as they come, symmetrically, each 64 inputs by themselves.

    Returns:
        A function `(x, residual=None, out=None)` of x (...,I) float32 or `dtype` (bfloat16 for int8), dense. It returns
        (...,O): float32 with a residual, which is (...,O) float32 too, else `dtype`. `out`, which may be `residual`,
        takes the result: rows must be dense, as in a slice along the second of three dimensions.
    """
    return _build("linear", weight, bias, norm_eps=norm_eps, activation=activation, dtype=dtype)


def conv3x3(
    weight: Tensor,
    bias: Tensor,
    groups: int = 1,
    activation: Activation = "relu",
    dtype: torch.dtype = torch.float32,
) -> Layer:
    """A frozen 3 x 3 convolution, zero border, on maps (B,F,F,I): returns a function `x -> (B,F,F,O)` in `dtype`.

    Args:
        weight: (O,I/groups,3,3) float32. bias: (O,) float32. dtype: as for `linear`.
    """
    return _build("conv3x3", weight, bias, groups=groups, activation=activation, dtype=dtype)


def restore_conv3x3(
    weight: Tensor,
    bias: Tensor,
    norm: tuple[Tensor, Tensor, float],
    tokens: int,
    grid: int,
    dtype: torch.dtype = torch.float32,
) -> RestoreThenConv3x3 | native_linear.RestoreConv3x3:
    """The final LayerNorm, `ops.restore` and `conv3x3`, in one: the head's first convolution.

    Candidate elimination leaves most places of the map empty. On a CPU only the tokens are multiplied then; elsewhere,
    and where all are there, the map is made and the convolution goes over it.

    Args:
        weight: (O,C,3,3) float32. bias: (O,) float32. dtype: as for `linear`.
        norm: weight (C,), bias (C,) and eps of the LayerNorm.
        tokens: how many there will be. grid: side F of the map.

    Returns:
        A function of tokens (B,K,C) float32 and their places ids (B,K): relu(convolution) (B,F,F,O) in `dtype`
        (bfloat16 for int8).
    """
    missing = tokens < grid * grid and dispatch.forced_backend() in (None, "native")
    if missing and dispatch.problem("native", "restore_conv3x3", {"weight": weight, "dtype": dtype}) is None:
        return native_linear.RestoreConv3x3(weight, bias, norm, grid, dtype=dtype)
    return RestoreThenConv3x3(conv3x3(weight, bias, dtype=dtype), norm, grid, dtype)


class RestoreThenConv3x3:
    """See `restore_conv3x3`: makes the whole map, then convolves it with `layer`."""

    multiplies_tokens = False

    def __init__(self, layer: Layer, norm: tuple[Tensor, Tensor, float], grid: int, dtype: torch.dtype):
        self.layer, self._norm, self._grid = layer, norm, grid
        self._dtype = torch.bfloat16 if dtype == torch.int8 else dtype

    def __call__(self, tokens: Tensor, ids: Tensor) -> Tensor:
        restored = restore(tokens, ids, self._grid, *self._norm, channels_last=True, dtype=self._dtype)
        return self.layer(restored.permute(0, 2, 3, 1))


def cross_attention(
    heads: int, width: int, dtype: torch.dtype, device: torch.device
) -> Callable[..., tuple[Tensor, Tensor | None]]:
    """`ops.attention` where not every token needs to ask: queries lie apart from keys and values.

    Returns:
        A function `(q, kv, template_mask=None, out=None)` of queries (B,M,heads,width), the T template tokens' first
        if there is a mask, and keys with values (B,N,2,heads,width), in `dtype`. It returns (B,M,C), written to `out`
        if that is given, whose rows must be dense; and the score (B,N-T) or None.
    """
    asked = {"qkv": torch.empty(1, 1, 3, heads, width, dtype=dtype, device=device)}
    if device.type == "cpu" and dispatch.choose("attention", asked) == "native":
        return native.cross_attention

    def run(
        q: Tensor, kv: Tensor, template_mask: Tensor | None = None, out: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        attended, score = reference.cross_attention(q, kv, template_mask)
        return attended if out is None else out.copy_(attended), score

    return run


def _build(op: str, weight: Tensor, bias: Tensor, **how: Any) -> Layer:
    asked = {"weight": weight, "bias": bias, **how}
    # Only the compiled kernels quantize.
    with dispatch.use("native") if how["dtype"] == torch.int8 else nullcontext():
        return dispatch.select(op, asked)(**asked)


def why_no_int8(device: torch.device) -> str | None:
    """Why int8 layers cannot run on this device, or None."""
    return dispatch.problem("native", "linear", {"weight": torch.empty(1, 1, device=device), "dtype": torch.int8})


def fast_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 faster than float32."""
    try:
        features = native.build_info()["cpu_features"]
    except RuntimeError:  # not built
        return False
    return features["avx512_bf16"] or features["amx_bf16"]


def why_slow_in_half(dtype: torch.dtype) -> str | None:
    """Why layers of a half-precision compute dtype are slower than float32 ones on this CPU, or None."""
    if dtype == torch.bfloat16 and fast_bfloat16():
        return None
    return dispatch.problem("native", "linear", {"weight": torch.empty(1, 1), "dtype": dtype})
