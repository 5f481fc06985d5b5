"""Tensors whose numbers are computed when they are first read, such as the map of a fused attention."""

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


class Unread(Tensor):
    """A tensor whose numbers are computed when they are first read."""

    known: Tensor | None

    def _compute(self) -> Tensor:
        raise NotImplementedError

    def _unread(self, func: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        """What func gives for this tensor and the other arguments, if that needs no numbers, else None."""
        return None

    def numbers(self) -> Tensor:
        """This as a plain tensor."""
        if self.known is None:
            with torch._C.DisableTorchFunctionSubclass():
                self.known = self._compute()
        return self.known

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Sequence[type], args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in _OUTLINE:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **(kwargs or {}))
        if args and isinstance(args[0], Unread) and args[0].known is None:
            found = args[0]._unread(func, args[1:], kwargs or {})
            if found is not None:
                return found
        return func(*tree_map(_plain, args), **tree_map(_plain, kwargs or {}))

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch annotates it with a function that disables it
        cls, func: Any, types: Sequence[type], args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """For callers beneath Python's operators."""
        return func(*tree_map(_plain, args), **tree_map(_plain, kwargs or {}))


class AttentionMap(Unread):
    """softmax(Q K' scale) as a tensor (B,H,rows,columns).

    Slices of rows and columns stay unread, so that reading the template's rows computes these alone.
    """

    _qk: tuple[Tensor, Tensor]
    _rows: range
    _columns: range

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
        made._qk, made._rows, made._columns, made.known = (q, k), rows, columns, None
        return made

    def _compute(self) -> Tensor:
        (q, k), rows, columns = self._qk, self._rows, self._columns
        queries = q[:, rows.start : rows.stop].transpose(1, 2)
        logits = (queries @ k.permute(0, 2, 3, 1)) * q.shape[-1] ** -0.5
        return logits.softmax(-1)[..., columns.start : columns.stop].to(self.dtype)

    def _unread(self, func: Any, args: tuple, kwargs: dict[str, Any]) -> AttentionMap | None:
        return self._part(args[0]) if func is Tensor.__getitem__ else None

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


def _plain(value: Any) -> Any:
    return value.numbers() if isinstance(value, Unread) else value
