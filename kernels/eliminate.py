"""Candidate elimination: keep the search tokens with the best scores, in one launch.

No sort: each program owns a few tokens, counts how many candidates beat each of them, and that count is the position
the token goes to. The counts are a permutation because the order is total: by score descending, ties to the lower
position (so -0.0 equals 0.0), NaN after everything.
"""

import torch
import triton
import triton.language as tl

from . import dependent_launch
from .dependent_launch import wait_for_inputs

ROWS = 4  # tokens per program: a frame of one batch element is 80 programs, enough to hide the latency of the copy
MAX_CANDIDATES = 4096  # ROWS x candidates comparisons are held in registers


@triton.jit
def _destinations(score, tokens, S, T, BLOCK_S: tl.constexpr):
    """Where each token goes: template tokens stay, search tokens follow by rank."""
    own = tokens - T
    is_candidate = (own >= 0) & (own < S)
    mine = tl.load(score + own, mask=is_candidate, other=0.0)[:, None]
    positions = tl.arange(0, BLOCK_S)[None, :]
    others = tl.load(score + positions, mask=positions < S, other=0.0)
    earlier = positions < own[:, None]
    # A comparison with NaN is false, so NaN among the others beats nothing but a later NaN.
    beats = tl.where(mine != mine, (others == others) | earlier, (others > mine) | ((others == mine) & earlier))
    rank = tl.sum((beats & (positions < S)).to(tl.int32), axis=1)
    return tl.where(own < 0, tokens, T + rank)


@triton.jit(do_not_specialize=["T", "S", "K"])
def _eliminate(
    tokens, score, ids, out, kept_ids, removed, T, S, K,
    C: tl.constexpr, ROWS: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_C: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    wait_for_inputs(PDL)
    batch = tl.program_id(1)
    source = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    target = _destinations(score + batch * S, source, S, T, BLOCK_S)
    rank = target - T
    is_candidate = (source >= T) & (source < T + S)
    own = tl.load(ids + batch * S + source - T, mask=is_candidate, other=0)
    tl.store(kept_ids + batch * K + rank, own, mask=is_candidate & (rank < K))
    tl.store(removed + batch * (S - K) + rank - K, own, mask=is_candidate & (rank >= K))
    tokens += batch.to(tl.int64) * (T + S) * C
    out += batch.to(tl.int64) * (T + K) * C
    stays = (source < T + S) & (rank < K)
    for start in range(0, C, BLOCK_C):
        channels = start + tl.arange(0, BLOCK_C)
        mask = stays[:, None] & (channels[None, :] < C)
        value = tl.load(tokens + source[:, None] * C + channels[None, :], mask=mask)
        tl.store(out + target[:, None] * C + channels[None, :], value, mask=mask)


def eliminate(
    tokens: torch.Tensor, score: torch.Tensor, ids: torch.Tensor, keep: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Keep the `keep` best search tokens.

    Args:
        tokens: (B,T+S,C), any floating dtype; template tokens first.
        score: (B,S) float32.
        ids: (B,S) int64, the grid cell of each search token.
        keep: K, 0 to S.

    Returns:
        tokens (B,T+K,C), ids (B,K) and removed ids (B,S-K), the last two in order of descending score, ties by
        ascending position, NaN last.
    """
    batch, total, channels = tokens.shape
    candidates = score.shape[1]
    template = total - candidates
    out = tokens.new_empty(batch, template + keep, channels)
    kept_ids, removed = ids.new_empty(batch, keep), ids.new_empty(batch, candidates - keep)
    with torch.cuda.device_of(tokens):
        _eliminate[(triton.cdiv(total, ROWS), batch)](
            tokens.contiguous(), score.contiguous(), ids.contiguous(), out, kept_ids, removed, template, candidates,
            keep, C=channels, ROWS=ROWS, BLOCK_S=triton.next_power_of_2(candidates),
            BLOCK_C=min(1024, triton.next_power_of_2(channels)), enable_fp_fusion=True,
            **dependent_launch.options(tokens.device),
        )  # fmt: skip
    return out, kept_ids, removed
