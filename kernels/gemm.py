"""What the GEMMs share: the epilogue of a tile, and the sum of a tile whose K is split over several programs (split-K).

Split-K partials add in a fixed order: each program writes its own to a workspace and counts its arrival, and whoever
arrives last at a tile adds the partials from first to last. The result is the same on every run.
"""

import torch
import triton
import triton.language as tl

SLICE = tl.constexpr(16)  # rows of a tile that the last program to arrive adds at a time


class Workspace:
    """Memory for split-K partials, grown on demand. Layers that run one after another may share one.

    Not to be used from two streams at once: partials and arrival counters belong to the launch that is running. Memory
    that was handed out is never freed, as a captured CUDA graph may still write there.
    """

    def __init__(self) -> None:
        self._held: dict[torch.device, list[tuple[torch.Tensor, torch.Tensor]]] = {}

    def reserve(self, device: torch.device, partials: int, tiles: int) -> tuple[torch.Tensor, torch.Tensor]:
        """At least `partials` float32, and `tiles` arrival counters, int32, which are zero between launches.

        Raises:
            RuntimeError: it must grow while a CUDA graph is captured, when the counters would not become zero.
        """
        held = self._held.setdefault(device, [])
        if held and held[-1][0].numel() >= partials and held[-1][1].numel() >= tiles:
            return held[-1]
        if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            raise RuntimeError("the workspace must grow during CUDA graph capture: run these shapes once before it")
        if held:
            partials, tiles = max(partials, held[-1][0].numel()), max(tiles, held[-1][1].numel())
        held.append(
            (
                torch.empty(partials, dtype=torch.float32, device=device),
                torch.zeros(tiles, dtype=torch.int32, device=device),
            )
        )
        return held[-1]


@triton.jit
def _epilogue(
    value, rows, columns, bias, residual, out, M, N: tl.constexpr, rows_per_batch, residual_batch_stride,
    residual_row_stride, out_batch_stride, out_row_stride, ACTIVATION: tl.constexpr,
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
def reduce_and_store(
    acc, tile, split, first_row, columns, bias, residual, out, partial, arrivals, M, N: tl.constexpr, rows_per_batch,
    residual_batch_stride, residual_row_stride, out_batch_stride, out_row_stride, ACTIVATION: tl.constexpr,
    SPLIT: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """out = activation(acc + bias) + residual, where acc is the partial of number `split` if SPLIT > 1."""
    if SPLIT == 1:
        rows = first_row + tl.arange(0, BLOCK_M)
        _epilogue(
            acc, rows, columns, bias, residual, out, M, N, rows_per_batch, residual_batch_stride, residual_row_stride,
            out_batch_stride, out_row_stride, ACTIVATION,
        )  # fmt: skip
    else:
        cells = tl.arange(0, BLOCK_M)[:, None] * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
        partials = partial + tile.to(tl.int64) * (SPLIT * BLOCK_M * BLOCK_N)
        tl.store(partials + split * (BLOCK_M * BLOCK_N) + cells, acc)
        # Every thread's values must be written before one thread counts the arrival that publishes them.
        tl.debug_barrier()
        if tl.atomic_add(arrivals + tile, 1, sem="acq_rel") == SPLIT - 1:
            for start in range(0, BLOCK_M, SLICE):
                within = start + tl.arange(0, SLICE)
                slice_partials = partials + within[:, None] * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
                # Other multiprocessors wrote these: read past this one's own cache.
                total = tl.load(slice_partials, cache_modifier=".cg")
                for other in tl.static_range(1, SPLIT):
                    total += tl.load(slice_partials + other * (BLOCK_M * BLOCK_N), cache_modifier=".cg")
                _epilogue(
                    total, first_row + within, columns, bias, residual, out, M, N, rows_per_batch,
                    residual_batch_stride, residual_row_stride, out_batch_stride, out_row_stride, ACTIVATION,
                )  # fmt: skip
            # Leave the counter as it was found: the next launch, or the next replay of a graph, needs no memset.
            tl.atomic_xchg(arrivals + tile, 0, sem="relaxed")
