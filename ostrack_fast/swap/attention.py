"""Self-attention with one layer for queries, keys and values, and one behind it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from .. import ops
from .attention_map import AttentionMap
from .linear import in_dtype_of, is_plain, owns_only, packed, readable


def is_attention_of_any_kind(module: nn.Module) -> bool:
    """Whether it has `qkv`, `proj` and `num_heads`, in sizes that fit together."""
    qkv, proj, heads = (getattr(module, name, None) for name in ("qkv", "proj", "num_heads"))
    if not is_plain(qkv) or not is_plain(proj) or not isinstance(heads, int) or heads < 1:
        return False
    first, second = cast(nn.Linear, qkv), cast(nn.Linear, proj)
    return first.out_features == 3 * second.in_features and second.in_features % heads == 0


def is_attention(module: nn.Module) -> bool:
    """Whether it has no other parameters besides."""
    return is_attention_of_any_kind(module) and owns_only(module, cast(Any, module).qkv, cast(Any, module).proj)


def attend(qkv: Tensor, heads: int, mask: Tensor | None = None) -> tuple[Tensor, Tensor | None, Tensor]:
    """qkv (B,N,3C) -> attention (B,N,C), score (B,S) of every candidate if there is a mask, qkv as (B,N,3,H,D)."""
    split = qkv.unflatten(2, (3, heads, -1))
    return (*ops.attention(split, mask), split)


def map_of(split: Tensor, dtype: torch.dtype) -> AttentionMap:
    """The attention map of qkv (B,N,3,H,D), in this dtype, once it is read."""
    return AttentionMap(split[:, :, 0], split[:, :, 1], dtype)


def build_attention(module: nn.Module, dtype: torch.dtype) -> Callable[..., tuple[Tensor, Tensor]]:
    qkv, proj = cast(nn.Linear, module.qkv), cast(nn.Linear, module.proj)
    heads = cast(int, module.num_heads)
    first, second, outputs = packed(qkv, dtype), packed(proj, dtype), proj.out_features

    def run(x: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        attended, _score, split = attend(first(readable(x, dtype)), heads)
        return in_dtype_of(x, second, attended, outputs), map_of(split, x.dtype)

    return run


# What attention returns, of (result, map).
FORMS: tuple[Callable[[Any], Any], ...] = (
    lambda found: found[0],
    lambda found: found,
    lambda found: (found[0], None),
)
