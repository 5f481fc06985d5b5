"""Attention whose queries are given apart from keys and values, so that eliminated tokens need none."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from .. import native
from ..attention import check_mask, check_mask_values, native_cpu_reason
from ..attention import cross_attention as attend
from ..registry import Backend, LayerOp
from ..tensors import Seeded, check_no_derivative, check_one_device, describe, ieee_float32, without_autocast


class QueryAttention(Protocol):
    """See `cross_attention`."""

    def __call__(
        self, q: Tensor, kv: Tensor, template_mask: Tensor | None = None, out: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]: ...


class _CrossAttention:
    """The checks of every call, and in plain PyTorch the answer."""

    def __init__(self, heads: int, width: int, dtype: torch.dtype, device: torch.device):
        self._heads, self._width, self._dtype = heads, width, dtype

    def __call__(
        self, q: Tensor, kv: Tensor, template_mask: Tensor | None = None, out: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        check_no_derivative("cross_attention", q, kv)
        batch, queries, tokens = q.shape[0], q.shape[1], kv.shape[1]
        heads = (self._heads, self._width)
        if q.dim() != 4 or q.shape[2:] != heads or q.dtype != self._dtype:
            raise ValueError(f"q must be {self._dtype} (B,M,{heads[0]},{heads[1]}), is {describe(q)}")
        if kv.shape != (batch, tokens, 2, *heads) or kv.dtype != self._dtype or tokens == 0:
            raise ValueError(f"kv must be {self._dtype} ({batch},N,2,{heads[0]},{heads[1]}), is {describe(kv)}")
        shape = (batch, queries, heads[0] * heads[1])
        if out is not None and (out.shape != shape or out.dtype != self._dtype):
            raise ValueError(f"out must be {self._dtype} {shape}, is {describe(out)}")
        if template_mask is not None:
            check_mask(template_mask, batch, min(queries, tokens))
            if template_mask.is_cpu:
                check_mask_values(template_mask)
        check_one_device(q=q, kv=kv, template_mask=template_mask, out=out)
        return self._attend(q, kv, template_mask, out)

    def _attend(
        self, q: Tensor, kv: Tensor, template_mask: Tensor | None, out: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        with ieee_float32(q, "matmul"):
            attended, score = without_autocast(attend)(q, kv, template_mask)
        return attended if out is None else out.copy_(attended), score


class _NativeCrossAttention(_CrossAttention):
    def _attend(
        self, q: Tensor, kv: Tensor, template_mask: Tensor | None, out: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        batch, queries, heads, width = q.shape
        result = q.new_empty(batch, queries, heads * width) if out is None else out
        dense_rows = result.stride(2) == 1 and result.stride(1) == heads * width
        if out is not None and not dense_rows and out.numel():
            raise ValueError(f"the rows of out must be dense, its strides are {out.stride()}")
        mask = score = None
        if template_mask is not None:
            mask = native.dense(template_mask)
            score = q.new_empty(batch, kv.shape[1] - template_mask.shape[-1], dtype=torch.float32)
        native.call("attention", q.device, native.dense(q), native.dense(kv), mask, result, score, None)
        return result, score


def _check(heads: int, width: int, dtype: torch.dtype, device: torch.device) -> None:
    if heads < 1 or width < 1 or not dtype.is_floating_point:
        raise ValueError(f"{heads} heads of {width} in {dtype}: sizes must be positive, dtype a float one")


def _native_unless(heads: int, width: int, dtype: torch.dtype, device: torch.device) -> str | None:
    return native_cpu_reason(width, dtype) if device.type == "cpu" else "no CUDA kernel with queries apart"


def _always(heads: int, width: int, dtype: torch.dtype, device: torch.device) -> None:
    return None


def _example(dtype: torch.dtype, device: torch.device, heads: int, width: int) -> tuple:
    return heads, width, dtype, device


def _inputs(
    heads: int, width: int, dtype: torch.dtype, device: torch.device, batch: int = 2
) -> tuple[Tensor, Tensor, Tensor]:
    random = Seeded(heads, device)
    q = random.normal(batch, 70, heads, width, dtype=dtype)
    kv = random.normal(batch, 153, 2, heads, width, dtype=dtype)
    return q, kv, torch.arange(64, dtype=torch.int64, device=device) % 7 == 0


cross_attention_op = LayerOp(
    "cross_attention",
    check=_check,
    # Only a CPU gains by fewer queries so far: on a GPU the launches that save them cost more than they save.
    backends={
        "native": Backend(_NativeCrossAttention, _native_unless),
        "reference": Backend(_CrossAttention, _always),
    },
    sizes={"small": [(2, 8)], "typical": [(12, 64)], "edge": [(1, 1), (2, 33), (1, 128)]},
    example=_example,
    inputs=_inputs,
    kernel="attention",
)


def cross_attention(heads: int, width: int, dtype: torch.dtype, device: torch.device) -> QueryAttention:
    """`ops.attention` where not every token needs a query: queries are given apart from keys and values.

    Returns:
        A function `(q, kv, template_mask=None, out=None)` of queries (B,M,heads,width), the T template tokens' first
        if there is a mask, and keys with values (B,N,2,heads,width), in `dtype`. It returns (B,M,C), written to `out`
        if that is given, whose rows must be dense; and the score (B,N-T) or None.
    """
    return cross_attention_op.build(heads, width, dtype, device)
