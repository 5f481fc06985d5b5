"""Multi-head attention that also scores the candidates (section 3.3 of the paper, equation 6), and its gradient."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from . import library_attention, native, native_linear
from .registry import Backend, BoundOp, Op, Sizes, forced_backend, triton_kernel, triton_kernels, use
from .tensors import Seeded, accumulate_dtype, check_one_device, describe

_CUDA_HEAD_DIMS = (32, 64, 96, 128)
_MAX_CPU_HEAD_DIM = 512


def _check(qkv: Tensor, template_mask: Tensor | None) -> None:
    if qkv.dim() != 5 or qkv.shape[2] != 3 or 0 in qkv.shape[1:] or not qkv.is_floating_point():
        raise ValueError(f"qkv must be a float tensor (B,N,3,H,D), got {describe(qkv)}")
    check_mask(template_mask, qkv.shape[0], qkv.shape[1])
    check_one_device(qkv=qkv, template_mask=template_mask)


def check_mask(template_mask: Tensor | None, batch: int, tokens: int) -> None:
    """Raises ValueError if the mask is not bool (T,) or (B,T) with T of 1 to `tokens`."""
    if template_mask is None:
        return
    rows = template_mask.shape[-1] if template_mask.dim() else 0
    fits = tuple(template_mask.shape) in ((rows,), (batch, rows)) and 0 < rows <= tokens
    if template_mask.dtype != torch.bool or not fits:
        raise ValueError(
            f"template_mask must be bool (T,) or (B,T) with T at most N, for B = {batch} and N = {tokens}, got "
            f"{describe(template_mask)}"
        )


def check_mask_values(template_mask: Tensor | None) -> None:
    """Raises ValueError if the mask selects no row for some batch item."""
    if template_mask is not None:
        selected = template_mask.any() if template_mask.dim() == 1 else template_mask.any(-1).all()
        if not selected.item():
            raise ValueError("template_mask chooses no row for some sample: no template token would score candidates")


def _check_values(qkv: Tensor, template_mask: Tensor | None) -> None:
    check_mask_values(template_mask)


def _outputs(qkv: Tensor, template_mask: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    batch, tokens, _, heads, width = qkv.shape
    dtype = accumulate_dtype(qkv)
    score = (0,) if template_mask is None else (batch, tokens - template_mask.shape[-1])
    return (
        qkv.new_empty(batch, tokens, heads * width),
        qkv.new_empty(score, dtype=dtype),
        qkv.new_empty(batch, heads, tokens, dtype=dtype),
    )


def _logits(q: Tensor, kv: Tensor) -> Tensor:
    return (q.transpose(1, 2) @ kv[:, :, 0].permute(0, 2, 3, 1)) * q.shape[-1] ** -0.5


def _softmax(logits: Tensor) -> Tensor:
    return logits.softmax(dim=-1, dtype=accumulate_dtype(logits))


def attention_map(qkv: Tensor) -> Tensor:
    """softmax(Q K' / sqrt D), (B,H,N,N), at least float32, from packed qkv (B,N,3,H,D)."""
    return _softmax(_logits(qkv[:, :, 0], qkv[:, :, 1:]))


def candidate_score(probability: Tensor, template_mask: Tensor) -> Tensor:
    """Mean probability of each search key over heads and the selected template rows: (B,H,M,N), mask -> (B,S).

    Source: section 3.3 of the paper, equation 6. A mask row with nothing selected scores 0, and rows that are not
    selected count nothing even where they are NaN.
    """
    template = template_mask.shape[-1]
    selected = template_mask.expand(probability.shape[0], -1)
    rows = probability[:, :, :template, template:].masked_fill(~selected[:, None, :, None], 0)
    return rows.sum(2).mean(1) / selected.sum(-1, keepdim=True).clamp(min=1)


def _attend(q: Tensor, kv: Tensor, template_mask: Tensor | None, logits: Tensor) -> tuple[Tensor, Tensor | None]:
    probability = _softmax(logits)
    out = probability.to(kv.dtype) @ kv[:, :, 1].transpose(1, 2)
    score = None if template_mask is None else candidate_score(probability, template_mask)
    return out.transpose(1, 2).flatten(2), score


def cross_attention(q: Tensor, kv: Tensor, template_mask: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """Attention of queries (B,M,H,D) over keys and values (B,N,2,H,D); see `ops.layers.cross_attention`."""
    return _attend(q, kv, template_mask, _logits(q, kv))


def reference(qkv: Tensor, template_mask: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Multi-head attention and the score of every candidate; see `ostrack_fast.ops.attention`.

    Returns:
        out, score (empty without a mask), and lse (B,H,N), the natural logarithm of each softmax denominator.
    """
    q, kv = qkv[:, :, 0], qkv[:, :, 1:]
    logits = _logits(q, kv)
    out, score = _attend(q, kv, template_mask, logits)
    lse = logits.to(accumulate_dtype(logits)).logsumexp(-1)
    return out, lse.new_empty(0) if score is None else score, lse


def _save(ctx: Any, inputs: tuple, outputs: tuple) -> None:
    qkv, template_mask = inputs
    out, score, lse = outputs
    ctx.save_for_backward(qkv, template_mask, out, lse)
    ctx.mark_non_differentiable(lse, *([score] if template_mask is None else []))


def _gradient(ctx: Any, grad_out: Tensor | None, grad_score: Tensor | None, _: None) -> tuple:
    arguments = (*ctx.saved_tensors, grad_out, grad_score)
    forced = forced_backend()
    # A backend that is asked for may have a kernel for the forward pass alone.
    unable = forced is not None and attention_backward_op.unsupported_reason(forced, *arguments) is not None
    with use("auto") if unable else nullcontext():
        return attention_backward_op(*arguments), None


def _native_cpu(qkv: Tensor, template_mask: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    outputs = out, score, lse = _outputs(qkv, template_mask)
    qkv = native.dense(qkv)
    mask = None if template_mask is None else native.dense(template_mask)
    scored = None if template_mask is None else score
    native.call("attention", qkv.device, qkv[:, :, 0], qkv[:, :, 1:], mask, out, scored, lse)
    return outputs


def native_cuda(
    qkv: Tensor, template_mask: Tensor | None = None, arrivals: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """`attention` by the CUDA kernel; the workspace of the score is held here until the launch is enqueued.

    Args:
        arrivals: (B,) int32 zeros, which the kernel leaves zero; made here if there are none.
    """
    outputs = out, score, lse = _outputs(qkv, template_mask)
    qkv = native.dense(qkv)
    if qkv.data_ptr() % 16:  # a slice of something larger: the kernel reads 16 bytes at a time
        qkv = qkv.clone()
    mask = partial = scored = None
    if template_mask is not None:
        mask, scored = native.dense(template_mask), score
        tiles = -(-template_mask.shape[-1] // 32)
        # Partial scores of any content, and arrival counters that start at zero.
        partial = lse.new_empty(score.numel() * qkv.shape[3] * tiles)
        arrivals = torch.zeros(len(qkv), dtype=torch.int32, device=qkv.device) if arrivals is None else arrivals
    device, groups = torch.device("cuda", qkv.device.index), _key_groups(qkv)
    native.call("attention", device, qkv, mask, out, scored, lse, partial, arrivals, groups)
    return outputs


def _key_groups(qkv: Tensor) -> int:
    """How many groups of warps of the CUDA kernel share the keys of a block."""
    batch, tokens, _, heads, width = qkv.shape
    # Measured on an H200, the time that an attention adds to a frame: with 60 blocks 5.9 us instead of 6.5, with 144
    # blocks 23 instead of 29. Two rounds of its 132 multiprocessors are the limit, because more was not measured.
    few = batch * heads * -(-tokens // 64) <= 264
    return 2 if few and width == 64 and qkv.dtype != torch.float32 else 1


def _native(
    qkv: Tensor, template_mask: Tensor | None = None, arrivals: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    return native_cuda(qkv, template_mask, arrivals) if qkv.is_cuda else _native_cpu(qkv, template_mask)


def _native_unless(qkv: Tensor, template_mask: Tensor | None = None) -> str | None:
    return native_cuda_reason(qkv) if qkv.is_cuda else native_cpu_reason(qkv.shape[-1], qkv.dtype)


def native_cpu_reason(width: int, dtype: torch.dtype) -> str | None:
    """Why the CPU kernel cannot attend with heads of this width in this dtype, or None."""
    if width > _MAX_CPU_HEAD_DIM:
        return f"head dimension of at most {_MAX_CPU_HEAD_DIM}, is {width}"
    return native.float_reason(dtype)


def native_cuda_reason(qkv: Tensor) -> str | None:
    """Why the CUDA kernel cannot take this qkv, or None."""
    if qkv.shape[-1] not in _CUDA_HEAD_DIMS:
        return f"head dimension must be one of {_CUDA_HEAD_DIMS}, is {qkv.shape[-1]}"
    if qkv.dtype == torch.bfloat16 and torch.cuda.get_device_capability(qkv.device) < (8, 0):
        return "bfloat16 needs compute capability 8.0 or newer"
    return native.float_reason(qkv.dtype)


def _triton(
    qkv: Tensor, template_mask: Tensor | None = None, arrivals: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    out, score, lse = triton_kernel("attention")(qkv, template_mask, arrivals)
    return out, lse.new_empty(0) if score is None else score, lse


def _triton_unless(qkv: Tensor, template_mask: Tensor | None = None) -> str | None:
    kernels = triton_kernels()
    batch, tokens, _, _, width = qkv.shape
    if width not in kernels.HEAD_DIMS:
        return f"head dimension must be one of {kernels.HEAD_DIMS}, is {width}"
    return (
        kernels.dtype_reason(qkv.dtype)
        or kernels.range_reason("number of tokens", tokens, kernels.MAX_TOKENS)
        or kernels.range_reason("batch", batch, kernels.MAX_BATCH)
    )


def _example(
    dtype: torch.dtype,
    device: torch.device,
    batch: int,
    tokens: int,
    heads: int,
    width: int,
    template: int,
    selected: tuple[int, ...] | None,
    by_item: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """`selected` template rows score the candidates, None for no score; `by_item`: some more for the last item."""
    qkv = Seeded(tokens, device).normal(batch, tokens, 3, heads, width, dtype=dtype)
    if selected is None:
        return qkv, None
    mask = torch.zeros(batch, template, dtype=torch.bool, device="cpu")
    mask[:, list(selected)] = True
    if by_item:
        mask[-1, ::3] = True
    return qkv, (mask if by_item else mask[0]).to(device)


def _with_masks(*sizes: tuple[int, int, int, int, int]) -> list[tuple]:
    """Batch, tokens, heads, width, template: each with a mask for all items, none, and one for each."""
    return [
        (*each, selected, by_item)
        for each in sizes
        for selected, by_item in (((0, each[-1] // 2), False), (None, False), ((0, each[-1] // 2), True))
    ]


_SIZES: Sizes = {
    "small": _with_masks((2, 7, 2, 8, 3)),
    "typical": _with_masks((1, 320, 12, 64, 64)),
    # Part of a tile, one, many; all tokens the template's; odd widths.
    "edge": _with_masks(
        (1, 320, 1, 64, 64), (2, 153, 2, 64, 64), (1, 1, 1, 32, 1), (1, 65, 2, 33, 64), (2, 7, 2, 8, 3),
        (1, 63, 1, 1, 9), (1, 130, 2, 128, 128), (1, 64, 1, 64, 64), (2, 140, 2, 96, 66),
    ),
}  # fmt: skip


class _BoundAttention(BoundOp):
    """`attention` on one backend, for calls that follow one another in one stream: they share arrival counters.

    Every kernel leaves the counters zero, as it found them, so that no launch has to fill them. A captured CUDA graph
    goes on using those that it was captured with: none are freed.
    """

    def launcher(self, run: Callable[..., Any]) -> Callable[..., Any]:
        held = self._arrivals = list[Tensor]()

        def with_counters(qkv: Tensor, template_mask: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
            if template_mask is None or self.backend == "reference" or (self.backend == "native" and qkv.is_cpu):
                return run(qkv, template_mask)
            batch = len(qkv)
            if not held or len(held[-1]) < batch or held[-1].device != qkv.device:
                held.append(torch.zeros(batch, dtype=torch.int32, device=qkv.device))
            return run(qkv, template_mask, held[-1][:batch])

        return with_counters


attention_op = Op(
    # lse is the natural logarithm of every softmax denominator; score is empty without a mask.
    "attention(Tensor qkv, Tensor? template_mask) -> (Tensor out, Tensor score, Tensor lse)",
    check=_check,
    check_values=_check_values,
    outputs=_outputs,
    reference=reference,
    save=_save,
    gradient=_gradient,
    backends={"native": Backend(_native, _native_unless), "triton": Backend(_triton, _triton_unless)},
    sizes=_SIZES,
    example=_example,
    bound=_BoundAttention,
)


def _check_backward(
    qkv: Tensor,
    template_mask: Tensor | None,
    out: Tensor,
    lse: Tensor,
    grad_out: Tensor | None,
    grad_score: Tensor | None,
) -> None:
    _check(qkv, template_mask)
    like = _outputs(qkv.to("meta"), None if template_mask is None else template_mask.to("meta"))
    pairs = {"out": (out, like[0]), "grad_out": (grad_out, like[0]), "lse": (lse, like[2])}
    if template_mask is None and grad_score is not None:
        raise ValueError("without template_mask there is no score that could have a gradient")
    if template_mask is not None:
        pairs["grad_score"] = (grad_score, like[1])
    for name, (given, expected) in pairs.items():
        if given is not None and (given.shape != expected.shape or given.dtype != expected.dtype):
            raise ValueError(f"{name} must be {describe(expected)}, got {describe(given)}")
    check_one_device(qkv=qkv, out=out, lse=lse, grad_out=grad_out, grad_score=grad_score)


def attention_backward(
    qkv: Tensor,
    template_mask: Tensor | None,
    out: Tensor,
    lse: Tensor,
    grad_out: Tensor | None,
    grad_score: Tensor | None = None,
) -> Tensor:
    """Gradient of `attention` in qkv (B,N,3,H,D), from those in out and score, and the results of the forward pass.

    Holds a few (B,H,N,N) at a time, in the dtype of `lse`.
    """
    heads, scale = qkv.shape[3], qkv.shape[4] ** -0.5
    query, key, value = qkv.to(lse.dtype).permute(2, 0, 3, 1, 4).unbind(0)
    probability = (query @ key.transpose(-2, -1) * scale - lse[..., None]).exp()
    grad_out = torch.zeros_like(out) if grad_out is None else grad_out
    grad = grad_out.to(lse.dtype).unflatten(2, (heads, -1)).transpose(1, 2)
    grad_probability = grad @ value.transpose(-2, -1)
    if grad_score is not None and template_mask is not None:
        template = template_mask.shape[-1]
        share = template_mask.expand(qkv.shape[0], -1) / template_mask.sum(-1, keepdim=True).clamp(min=1) / heads
        grad_probability[:, :, :template, template:] += (share[:, :, None] * grad_score[:, None])[:, None]
    grad_logits = probability * (grad_probability - (grad_probability * probability).sum(-1, keepdim=True)) * scale
    grads = (grad_logits @ key, grad_logits.transpose(-2, -1) @ query, probability.transpose(-2, -1) @ grad)
    return torch.stack(grads, dim=2).permute(0, 3, 2, 1, 4).to(qkv.dtype).contiguous()


def _outputs_backward(qkv: Tensor, *_: Any) -> Tensor:
    return qkv.new_empty(qkv.shape)


def _native_backward(
    qkv: Tensor,
    template_mask: Tensor | None,
    out: Tensor,
    lse: Tensor,
    grad_out: Tensor | None,
    grad_score: Tensor | None,
) -> Tensor:
    # Pairs of bfloat16 are multiplied as they are where the processor can, other half precisions in float32.
    pairs = qkv.dtype == torch.bfloat16 and qkv.shape[-1] % 2 == 0
    dtype = qkv.dtype if pairs and native.multiplies_bfloat16() else torch.float32
    grad_out = torch.zeros_like(out) if grad_out is None else grad_out
    x, y, grad_y = (native.dense(each.to(dtype)) for each in (qkv, out, grad_out))
    grad = torch.empty_like(x)
    mask = score = None
    if template_mask is not None and grad_score is not None:
        mask, score = native.dense(template_mask), native.dense(grad_score)
    native.call("attention_backward", qkv.device, x, mask, y, native.dense(lse), grad_y, score, grad)
    return grad.to(qkv.dtype)


def _native_backward_unless(qkv: Tensor, *_: Any) -> str | None:
    return native_cpu_reason(qkv.shape[-1], qkv.dtype) or native_linear.reason(qkv.new_empty(1, 1, device="cpu"))


def _triton_backward(
    qkv: Tensor, template_mask: Tensor | None, out: Tensor, lse: Tensor, grad_out: Tensor, grad_score: None
) -> Tensor:
    return triton_kernels().attention_backward(grad_out, qkv, out, lse)


def _triton_backward_unless(
    qkv: Tensor,
    template_mask: Tensor | None,
    out: Tensor,
    lse: Tensor,
    grad_out: Tensor | None,
    grad_score: Tensor | None,
) -> str | None:
    if grad_score is not None or grad_out is None:
        return "no kernel for the gradient of the score"
    return _triton_unless(qkv, template_mask)


def _example_backward(dtype: torch.dtype, device: torch.device, *numbers: Any) -> tuple:
    qkv, mask = _example(dtype, device, *numbers)
    out, score, lse = reference(qkv, mask)
    return qkv, mask, out, lse, torch.ones_like(out), None if mask is None else torch.ones_like(score)


attention_backward_op = Op(
    "attention_backward(Tensor qkv, Tensor? template_mask, Tensor out, Tensor lse, Tensor? grad_out, "
    "Tensor? grad_score) -> Tensor",
    check=_check_backward,
    outputs=_outputs_backward,
    reference=attention_backward,
    backends={
        "native": Backend(_native_backward, _native_backward_unless),
        "triton": Backend(_triton_backward, _triton_backward_unless),
    },
    sizes=_SIZES,
    example=_example_backward,
)


def attention(qkv: Tensor, template_mask: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """softmax(Q K' / sqrt D) V, and how much the template attends to each search token.

    Args:
        qkv: (B,N,3,H,D) float, the output of the qkv projection as it lies in memory.
        template_mask: (T,) or (B,T) bool, the template rows that score the candidates; None for no score.

    Returns:
        out (B,N,C) in the dtype of `qkv`; score (B,S), float32 (float64 for float64 input): the probability of each
        search key averaged over heads and the selected rows (equation 6 of the paper), or None. Both have the same
        gradient whatever backend runs.

    Raises:
        ValueError: also for a mask that chooses no row, on the CPU; on a GPU such a score is 0.
    """
    if library_attention.preferred(qkv) and forced_backend() is None:
        _check(qkv, template_mask)
        out, rows = library_attention.attention(qkv, 0 if template_mask is None else template_mask.shape[-1])
        return out, None if rows is None or template_mask is None else candidate_score(rows, template_mask)
    out, score, _ = attention_op(qkv, template_mask)
    return out, None if template_mask is None else score
