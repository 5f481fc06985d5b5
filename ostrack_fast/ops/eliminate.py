"""Candidate elimination (section 3.3 of the paper): keep the search tokens of highest score."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import native
from .registry import Backend, Op, triton_kernel, triton_kernels
from .tensors import Seeded, check_one_device, describe


def _check(tokens: Tensor, score: Tensor, ids: Tensor, keep: int) -> None:
    if tokens.dim() != 3 or score.dim() != 2 or score.shape[0] != tokens.shape[0] or score.shape[1] > tokens.shape[1]:
        raise ValueError(f"tokens (B,T+S,C) and score (B,S) needed, got {describe(tokens)} and {describe(score)}")
    if not tokens.is_floating_point() or not score.is_floating_point() or tokens.shape[2] == 0:
        raise ValueError(f"tokens and score must be float and not empty, got {describe(tokens)} and {describe(score)}")
    if ids.shape != score.shape or ids.dtype != torch.int64:
        raise ValueError(f"ids must be int64 {tuple(score.shape)}, got {describe(ids)}")
    if not 1 <= keep <= score.shape[1]:
        raise ValueError(f"keep={keep} must lie in [1, {score.shape[1]}], the number of search tokens")
    check_one_device(tokens=tokens, score=score, ids=ids)


def _check_values(tokens: Tensor, score: Tensor, ids: Tensor, keep: int) -> None:
    if score.numel() and (largest := score.max().item()) != largest:  # max() hands NaN on
        raise ValueError("score holds NaN: candidates cannot be ranked; look for NaN in the weights or the images")


def _outputs(tokens: Tensor, score: Tensor, ids: Tensor, keep: int) -> tuple[Tensor, Tensor, Tensor]:
    (batch, total, channels), search = tokens.shape, score.shape[1]
    return (
        tokens.new_empty(batch, total - search + keep, channels),
        ids.new_empty(batch, keep),
        ids.new_empty(batch, search - keep),
    )


def ranking(score: Tensor) -> Tensor:
    """Positions by falling score (B,S): equal ones in order, -0.0 equal to 0.0, NaN after everything. No gradient."""
    # Ascending, because there PyTorch puts NaN last.
    return score.detach().neg().sort(dim=1, stable=True).indices


def reference(tokens: Tensor, score: Tensor, ids: Tensor, keep: int) -> tuple[Tensor, Tensor, Tensor]:
    """Keep the best candidates; see `ostrack_fast.ops.eliminate`."""
    template = tokens.shape[1] - score.shape[1]
    kept, removed = ranking(score).split((keep, score.shape[1] - keep), dim=1)
    search = tokens[:, template:].gather(1, kept[..., None].expand(-1, -1, tokens.shape[2]))
    return torch.cat((tokens[:, :template], search), dim=1), ids.gather(1, kept), ids.gather(1, removed)


def _save(ctx: Any, inputs: tuple, outputs: tuple) -> None:
    _, score, _, ctx.keep = inputs
    ctx.save_for_backward(score)
    ctx.mark_non_differentiable(*outputs[1:])


def _gradient(ctx: Any, grad: Tensor | None, *_: None) -> tuple:
    if grad is None:
        return None, None, None, None
    (score,) = ctx.saved_tensors
    template = grad.shape[1] - ctx.keep
    kept = ranking(score)[:, : ctx.keep, None].expand(-1, -1, grad.shape[2])
    search = grad.new_zeros(grad.shape[0], score.shape[1], grad.shape[2]).scatter(1, kept, grad[:, template:])
    return torch.cat((grad[:, :template], search), dim=1), None, None, None


def _native(tokens: Tensor, score: Tensor, ids: Tensor, keep: int) -> tuple[Tensor, Tensor, Tensor]:
    outputs = _outputs(tokens, score, ids, keep)
    inputs = map(native.dense, (tokens, score, ids))
    native.call("eliminate", tokens.device, *inputs, *outputs)
    return outputs


def _native_unless(tokens: Tensor, score: Tensor, ids: Tensor, keep: int) -> str | None:
    if score.dtype != torch.float32:
        return f"score must be float32, is {score.dtype}"
    return native.element_reason(tokens.dtype)


def _triton(tokens: Tensor, score: Tensor, ids: Tensor, keep: int) -> tuple[Tensor, Tensor, Tensor]:
    return triton_kernel("eliminate")(tokens, score, ids, keep)


def _triton_unless(tokens: Tensor, score: Tensor, ids: Tensor, keep: int) -> str | None:
    if score.dtype != torch.float32:
        return f"score must be float32, is {score.dtype}"
    kernels = triton_kernels()
    return kernels.range_reason("number of candidates", score.shape[1], kernels.MAX_CANDIDATES) or kernels.range_reason(
        "batch", tokens.shape[0], kernels.MAX_BATCH
    )


def _example(
    dtype: torch.dtype,
    device: torch.device,
    batch: int,
    template: int,
    search: int,
    keep: int,
    channels: int,
    ties: bool = True,
) -> tuple[Tensor, Tensor, Tensor, int]:
    random = Seeded(search, device)
    tokens = random.normal(batch, template + search, channels, dtype=dtype)
    score = random.normal(batch, search).round(decimals=1) if ties else random.orders(batch, search).float()
    return tokens, score, random.orders(batch, search), keep


eliminate_op = Op(
    "eliminate(Tensor tokens, Tensor score, Tensor ids, SymInt keep) -> (Tensor tokens, Tensor ids, Tensor removed)",
    check=_check,
    check_values=_check_values,
    outputs=_outputs,
    reference=reference,
    save=_save,
    gradient=_gradient,
    backends={"native": Backend(_native, _native_unless), "triton": Backend(_triton, _triton_unless)},
    sizes={
        "small": [(2, 2, 6, 4, 3)],
        "typical": [(1, 64, 256, 180, 768)],
        # Rows that vectors fit and rows that they do not; no template; nothing removed; most removed; several batches.
        "edge": [(2, 64, 256, 180, 768), (1, 0, 1, 1, 1), (3, 5, 9, 1, 33), (1, 1, 40, 40, 7), (2, 3, 17, 11, 64)],
    },
    example=_example,
)


def eliminate(tokens: Tensor, score: Tensor, ids: Tensor, keep: int) -> tuple[Tensor, Tensor, Tensor]:
    """Keep the `keep` search tokens of highest score, in order of falling score (section 3.3 of the paper).

    Equal scores keep their order, and -0.0 equals 0.0. The ranking carries no gradient; the gathered tokens do.

    Args:
        tokens: (B,T+S,C) float, template tokens first. score: (B,S) float. ids: (B,S) int64, cells of the grid.

    Returns:
        tokens (B,T+keep,C), ids (B,keep), removed (B,S-keep).

    Raises:
        ValueError: also for a NaN score on the CPU; on a GPU, where asking would wait for it, NaN ranks last.
    """
    return eliminate_op(tokens, score, ids, keep)
