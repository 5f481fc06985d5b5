"""Multi-head attention with candidate scores, and its gradient, on packed qkv (B,N,3,H,D).

Nothing of size N x N is stored: the forward pass keeps a running softmax (Dao et al. 2022, FlashAttention), the
backward pass recomputes the probabilities from the log-sum-exp.

The score (section 3.3 of the OSTrack paper, equation 6) is the probability that the chosen template rows give to each
search key, averaged over rows and heads. The programs that own template rows know their log-sum-exp first, so they go
over the search keys once more, write the sums over their rows to their own row of `partial`, and count their arrival.
Whoever arrives last at a batch element adds the rows of `partial` in a fixed order: the sum does not depend on who that
is, so the score, and with it the ranking of candidates, is the same on every run.
"""

import torch
import triton
import triton.language as tl

from . import dependent_launch
from .dependent_launch import wait_for_inputs

HEAD_DIMS = (32, 64, 96, 128)

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def _load_rows(base, rows, N, row_stride, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Rows of a (N,D) matrix with the given row stride; rows from N on and channels from D on read as zero."""
    channels = tl.arange(0, BLOCK_D)
    mask = (rows[:, None] < N) & (channels[None, :] < D)
    return tl.load(base + rows[:, None] * row_stride + channels[None, :], mask=mask, other=0.0)


@triton.jit
def _store_rows(base, rows, value, N, row_stride, D: tl.constexpr, BLOCK_D: tl.constexpr):
    channels = tl.arange(0, BLOCK_D)
    mask = (rows[:, None] < N) & (channels[None, :] < D)
    tl.store(base + rows[:, None] * row_stride + channels[None, :], value.to(base.dtype.element_ty), mask=mask)


@triton.jit
def _score_candidates(
    q, largest, total, k_base, row_stride, scale_log2, rows, block, head, batch, template_mask, mask_stride, score,
    partial, arrivals, N, H, T, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    TEMPLATE_BLOCKS: tl.constexpr, PARTIAL_BLOCK: tl.constexpr, SCORE_BLOCK: tl.constexpr,
):  # fmt: skip
    S = N - T
    mask_base = template_mask + batch * mask_stride
    blocks = tl.arange(0, TEMPLATE_BLOCKS)
    template = blocks[:, None] * BLOCK_M + tl.arange(0, BLOCK_M)[None, :]
    in_block = tl.sum(tl.load(mask_base + template, mask=template < T, other=0).to(tl.int32), axis=1)
    chosen_rows = tl.sum(in_block, axis=0)
    # Blocks without a chosen row stay out. The first always takes part, so that an empty mask still writes its zeros.
    active = ((in_block > 0) | (blocks == 0)).to(tl.int32)
    if tl.sum(tl.where(blocks == block, active, 0), axis=0) > 0:
        partials = tl.sum(active, axis=0) * H
        own = tl.sum(tl.where(blocks < block, active, 0), axis=0) * H + head
        first_partial = partial + batch.to(tl.int64) * TEMPLATE_BLOCKS * H * S
        chosen = tl.load(mask_base + rows, mask=rows < T, other=0) != 0
        for start in range(T, N, BLOCK_N):
            keys = start + tl.arange(0, BLOCK_N)
            k = _load_rows(k_base, keys, N, row_stride, D, BLOCK_D)
            logits = tl.dot(q, tl.trans(k), input_precision="ieee")
            weights = tl.exp2((logits - largest[:, None]) * scale_log2) / total[:, None]
            weights = tl.where(chosen[:, None], weights, 0.0)
            tl.store(first_partial + own * S + keys - T, tl.sum(weights, axis=0), mask=keys < N)
        # Every thread's values must be written before one thread counts the arrival that publishes them.
        tl.debug_barrier()
        if tl.atomic_add(arrivals + batch, 1, sem="acq_rel") == partials - 1:
            count = H * tl.maximum(chosen_rows, 1).to(tl.float32)
            for start in range(0, S, SCORE_BLOCK):
                columns = start + tl.arange(0, SCORE_BLOCK)
                summed = tl.zeros([SCORE_BLOCK], tl.float32)
                for first in range(0, partials, PARTIAL_BLOCK):
                    members = first + tl.arange(0, PARTIAL_BLOCK)
                    mask = (members[:, None] < partials) & (columns[None, :] < S)
                    # Other multiprocessors wrote these: read past this one's own cache.
                    values = tl.load(
                        first_partial + members[:, None] * S + columns[None, :],
                        mask=mask,
                        other=0.0,
                        cache_modifier=".cg",
                    )
                    summed += tl.sum(values, axis=0)
                tl.store(score + batch * S + columns, summed / count, mask=columns < S)
            # Leave the counter as it was found: the next launch, or the next replay of a graph, needs no memset.
            tl.atomic_xchg(arrivals + batch, 0, sem="relaxed")


@triton.jit(do_not_specialize=["N", "T", "H", "mask_stride"])
def _attention_forward(
    qkv, template_mask, out, lse, score, partial, arrivals, mask_stride, N, H, T, scale,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, SCORE: tl.constexpr,
    TEMPLATE_BLOCKS: tl.constexpr, PARTIAL_BLOCK: tl.constexpr, SCORE_BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    wait_for_inputs(PDL)
    block, head, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    row_stride = 3 * H * D
    q_base = qkv + batch.to(tl.int64) * N * row_stride + head * D
    k_base = q_base + H * D
    v_base = k_base + H * D
    rows = block * BLOCK_M + tl.arange(0, BLOCK_M)
    q = _load_rows(q_base, rows, N, row_stride, D, BLOCK_D)
    scale_log2 = scale * LOG2E
    largest = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for start in range(0, N, BLOCK_N):
        keys = start + tl.arange(0, BLOCK_N)
        k = _load_rows(k_base, keys, N, row_stride, D, BLOCK_D)
        logits = tl.dot(q, tl.trans(k), input_precision="ieee")
        logits = tl.where(keys[None, :] < N, logits, float("-inf"))
        new_largest = tl.maximum(largest, tl.max(logits, axis=1))
        # Subtract before scaling: the error then grows with the distance from the maximum, not with the logit.
        weights = tl.exp2((logits - new_largest[:, None]) * scale_log2)
        shrink = tl.exp2((largest - new_largest) * scale_log2)
        total = total * shrink + tl.sum(weights, axis=1)
        v = _load_rows(v_base, keys, N, row_stride, D, BLOCK_D)
        acc = tl.dot(weights.to(v.dtype), v, acc * shrink[:, None], input_precision="ieee")
        largest = new_largest
    _store_rows(out + batch.to(tl.int64) * N * H * D + head * D, rows, acc / total[:, None], N, H * D, D, BLOCK_D)
    tl.store(lse + (batch * H + head) * N + rows, largest * scale + tl.log2(total) * LN2, mask=rows < N)
    if SCORE:  # noqa: SIM102 (known when compiling; the next condition is not)
        if block * BLOCK_M < T:
            _score_candidates(
                q, largest, total, k_base, row_stride, scale_log2, rows, block, head, batch, template_mask,
                mask_stride, score, partial, arrivals, N, H, T, D, BLOCK_D, BLOCK_M, BLOCK_N, TEMPLATE_BLOCKS,
                PARTIAL_BLOCK, SCORE_BLOCK,
            )  # fmt: skip


@triton.jit(do_not_specialize=["N", "H"])
def _attention_backward_q(
    grad_out, qkv, out, lse, grad_qkv, delta, N, H, scale,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Gradient of the queries, one program per block of rows; also delta = sum over channels of grad_out * out."""
    block, head, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    row_stride = 3 * H * D
    start_of_batch = batch.to(tl.int64) * N * row_stride + head * D
    k_base = qkv + start_of_batch + H * D
    v_base = k_base + H * D
    start_of_out = batch.to(tl.int64) * N * H * D + head * D
    rows = block * BLOCK_M + tl.arange(0, BLOCK_M)
    q = _load_rows(qkv + start_of_batch, rows, N, row_stride, D, BLOCK_D)
    grad = _load_rows(grad_out + start_of_out, rows, N, H * D, D, BLOCK_D)
    value = _load_rows(out + start_of_out, rows, N, H * D, D, BLOCK_D)
    row_delta = tl.sum(grad.to(tl.float32) * value.to(tl.float32), axis=1)
    row_of_lse = (batch * H + head) * N + rows
    tl.store(delta + row_of_lse, row_delta, mask=rows < N)
    log2_sum = tl.load(lse + row_of_lse, mask=rows < N, other=0.0) * LOG2E
    scale_log2 = scale * LOG2E
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for start in range(0, N, BLOCK_N):
        keys = start + tl.arange(0, BLOCK_N)
        k = _load_rows(k_base, keys, N, row_stride, D, BLOCK_D)
        v = _load_rows(v_base, keys, N, row_stride, D, BLOCK_D)
        logits = tl.dot(q, tl.trans(k), input_precision="ieee") * scale_log2
        # Keys from N on are zero, but where log2_sum is very negative their exp2 is infinite, and 0 x inf is NaN.
        probability = tl.where(keys[None, :] < N, tl.exp2(logits - log2_sum[:, None]), 0.0)
        grad_probability = tl.dot(grad, tl.trans(v), input_precision="ieee")
        grad_logits = probability * (grad_probability - row_delta[:, None])
        acc = tl.dot(grad_logits.to(k.dtype), k, acc, input_precision="ieee")
    _store_rows(grad_qkv + start_of_batch, rows, acc * scale, N, row_stride, D, BLOCK_D)


@triton.jit(do_not_specialize=["N", "H"])
def _attention_backward_kv(
    grad_out, qkv, lse, delta, grad_qkv, N, H, scale,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Gradients of keys and values, one program per block of keys (N side), a loop over blocks of rows (M side)."""
    block, head, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    row_stride = 3 * H * D
    start_of_batch = batch.to(tl.int64) * N * row_stride + head * D
    grad_base = grad_out + batch.to(tl.int64) * N * H * D + head * D
    keys = block * BLOCK_N + tl.arange(0, BLOCK_N)
    k = _load_rows(qkv + start_of_batch + H * D, keys, N, row_stride, D, BLOCK_D)
    v = _load_rows(qkv + start_of_batch + 2 * H * D, keys, N, row_stride, D, BLOCK_D)
    scale_log2 = scale * LOG2E
    grad_k = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    grad_v = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    for start in range(0, N, BLOCK_M):
        rows = start + tl.arange(0, BLOCK_M)
        row_of_lse = (batch * H + head) * N + rows
        log2_sum = tl.load(lse + row_of_lse, mask=rows < N, other=0.0) * LOG2E
        row_delta = tl.load(delta + row_of_lse, mask=rows < N, other=0.0)
        q = _load_rows(qkv + start_of_batch, rows, N, row_stride, D, BLOCK_D)
        grad = _load_rows(grad_base, rows, N, H * D, D, BLOCK_D)
        # Transposed (keys down, rows across): both matmuls below then take it as their left operand as it is.
        # Rows from N on need no mask: their q and grad are zero, and so is all they add.
        logits = tl.dot(k, tl.trans(q), input_precision="ieee") * scale_log2
        probability = tl.exp2(logits - log2_sum[None, :])
        grad_v = tl.dot(probability.to(grad.dtype), grad, grad_v, input_precision="ieee")
        grad_probability = tl.dot(v, tl.trans(grad), input_precision="ieee")
        grad_logits = probability * (grad_probability - row_delta[None, :])
        grad_k = tl.dot(grad_logits.to(q.dtype), q, grad_k, input_precision="ieee")
    _store_rows(grad_qkv + start_of_batch + H * D, keys, grad_k * scale, N, row_stride, D, BLOCK_D)
    _store_rows(grad_qkv + start_of_batch + 2 * H * D, keys, grad_v, N, row_stride, D, BLOCK_D)


def _forward_blocks(qkv: torch.Tensor) -> dict[str, int]:
    """Rows and keys per block, warps and stages."""
    batch, tokens, _, heads, dim = qkv.shape
    if qkv.dtype == torch.float32:
        # Matmuls in full float32 run without tensor cores, where larger blocks or fewer warps spill registers.
        rows, keys = (64, 32) if dim <= 64 else (32, 16)
        return {"BLOCK_M": rows, "BLOCK_N": keys, "num_warps": 8, "num_stages": 2}
    # 128 rows halve the reads of K and V, worth it once such blocks still fill any GPU (512 programs or more).
    rows = 128 if batch * heads * triton.cdiv(tokens, 128) >= 512 else 64
    return {"BLOCK_M": rows, "BLOCK_N": 64, "num_warps": 8, "num_stages": 2}


def _backward_blocks(qkv: torch.Tensor) -> tuple[int, int]:
    """Rows a program owns, and rows it goes over at a time; 8 warps and 2 stages."""
    if qkv.dtype == torch.float32:
        return (32, 32) if qkv.shape[4] <= 64 else (16, 16)
    # A program owns 64 rows, or Hopper's matrix instructions would not fit.
    return (64, 64) if qkv.shape[4] <= 64 else (64, 32)


def attention(
    qkv: torch.Tensor, template_mask: torch.Tensor | None = None, arrivals: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
    """softmax(Q K' / sqrt D) V, the score of every search token, and what the backward pass needs; one launch.

    Args:
        qkv: (B,N,3,H,D), float32, float16 or bfloat16; D one of 32, 64, 96, 128.
        template_mask: (T,) or (B,T) bool with 1 <= T <= N, the template rows that score; None for no score.
        arrivals: (B,) int32 zeros, left as zeros, to spare a memset; not to be shared between streams. Allocated
            when None.

    Returns:
        out (B,N,H*D) in the dtype of qkv; score (B,N-T) float32, or None without a mask; lse (B,H,N) float32, natural
        logarithm of each softmax denominator. float32 is computed in IEEE float32 throughout, never tf32.
    """
    batch, tokens, _, heads, dim = qkv.shape
    qkv = qkv.contiguous()
    out = qkv.new_empty(batch, tokens, heads * dim)
    lse = qkv.new_empty(batch, heads, tokens, dtype=torch.float32)
    blocks = _forward_blocks(qkv)
    score = partial = None
    template = template_blocks = mask_stride = 0
    if template_mask is not None:
        template = template_mask.shape[-1]
        template_mask = template_mask.contiguous().view(torch.uint8)
        mask_stride = template if template_mask.dim() == 2 and batch > 1 else 0
        template_blocks = triton.next_power_of_2(triton.cdiv(template, blocks["BLOCK_M"]))
        score = qkv.new_empty(batch, tokens - template, dtype=torch.float32)
        partial = qkv.new_empty(batch, template_blocks * heads, tokens - template, dtype=torch.float32)
        if arrivals is None:
            arrivals = torch.zeros(batch, dtype=torch.int32, device=qkv.device)
    with torch.cuda.device_of(qkv):
        _attention_forward[(triton.cdiv(tokens, blocks["BLOCK_M"]), heads, batch)](
            qkv, template_mask, out, lse, score, partial, arrivals, mask_stride, tokens, heads, template, dim**-0.5,
            D=dim, BLOCK_D=triton.next_power_of_2(dim), SCORE=template_mask is not None,
            TEMPLATE_BLOCKS=template_blocks, PARTIAL_BLOCK=16, SCORE_BLOCK=256, enable_fp_fusion=True, **blocks,
            **dependent_launch.options(qkv.device),
        )  # fmt: skip
    return out, score, lse


def attention_backward(grad_out: torch.Tensor, qkv: torch.Tensor, out: torch.Tensor, lse: torch.Tensor) -> torch.Tensor:
    """Gradient of `attention` in qkv, (B,N,3,H,D), from that in out (B,N,H*D) and the saved out and lse.

    Two launches, no atomics: the same numbers on every run. For a score without a gradient of its own.
    """
    batch, tokens, _, heads, dim = qkv.shape
    qkv, grad_out = qkv.contiguous(), grad_out.contiguous()
    grad_qkv = torch.empty_like(qkv)
    delta = torch.empty_like(lse)
    own, other = _backward_blocks(qkv)
    grid = (triton.cdiv(tokens, own), heads, batch)
    options = {
        "D": dim,
        "BLOCK_D": triton.next_power_of_2(dim),
        "num_warps": 8,
        "num_stages": 2,
        "enable_fp_fusion": True,
    }
    with torch.cuda.device_of(qkv):
        _attention_backward_q[grid](
            grad_out, qkv, out, lse, grad_qkv, delta, tokens, heads, dim**-0.5, BLOCK_M=own, BLOCK_N=other, **options
        )
        _attention_backward_kv[grid](
            grad_out, qkv, lse, delta, grad_qkv, tokens, heads, dim**-0.5, BLOCK_M=other, BLOCK_N=own, **options
        )
    return grad_qkv
