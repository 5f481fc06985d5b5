"""The attention map of a fused attention, which computes none: made of queries and keys if anything reads it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

# What is known without the numbers.
_OUTLINE = {
    *(Tensor.size, Tensor.dim, Tensor.numel, Tensor.is_floating_point),
    *(getattr(Tensor, name).__get__ for name in ("shape", "dtype", "device", "ndim", "is_cuda", "requires_grad")),
}


class AttentionMap(Tensor):
    """softmax(Q K' scale) as a tensor (B,H,rows,columns) whose numbers are computed when they are first read.

    Slices of rows and columns stay unread, so that reading the template's rows computes these alone.
    """

    _qk: tuple[Tensor, Tensor]
    _rows: range
    _columns: range
    _numbers: Tensor | None

    @staticmethod
    def __new__(
        cls: type[AttentionMap],
        q: Tensor,
        k: Tensor,
        dtype: torch.dtype,
        rows: range | None = None,
        columns: range | None = None,
    ) -> AttentionMap:
        """Queries and keys (B,N,H,D); dtype of the map; the rows and columns of it that this is."""
        rows = range(q.shape[1]) if rows is None else rows
        columns = range(k.shape[1]) if columns is None else columns
        shape = q.shape[0], q.shape[2], len(rows), len(columns)
        made = torch.Tensor._make_wrapper_subclass(cls, shape, dtype=dtype, device=q.device)
        made._qk, made._rows, made._columns, made._numbers = (q, k), rows, columns, None
        return made

    def numbers(self) -> Tensor:
        """The map as a plain tensor."""
        if self._numbers is None:
            (q, k), rows, columns = self._qk, self._rows, self._columns
            with torch._C.DisableTorchFunctionSubclass():
                queries = q[:, rows.start : rows.stop].transpose(1, 2)
                logits = (queries @ k.permute(0, 2, 3, 1)) * q.shape[-1] ** -0.5
                self._numbers = logits.softmax(-1)[..., columns.start : columns.stop].to(self.dtype)
        return self._numbers

    def _part(self, index: Any) -> AttentionMap | None:
        """The slice, if it takes whole images and heads and a range of rows and columns."""
        whole = slice(None)
        if not isinstance(index, tuple) or len(index) != 4 or index[0] != whole or index[1] != whole:
            return None
        parts: list[range] = []
        for each, positions in zip(index[2:], (self._rows, self._columns), strict=True):
            if not isinstance(each, slice) or each.step not in (None, 1):
                return None
            if any(not isinstance(end, (int, type(None))) for end in (each.start, each.stop)):
                return None
            parts.append(positions[each])
        return AttentionMap(*self._qk, self.dtype, *parts)

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Sequence[type], args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in _OUTLINE:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **(kwargs or {}))
        if func is Tensor.__getitem__ and isinstance(args[0], AttentionMap) and args[0]._numbers is None:
            part = args[0]._part(args[1])
            if part is not None:
                return part
        return func(*tree_map(_plain, args), **tree_map(_plain, kwargs or {}))

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch annotates it with a function that disables it
        cls, func: Any, types: Sequence[type], args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """For callers beneath Python's operators."""
        return func(*tree_map(_plain, args), **tree_map(_plain, kwargs or {}))


def _plain(value: Any) -> Any:
    return value.numbers() if isinstance(value, AttentionMap) else value
