"""Pre-norm transformer blocks, with and without candidate elimination between attention and MLP."""

from __future__ import annotations

from collections.abc import Callable
from math import ceil
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from .. import ops
from ..ops.layers import Layer
from .attention import attend, is_attention, map_of
from .compare import difference
from .linear import is_mlp, owns_only, packed


class NotServed(Exception):
    """A call that the replacement does not compute; the message says why."""


class _Candidates(NamedTuple):
    """The arguments of a block that may eliminate, as the published CEBlock takes them behind the tokens."""

    template_ids: Tensor
    ids: Tensor
    mask: None
    template_mask: Tensor | None
    keep_ratio: float | None


def is_block(module: nn.Module) -> bool:
    """Whether it has `norm1`, `attn`, `norm2` and `mlp` that can be replaced, and no other parameters."""
    parts = [getattr(module, name, None) for name in ("norm1", "attn", "norm2", "mlp")]
    if not all(isinstance(part, nn.Module) for part in parts):
        return False
    norm1, attention, norm2, mlp = cast("list[nn.Module]", parts)
    norms = isinstance(norm1, nn.LayerNorm) and isinstance(norm2, nn.LayerNorm)
    return norms and is_attention(attention) and is_mlp(mlp) and owns_only(module, norm1, attention, norm2, mlp)


class _Block:
    def __init__(self, module: Any, dtype: torch.dtype):
        norm1, attention, norm2, mlp = module.norm1, module.attn, module.norm2, module.mlp
        self._heads: int = attention.num_heads
        self._qkv, self._proj = packed(attention.qkv, dtype, norm1), packed(attention.proj, dtype)
        self._fc1, self._fc2 = packed(mlp.fc1, dtype, norm2, "gelu"), packed(mlp.fc2, dtype)
        # None where the module eliminates nothing.
        self._ratio = float(getattr(module, "keep_ratio_search", 1))

    def __call__(self, x: Tensor, *arguments: Any, **options: Any) -> tuple[Any, ...]:
        """The tokens; and for a block that takes candidates, template ids, ids, removed ids and the attention map."""
        if any(isinstance(each, Tensor) for each in options.values()):
            raise NotServed("takes tensors by keyword")
        candidates = _candidates(x, arguments)
        stream = x.float()
        if candidates is None:
            stream, _, _ = self._attention(stream, None)
            return (self._mlp(stream).to(x.dtype),)
        keep = self._kept(candidates)
        leading = x.shape[1] - candidates.ids.shape[1]
        stream, score, split = self._attention(stream, None if keep is None else _rows(candidates, leading))
        ids, removed = candidates.ids, None
        if keep is not None:
            positions = torch.arange(ids.shape[1], dtype=torch.int64, device=x.device).expand(ids.shape)
            stream, kept, gone = ops.eliminate(stream, cast(Tensor, score), positions, keep)
            ids, removed = ids.gather(1, kept), ids.gather(1, gone)
        tokens = self._mlp(stream).to(x.dtype)
        return tokens, candidates.template_ids, ids, removed, map_of(split, x.dtype)

    def _kept(self, candidates: _Candidates) -> int | None:
        """How many candidates are kept, or None if all are."""
        asked, count = candidates.keep_ratio, candidates.ids.shape[1]
        if self._ratio >= 1 or (asked is not None and asked >= 1):
            return None
        keep = ceil((self._ratio if asked is None else asked) * count)
        return None if keep == count else keep

    def _attention(self, stream: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None, Tensor]:
        attended, score, split = attend(self._qkv(stream), self._heads, mask)
        return self._proj(attended, stream), score, split

    def _mlp(self, stream: Tensor) -> Tensor:
        fc2: Layer = self._fc2
        return fc2(self._fc1(stream), stream, stream)


def _candidates(x: Tensor, arguments: tuple[Any, ...]) -> _Candidates | None:
    """The arguments behind the tokens, or None if there are no tensors among them."""
    if not any(isinstance(each, Tensor) for each in arguments):
        return None
    if len(arguments) > 5:
        raise NotServed("takes more arguments than a block with candidate elimination")
    padded: list[Any] = [*arguments, *[None] * (5 - len(arguments))]
    template_ids, ids, mask, template_mask, ratio = padded
    known = isinstance(template_ids, Tensor) and isinstance(ids, Tensor) and mask is None
    rows = template_mask is None or (isinstance(template_mask, Tensor) and template_mask.dtype == torch.bool)
    if not known or not rows or not isinstance(ratio, (float, int, type(None))):
        raise NotServed("takes a mask or tensors of its own")
    if ids.dim() != 2 or template_ids.dim() != 2 or template_ids.shape[1] + ids.shape[1] > x.shape[1]:
        raise NotServed("its tensors are not the ids of template and candidates")
    return _Candidates(template_ids, ids, None, template_mask, ratio)


def _rows(candidates: _Candidates, leading: int) -> Tensor:
    """Which of the leading tokens rank the candidates: of the template's those of the mask.

    None means all of them, as in the published code. Tokens before the template's, such as a class token, rank nothing.
    """
    ids, mask = candidates.template_ids, candidates.template_mask
    if mask is None:
        mask = torch.ones(ids.shape[1], dtype=torch.bool, device=ids.device)
    counts = mask.sum(-1).flatten()
    if mask.shape[-1] != ids.shape[1] or not bool(counts[0]) or not bool((counts == counts[0]).all()):
        raise NotServed("the template mask chooses no row, or not as many for every image")
    return nn.functional.pad(mask, (leading - ids.shape[1], 0))


def build_block(module: nn.Module, dtype: torch.dtype) -> Callable[..., tuple[Any, ...]]:
    return _Block(module, dtype)


# What a block returns, of the tokens alone and of all that a block with candidates has.
FORMS: tuple[Callable[[Any], Any], ...] = (lambda found: found, lambda found: found[0], lambda found: (found[0], None))


def eliminates(module: nn.Module) -> bool:
    return getattr(module, "keep_ratio_search", 1) < 1


def _both_eliminated(expected: Any, found: Any) -> bool:
    pair = isinstance(expected, tuple) and isinstance(found, tuple) and len(expected) == len(found) == 5
    return pair and expected[3] is not None and found[3] is not None and expected[0].shape == found[0].shape


def exactly(expected: Any, found: Any) -> float:
    """`difference`, whatever the order of the candidates: rounding decides it where scores are almost the same."""
    if _both_eliminated(expected, found):
        expected, found = _by_ids(*expected), _by_ids(*found)
    return difference(expected, found)


def _by_ids(tokens: Tensor, template_ids: Tensor, ids: Tensor, removed: Tensor, attention: Any) -> tuple:
    """What a block returns, with its candidates in the order of their ids."""
    ids, order = ids.sort(1)
    leading, candidates = tokens.tensor_split([tokens.shape[1] - ids.shape[1]], 1)
    return (
        leading,
        candidates.take_along_dim(order[:, :, None], 1),
        template_ids,
        ids,
        removed.sort(1).values,
        attention,
    )


def loosely(expected: Any, found: Any) -> float:
    """`difference`; where candidates were eliminated, of the mean of the tokens that are left.

    With less precision, candidates of almost the same score may change places, or one is kept for another.
    """
    if not _both_eliminated(expected, found):
        return difference(expected, found)
    return max(difference(expected[0].mean(1), found[0].mean(1)), difference(expected[4], found[4]))
