"""What the matrix products share: the end of a tile, and the sum of a tile that several programs computed in parts.

Split sums add in a fixed order: each program writes its part to its own place in a workspace and takes a ticket, and
whoever takes the tile's last ticket adds the parts from first to last. The result is the same on every run.
"""

import torch
import triton
import triton.language as tl

SLICE = tl.constexpr(16)  # rows of a tile that the last program adds at a time: all their parts are read at once


class Workspace:
    """Memory for split sums, grown on demand. Layers that run one after another may share one.

    Not to be used from two streams at once: parts and tickets belong to the launch that is running. What was handed
    out is never freed, as a captured CUDA graph may still write there.
    """

    def __init__(self) -> None:
        self._held: dict[torch.device, list[tuple[torch.Tensor, torch.Tensor]]] = {}

    def reserve(self, device: torch.device, parts: int, tiles: int) -> tuple[torch.Tensor, torch.Tensor]:
        """At least `parts` float32 and `tiles` tickets, int32, all zero between launches.

        Raises:
            RuntimeError: it must grow while a CUDA graph is captured, when the tickets would not become zero.
        """
        held = self._held.setdefault(device, [])
        if held and held[-1][0].numel() >= parts and held[-1][1].numel() >= tiles:
            return held[-1]
        if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            raise RuntimeError("the workspace must grow during CUDA graph capture: run these shapes once before it")
        if held:
            parts, tiles = max(parts, held[-1][0].numel()), max(tiles, held[-1][1].numel())
        held.append(
            (
                torch.empty(parts, dtype=torch.float32, device=device),
                torch.zeros(tiles, dtype=torch.int32, device=device),
            )
        )
        return held[-1]


@triton.jit
def _finish(
    value, rows, columns, bias, residual, out, M, N, rows_per_batch, residual_batch_stride, residual_row_stride,
    out_batch_stride, out_row_stride, ACTIVATION: tl.constexpr,
):  # fmt: skip
    value += tl.load(bias + columns, mask=columns < N, other=0.0)[None, :]
    if ACTIVATION == "relu":
        value = tl.maximum(value, 0.0, propagate_nan=tl.PropagateNan.ALL)
    elif ACTIVATION == "gelu":
        value = 0.5 * value * (1.0 + tl.erf(value * 0.7071067811865476))
    batch, row = (rows // rows_per_batch).to(tl.int64), (rows % rows_per_batch).to(tl.int64)
    mask = (rows < M)[:, None] & (columns < N)[None, :]
    if residual is not None:
        start = batch * residual_batch_stride + row * residual_row_stride
        value += tl.load(residual + start[:, None] + columns[None, :], mask=mask, other=0.0).to(tl.float32)
    start = batch * out_batch_stride + row * out_row_stride
    tl.store(out + start[:, None] + columns[None, :], value.to(out.dtype.element_ty), mask=mask)


@triton.jit
def finish_tile(
    acc, tile, part, first_row, columns, bias, residual, out, partial, tickets, M, N, rows_per_batch,
    residual_batch_stride, residual_row_stride, out_batch_stride, out_row_stride,
    ACTIVATION: tl.constexpr, SPLIT: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """out = activation(acc + bias) + residual, where acc is a part of the tile's sum if SPLIT > 1."""
    if SPLIT == 1:
        rows = first_row + tl.arange(0, BLOCK_M)
        _finish(
            acc, rows, columns, bias, residual, out, M, N, rows_per_batch, residual_batch_stride, residual_row_stride,
            out_batch_stride, out_row_stride, ACTIVATION,
        )  # fmt: skip
    else:
        places = tl.arange(0, BLOCK_M)[:, None] * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
        parts = partial + tile.to(tl.int64) * (SPLIT * BLOCK_M * BLOCK_N)
        tl.store(parts + part * (BLOCK_M * BLOCK_N) + places, acc)
        # Every thread's values must be written before one thread takes the ticket that publishes them.
        tl.debug_barrier()
        if tl.atomic_add(tickets + tile, 1, sem="acq_rel") == SPLIT - 1:
            for start in range(0, BLOCK_M, SLICE):
                within = start + tl.arange(0, SLICE)
                slice_parts = parts + within[:, None] * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
                # Other multiprocessors wrote these: read past this one's own cache.
                total = tl.load(slice_parts, cache_modifier=".cg")
                for other in tl.static_range(1, SPLIT):
                    total += tl.load(slice_parts + other * (BLOCK_M * BLOCK_N), cache_modifier=".cg")
                _finish(
                    total, first_row + within, columns, bias, residual, out, M, N, rows_per_batch,
                    residual_batch_stride, residual_row_stride, out_batch_stride, out_row_stride, ACTIVATION,
                )  # fmt: skip
            # Leave the counter as it was found: the next launch, or the next replay of a graph, needs no memset.
            tl.atomic_xchg(tickets + tile, 0, sem="relaxed")
