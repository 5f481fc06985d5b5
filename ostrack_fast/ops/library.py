"""The ops as PyTorch's dispatcher knows them, `torch.ops.ostrack_fast.*`: for torch.compile and torch.export.

Called eagerly the public functions of `ostrack_fast.ops` go straight to a backend, which costs a few microseconds less
and lets the reference run under autograd as it is. While PyTorch traces a program (`torch.compiler.is_compiling()`)
they call the functions below instead, so that a graph holds one node per op. What such a node runs is chosen when it
runs, by the same `dispatch.select`, with its arguments as they are then.

Each op has its schema, a backend-choosing implementation, shapes and strides for fake tensors, and its gradient.
"""

from __future__ import annotations

from functools import reduce
from typing import Any

import torch
from torch import Tensor

from . import reference
from .dispatch import select

_SCHEMAS = (
    # score is empty without a mask; lse (B,H,N) is the natural logarithm of every softmax denominator.
    "attention(Tensor qkv, Tensor? template_mask) -> (Tensor out, Tensor score, Tensor lse)",
    "attention_backward(Tensor? grad_out, Tensor? grad_score, Tensor qkv, Tensor? template_mask, Tensor out, "
    "Tensor lse) -> Tensor",
    "eliminate(Tensor tokens, Tensor score, Tensor ids, SymInt keep) -> (Tensor tokens, Tensor ids, Tensor removed)",
    "restore(Tensor tokens, Tensor ids, SymInt grid, Tensor? norm_weight=None, Tensor? norm_bias=None, "
    "float eps=1e-06, bool channels_last=False, ScalarType? dtype=None) -> Tensor",
    "crop(Tensor frame, Tensor box, float factor, SymInt size, ScalarType dtype) -> (Tensor patch, Tensor scale)",
    "decode(Tensor score_map, Tensor size_map, Tensor offset_map, Tensor? window) -> (Tensor box, Tensor score)",
)

_library = torch.library.Library("ostrack_fast", "DEF")
for _schema in _SCHEMAS:
    _library.define(_schema, tags=(torch.Tag.pt2_compliant_tag,))
_ops = torch.ops.ostrack_fast


def _implement(op: str, run: Any, fake: Any) -> None:
    _library.impl(op, run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"ostrack_fast::{op}", fake, lib=_library)


def _wide(*tensors: Tensor) -> torch.dtype:
    return reduce(torch.promote_types, (tensor.dtype for tensor in tensors), torch.float32)


# attention


def attention(qkv: Tensor, template_mask: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """`ostrack_fast.ops.attention` as a node of a graph."""
    out, score, _ = _ops.attention(qkv, template_mask)
    return out, None if template_mask is None else score


def _attention(qkv: Tensor, template_mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    function = select("attention", {"qkv": qkv, "template_mask": template_mask}, "attention_with_lse")
    out, score, lse = function(qkv, template_mask)
    return out, lse.new_empty(0) if score is None else score, lse


def _attention_fake(qkv: Tensor, template_mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    batch, tokens, _, heads, width = qkv.shape
    wide = _wide(qkv)
    score = (0,) if template_mask is None else (batch, tokens - template_mask.shape[-1])
    return (
        qkv.new_empty(batch, tokens, heads * width),
        qkv.new_empty(score, dtype=wide),
        qkv.new_empty(batch, heads, tokens, dtype=wide),
    )


def _attention_backward(
    grad_out: Tensor | None,
    grad_score: Tensor | None,
    qkv: Tensor,
    template_mask: Tensor | None,
    out: Tensor,
    lse: Tensor,
) -> Tensor:
    if grad_score is None:
        # The score is not asked for: an implementation without a gradient for it serves as well.
        function = select("attention_backward", {"qkv": qkv, "template_mask": None})
        return function(grad_out, qkv, out, lse)
    return reference.attention_backward(grad_out, qkv, out, lse, grad_score, template_mask)


def _attention_backward_fake(
    grad_out: Tensor | None,
    grad_score: Tensor | None,
    qkv: Tensor,
    template_mask: Tensor | None,
    out: Tensor,
    lse: Tensor,
) -> Tensor:
    return qkv.new_empty(qkv.shape)


def _attention_context(ctx: Any, inputs: tuple, output: tuple) -> None:
    ctx.set_materialize_grads(False)
    qkv, template_mask = inputs
    out, score, lse = output
    ctx.save_for_backward(qkv, template_mask, out, lse)
    ctx.mark_non_differentiable(lse, *([score] if template_mask is None else []))


def _attention_gradient(ctx: Any, grad_out: Tensor | None, grad_score: Tensor | None, _: None) -> tuple:
    return _ops.attention_backward(grad_out, grad_score, *ctx.saved_tensors), None


_implement("attention", _attention, _attention_fake)
_implement("attention_backward", _attention_backward, _attention_backward_fake)
torch.library.register_autograd(
    "ostrack_fast::attention", _attention_gradient, setup_context=_attention_context, lib=_library
)


# eliminate


def eliminate(tokens: Tensor, score: Tensor, ids: Tensor, keep: int) -> tuple[Tensor, Tensor, Tensor]:
    """`ostrack_fast.ops.eliminate` as a node of a graph."""
    return _ops.eliminate(tokens, score, ids, keep)


def _eliminate(tokens: Tensor, score: Tensor, ids: Tensor, keep: int) -> tuple[Tensor, Tensor, Tensor]:
    function = select("eliminate", {"tokens": tokens, "score": score, "ids": ids, "keep": keep})
    return function(tokens, score, ids, keep)


def _eliminate_fake(tokens: Tensor, score: Tensor, ids: Tensor, keep: int) -> tuple[Tensor, Tensor, Tensor]:
    (batch, total, channels), search = tokens.shape, score.shape[1]
    return (
        tokens.new_empty(batch, total - search + keep, channels),
        ids.new_empty(batch, keep),
        ids.new_empty(batch, search - keep),
    )


def _eliminate_context(ctx: Any, inputs: tuple, output: tuple) -> None:
    _, score, _, ctx.keep = inputs
    ctx.save_for_backward(score)
    ctx.mark_non_differentiable(*output[1:])


def _eliminate_gradient(ctx: Any, grad: Tensor, *_: None) -> tuple:
    (score,) = ctx.saved_tensors
    template = grad.shape[1] - ctx.keep
    kept = reference.ranking(score)[:, : ctx.keep, None].expand(-1, -1, grad.shape[2])
    search = grad.new_zeros(grad.shape[0], score.shape[1], grad.shape[2]).scatter(1, kept, grad[:, template:])
    return torch.cat((grad[:, :template], search), dim=1), None, None, None


_implement("eliminate", _eliminate, _eliminate_fake)
torch.library.register_autograd(
    "ostrack_fast::eliminate", _eliminate_gradient, setup_context=_eliminate_context, lib=_library
)


# restore


def restore(
    tokens: Tensor,
    ids: Tensor,
    grid: int,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    eps: float = 1e-6,
    channels_last: bool = False,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """`ostrack_fast.ops.restore` as a node of a graph."""
    return _ops.restore(tokens, ids, grid, norm_weight, norm_bias, eps, channels_last, dtype)


def _restore(
    tokens: Tensor,
    ids: Tensor,
    grid: int,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    eps: float = 1e-6,
    channels_last: bool = False,
    dtype: torch.dtype | None = None,
) -> Tensor:
    arguments = {
        "tokens": tokens,
        "ids": ids,
        "grid": grid,
        "norm_weight": norm_weight,
        "norm_bias": norm_bias,
        "eps": eps,
        "channels_last": channels_last,
        "dtype": dtype,
    }
    return select("restore", arguments)(**arguments)


def _restore_fake(
    tokens: Tensor,
    ids: Tensor,
    grid: int,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    eps: float = 1e-6,
    channels_last: bool = False,
    dtype: torch.dtype | None = None,
) -> Tensor:
    batch, _, channels = tokens.shape
    if channels_last:
        return tokens.new_empty(batch, grid, grid, channels, dtype=dtype or tokens.dtype).permute(0, 3, 1, 2)
    return tokens.new_empty(batch, channels, grid, grid, dtype=dtype or tokens.dtype)


def _restore_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
    tokens, ids, _, weight, bias, ctx.eps, *_ = inputs
    ctx.save_for_backward(tokens, ids, weight, bias)


def _restore_gradient(ctx: Any, grad_map: Tensor) -> tuple:
    tokens, ids, weight, bias = ctx.saved_tensors
    grad = grad_map.flatten(2).transpose(1, 2).gather(1, ids[..., None].expand(-1, -1, tokens.shape[2]))
    if weight is None:
        return grad.to(tokens.dtype), *(None,) * 7
    shape, wide = tokens.shape[2:], _wide(tokens)
    x, w, b = tokens.to(wide), weight.to(wide), bias.to(wide)
    _, mean, rstd = torch.ops.aten.native_layer_norm(x, shape, w, b, ctx.eps)
    wanted = [True, True, True]
    found = torch.ops.aten.native_layer_norm_backward(grad.to(wide), x, shape, mean, rstd, w, b, wanted)
    of_tokens, of_weight, of_bias = (g.to(t.dtype) for g, t in zip(found, (tokens, weight, bias), strict=True))
    return of_tokens, None, None, of_weight, of_bias, None, None, None


_implement("restore", _restore, _restore_fake)
torch.library.register_autograd(
    "ostrack_fast::restore", _restore_gradient, setup_context=_restore_context, lib=_library
)


# crop


def crop(
    frame: Tensor, box: Tensor, factor: float, size: int, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """`ostrack_fast.ops.crop` as a node of a graph."""
    return _ops.crop(frame, box, factor, size, dtype)


def _crop(frame: Tensor, box: Tensor, factor: float, size: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    arguments = {"frame": frame, "box": box, "factor": factor, "size": size, "dtype": dtype}
    return select("crop", arguments)(**arguments)


def _crop_fake(frame: Tensor, box: Tensor, factor: float, size: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    batch = box.shape[0]
    return frame.new_empty(batch, 3, size, size, dtype=dtype), box.new_empty(batch)


_implement("crop", _crop, _crop_fake)


# decode


def decode(
    score_map: Tensor, size_map: Tensor, offset_map: Tensor, window: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`ostrack_fast.ops.decode` as a node of a graph."""
    return _ops.decode(score_map, size_map, offset_map, window)


def _decode(score_map: Tensor, size_map: Tensor, offset_map: Tensor, window: Tensor | None) -> tuple[Tensor, Tensor]:
    arguments = {"score_map": score_map, "size_map": size_map, "offset_map": offset_map, "window": window}
    return select("decode", arguments)(**arguments)


def _decode_fake(
    score_map: Tensor, size_map: Tensor, offset_map: Tensor, window: Tensor | None
) -> tuple[Tensor, Tensor]:
    batch, wide = score_map.shape[0], _wide(score_map, size_map, offset_map)
    return score_map.new_empty(batch, 4, dtype=wide), score_map.new_empty(batch, dtype=wide)


def _decode_context(ctx: Any, inputs: tuple, output: tuple) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs)


def _decode_gradient(ctx: Any, grad_box: Tensor | None, grad_score: Tensor | None) -> tuple:
    *maps, window = ctx.saved_tensors
    score_map = maps[0]
    batch, grid = score_map.shape[0], score_map.shape[-1]
    cell = reference.best_cell(score_map.to(_wide(*maps)), window)

    def at_cell(like: Tensor, grad: Tensor | None) -> Tensor | None:
        if grad is None:
            return None
        flat = like.new_zeros(batch, like.shape[1], grid * grid)
        return flat.scatter(2, cell[:, None].expand(-1, like.shape[1], -1), grad[..., None].to(like.dtype)).view_as(
            like
        )

    of_score = None if grad_score is None else grad_score[:, None]
    of_offset, of_size = (None, None) if grad_box is None else (grad_box[:, :2] / grid, grad_box[:, 2:])
    return *map(at_cell, maps, (of_score, of_size, of_offset)), None


_implement("decode", _decode, _decode_fake)
torch.library.register_autograd("ostrack_fast::decode", _decode_gradient, setup_context=_decode_context, lib=_library)
