"""Attention that a module writes out itself: its own code goes on, with our ops for its layers and for softmax(Q K') V.

So it may bias, split or keep queries, keys and values, and have other methods than `forward`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from inspect import isfunction
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from ..ops.layers import Layer, cross_attention, linear
from .attention import is_attention_of_any_kind
from .attention_map import Unread
from .block import NotServed
from .linear import in_dtype_of, is_plain, readable

_MATMULS = {Tensor.matmul, Tensor.__matmul__, torch.matmul}
_SOFTMAXES = {Tensor.softmax, torch.softmax, functional.softmax}
_Attend = Callable[[Tensor, Tensor, Tensor, float], Tensor]


def methods_of(module: nn.Module) -> list[str]:
    """Methods beside `forward` that the module's class, or one it is made from, adds to a module's."""
    if not is_attention_of_any_kind(module):
        return []
    classes = type(module).__mro__[: type(module).__mro__.index(nn.Module)]
    names = {name for each in classes for name, value in vars(each).items() if isfunction(value)}
    return sorted(name for name in names if not name.startswith("_") and not hasattr(nn.Module, name))


class _Logits(Unread):
    """Q K' scale as a tensor (B,H,M,N) that becomes `_Probability`."""

    _parts: tuple[Tensor, Tensor, float, _Attend]

    @staticmethod
    def __new__(cls: type[_Logits], q: Tensor, k: Tensor, scale: float, attend: _Attend) -> _Logits:
        """Queries (B,H,M,D) and keys (B,H,N,D)."""
        shape = *q.shape[:3], k.shape[2]
        made = torch.Tensor._make_wrapper_subclass(cls, shape, dtype=q.dtype, device=q.device)
        made._parts, made.known = (q, k, scale, attend), None
        return made

    def _compute(self) -> Tensor:
        q, k, scale, _ = self._parts
        return (q @ k.transpose(-2, -1)) * scale

    def _unread(self, func: Any, args: tuple, kwargs: dict[str, Any]) -> Tensor | None:
        q, k, scale, attend = self._parts
        if len(args) == 1 and isinstance(args[0], (int, float)):
            if func in (Tensor.mul, torch.mul):
                return _Logits(q, k, scale * args[0], attend)
            if func in (Tensor.div, torch.div):
                return _Logits(q, k, scale / args[0], attend)
        if func in _SOFTMAXES and kwargs.get("dtype") is None and (*args, kwargs.get("dim"))[0] in (-1, 3):
            return _Probability(q, k, scale, attend)
        return _dropped(self, func, args, kwargs)


class _Probability(_Logits):
    """Its softmax, whose product with the values is our attention."""

    def _compute(self) -> Tensor:
        return super()._compute().softmax(-1)

    def _unread(self, func: Any, args: tuple, kwargs: dict[str, Any]) -> Tensor | None:
        q, k, scale, attend = self._parts
        if func in _MATMULS and type(args[0]) is Tensor and args[0].shape == k.shape and args[0].dtype == k.dtype:
            return attend(q, k, args[0], scale)
        return _dropped(self, func, args, kwargs)


def _dropped(of: Tensor, func: Any, args: tuple, kwargs: dict[str, Any]) -> Tensor | None:
    """Of a dropout that drops nothing, as in evaluation, its input."""
    return of if func is functional.dropout and kwargs.get("training") is False else None


class OurOps(TorchFunctionMode):
    """Our ops in the place of PyTorch's, for these linear layers and for attention."""

    def __init__(self, module: nn.Module, dtype: torch.dtype):
        super().__init__()
        self._weights = {id(each.weight): each.weight for each in module.modules() if is_plain(each)}
        self._packed = dict[int, tuple[Tensor | None, Layer]]()
        self._dtype = dtype
        self.begun = self.ended = 0  # products of queries and keys, and those that became our attention

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is functional.linear:
            return self._linear(*args, **(kwargs or {}))
        if func in _MATMULS and len(args) == 2 and not kwargs and self._are_queries_and_keys(*args):
            self.begun += 1
            return _Logits(args[0], args[1].transpose(-2, -1), 1.0, self._attend)
        return func(*args, **(kwargs or {}))

    def _linear(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        computed = bias is not None and not isinstance(bias, nn.Parameter)
        served = self._weights.get(id(weight)) is weight and type(input) is Tensor and input.dim() > 1
        if not served or (computed and not weight.is_cpu):  # a GPU would be waited for to compare its numbers
            return functional.linear(input, weight, bias)
        known = self._packed.get(id(weight))
        if known is None or not _same(known[0], bias):
            shift = weight.new_zeros(len(weight)) if bias is None else bias.detach()
            layer = linear(weight.detach().float(), shift.float(), dtype=self._dtype)
            known = self._packed[id(weight)] = (bias.clone() if computed and bias is not None else bias, layer)
        return in_dtype_of(input, known[1], readable(input, self._dtype), len(weight))

    def _are_queries_and_keys(self, q: Any, keys: Any) -> bool:
        """Whether they are (B,H,M,D) and (B,H,D,N), the second transposed of (B,H,N,D)."""
        if type(q) is not Tensor or type(keys) is not Tensor or q.dim() != 4 or keys.dim() != 4 or 0 in keys.shape:
            return False
        fits = q.shape[:2] == keys.shape[:2] and q.shape[3] == keys.shape[2] and q.dtype == keys.dtype
        return fits and q.is_floating_point() and keys.stride(2) == 1

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """softmax(Q K' scale) V of (B,H,M,D) and (B,H,N,D), as (B,H,M,D)."""
        self.ended += 1
        half = torch.bfloat16 if self._dtype == torch.int8 else self._dtype
        batch, heads, tokens, width = k.shape
        ratio = scale * width**0.5
        queries = (q if abs(ratio - 1) < 1e-6 else q * ratio).transpose(1, 2).to(half)
        kv = k.new_empty(batch, tokens, 2, heads, width, dtype=half)
        kv[:, :, 0], kv[:, :, 1] = k.transpose(1, 2), v.transpose(1, 2)
        attended, _ = cross_attention(heads, width, half, q.device)(queries, kv)
        return attended.to(q.dtype).unflatten(2, (heads, width)).transpose(1, 2)


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    return a is b or (a is not None and b is not None and torch.equal(a, b))


class WrittenOut:
    """One of a module's own methods, computed with our ops."""

    def __init__(self, module: nn.Module, dtype: torch.dtype, method: Callable[..., Any]):
        self._ours, self._method, self._attends = OurOps(module, dtype), method, False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self._ours.begun = self._ours.ended = 0
        with self._ours:
            result = self._method(*args, **kwargs)
        if not self._attends and not 0 < self._ours.begun == self._ours.ended:
            raise NotServed("its attention is not softmax(Q K') V alone")
        self._attends = True  # known from the first call, which is that of a check: in others it is too late to refuse
        return result
