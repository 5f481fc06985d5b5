"""A linear layer with frozen weights in one launch: LayerNorm before it, activation and residual after it.

The LayerNorm costs no pass of its own over the rows. With any shift s per row,

    norm(x) W' = (((x - s) W') - (mean - s) sum(W)) / sqrt(variance + eps)

where mean and variance come from sums of (x - s) and its square that the same loop takes. The shift is the mean of the
row's first channels: by Cauchy and Schwarz it lies within sqrt(channels / first channels) standard deviations of the
row's mean whatever the row holds, so nothing cancels, and x - s keeps the relative precision of the compute dtype.
"""

import torch
import triton
import triton.language as tl

from . import dependent_launch
from .dependent_launch import fetch_weights, wait_for_inputs
from .gemm import Workspace, reduce_and_store
from .library_gemm import library_linear
from .tiles import Problem, config_for, library_is_faster


@triton.jit(do_not_specialize=["M", "rows_per_batch"])
def _linear(
    x, weight, bias, weight_sum, residual, out, partial, arrivals, M, rows_per_batch, residual_batch_stride,
    residual_row_stride, out_batch_stride, out_row_stride, eps, N: tl.constexpr, K: tl.constexpr, NORM: tl.constexpr,
    ACTIVATION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, SPLIT: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    tile, split = tl.program_id(0), tl.program_id(1)
    # Neighbours share the columns: their weights come from memory once, and from the L2 cache after.
    row_tiles = tl.cdiv(M, BLOCK_M)
    first_row = (tile % row_tiles) * BLOCK_M
    columns = (tile // row_tiles) * BLOCK_N + tl.arange(0, BLOCK_N)
    # Past the end read the last row again, which is never written: cheaper than a mask in the loop.
    x_rows = tl.minimum(tl.arange(0, BLOCK_M), M - 1 - first_row) * K
    weight_rows = tl.minimum(columns, N - 1) * K
    x += first_row.to(tl.int64) * K
    STEPS: tl.constexpr = (K + BLOCK_K - 1) // BLOCK_K // SPLIT
    fetch_weights(weight, weight_rows, split * STEPS * BLOCK_K, K, 2 * BLOCK_K, PDL)
    wait_for_inputs(PDL)
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    shift = tl.zeros([BLOCK_M], tl.float32)
    if NORM:
        # Sums of four neighbours, which one thread holds: adding whole rows in every step would keep threads waiting.
        total = tl.zeros([BLOCK_M, BLOCK_K // 4], tl.float32)
        squares = tl.zeros([BLOCK_M, BLOCK_K // 4], tl.float32)
    for step in range(STEPS):
        k = (split * STEPS + step) * BLOCK_K + tl.arange(0, BLOCK_K)
        if K % BLOCK_K == 0:
            a = tl.load(x + x_rows[:, None] + k[None, :])
            b = tl.load(weight + weight_rows[:, None] + k[None, :])
        else:
            a = tl.load(x + x_rows[:, None] + k[None, :], mask=(k < K)[None, :], other=0.0)
            b = tl.load(weight + weight_rows[:, None] + k[None, :], mask=(k < K)[None, :], other=0.0)
        if NORM:
            a = a.to(tl.float32)
            if step == 0:
                shift = tl.sum(a, axis=1) / min(K, BLOCK_K)
            a -= shift[:, None]
            if K % BLOCK_K != 0:
                a = tl.where((k < K)[None, :], a, 0.0)
            total += tl.sum(tl.reshape(a, [BLOCK_M, BLOCK_K // 4, 4]), axis=2)
            squares += tl.sum(tl.reshape(a * a, [BLOCK_M, BLOCK_K // 4, 4]), axis=2)
        if b.dtype == tl.float32:
            # Sums of a step's products, then sums of steps: one long chain of additions would round twice as wrong.
            acc += tl.dot(a, tl.trans(b), input_precision="ieee")
        else:
            acc = tl.dot(a.to(b.dtype), tl.trans(b), acc)
    if NORM:
        # Mean and variance of x - shift.
        mean = tl.sum(total, axis=1) / K
        variance = tl.maximum(tl.sum(squares, axis=1) / K - mean * mean, 0.0, propagate_nan=tl.PropagateNan.ALL)
        scale = tl.div_rn(1.0, tl.sqrt_rn(variance + eps))
        weight_sums = tl.load(weight_sum + columns, mask=columns < N, other=0.0)
        if SPLIT > 1:
            # The partials are added: one of them subtracts the mean.
            weight_sums = tl.where(split == 0, weight_sums, 0.0)
        acc = (acc - mean[:, None] * weight_sums[None, :]) * scale[:, None]
    reduce_and_store(
        acc, tile, split, first_row, columns, bias, residual, out, partial, arrivals, M, N, rows_per_batch,
        residual_batch_stride, residual_row_stride, out_batch_stride, out_row_stride, ACTIVATION, SPLIT, BLOCK_M,
        BLOCK_N,
    )  # fmt: skip


def _row_strides(tensor: torch.Tensor) -> tuple[int, int]:
    """Strides of a batch element and of a row of (..., n, features), features dense."""
    rows, features = tensor.shape[-2:]
    if tensor.is_contiguous():
        return rows * features, features
    if tensor.dim() > 3 or tensor.stride(-1) != 1:
        raise ValueError(f"need dense rows, at most one batch dimension before them: strides are {tensor.stride()}")
    return tensor.stride(0) if tensor.dim() == 3 else 0, tensor.stride(-2)


class Linear:
    """activation(norm(x) W' + bias) + residual, with the weights laid out and rounded once.

    Args:
        weight: (O,I), on the GPU where the layer will run; bias: (O,). Any floating dtype.
        norm_eps: of a LayerNorm without affine over x, statistics in float32; None for no LayerNorm. With it, a
            row's values may lie up to 65504 from the row's mean if `dtype` is float16.
        activation: "none", "gelu" (the exact one, by the error function) or "relu".
        dtype: of the operands: float16, bfloat16, or float32, which is IEEE float32 throughout, never tf32.
            Sums, bias, activation and residual are float32 always.
        workspace: for split-K partials; a new one by default. Layers of one stream may share one.
    """

    def __init__(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor,
        norm_eps: float | None = None,
        activation: str = "none",
        dtype: torch.dtype = torch.float32,
        workspace: Workspace | None = None,
    ):
        self.weight = weight.detach().to(dtype).contiguous()
        self.bias = bias.detach().float().contiguous()
        self._rounded_bias = self.bias.to(dtype)
        self.norm_eps, self.activation, self.inputs = norm_eps, activation, weight.shape[1]
        # Sums of the rounded weights, because those multiply the mean in the main loop.
        self.weight_sum = None if norm_eps is None else self.weight.sum(1, dtype=torch.float64).float()
        self.workspace = Workspace() if workspace is None else workspace

    def problem(self, rows: int) -> Problem:
        """The GEMM for that many rows, as `tiles` names it."""
        features, channels = self.weight.shape
        half = self.weight.dtype != torch.float32
        return Problem(rows, features, channels, half=half, norm=self.norm_eps is not None)

    def __call__(
        self, x: torch.Tensor, residual: torch.Tensor | None = None, out: torch.Tensor | None = None
    ) -> torch.Tensor:
        """One launch, or `by_library` where the table of tiles says so. Not from two streams with one workspace.

        Args:
            x: (...,I), float32 or the layer's dtype.
            residual: (...,O), float32; the result is then float32.
            out: (...,O) to write to, in any floating dtype: dense rows, of which (B,n,O) may be a slice of a longer
                buffer. May be `residual` itself.

        Returns:
            (...,O), `out` if given.
        """
        rows = x.numel() // self.inputs
        if rows and library_is_faster(self.problem(rows), x.device):
            return self.by_library(x, residual, out)
        return self._launch(x, residual, out)

    def by_library(
        self, x: torch.Tensor, residual: torch.Tensor | None = None, out: torch.Tensor | None = None
    ) -> torch.Tensor:
        """As a call, by the library's GEMM and kernels around it."""
        return library_linear(x, self.weight, self._rounded_bias, self.norm_eps, self.activation, residual, out)

    def _launch(self, x: torch.Tensor, residual: torch.Tensor | None, out: torch.Tensor | None) -> torch.Tensor:
        features, channels = self.weight.shape
        if out is None:
            dtype = self.weight.dtype if residual is None else torch.float32
            out = x.new_empty(*x.shape[:-1], features, dtype=dtype)
        rows = out.numel() // features
        if rows == 0:
            return out
        x = (x.to(self.weight.dtype) if self.norm_eps is None else x).contiguous()
        target = out if out.dim() > 1 else out[None]
        if residual is not None and residual.dim() < 2:
            residual = residual[None]
        problem = self.problem(rows)
        config = config_for(problem, x.device)
        tiles = config.tiles(problem)
        partial = arrivals = None
        if config.split > 1:
            partials = tiles * config.split * config.block_m * config.block_n
            partial, arrivals = self.workspace.reserve(x.device, partials, tiles)
        with torch.cuda.device_of(x):
            _linear[(tiles, config.split)](
                x, self.weight, self.bias, self.weight_sum, residual, target, partial, arrivals, rows, target.shape[-2],
                *((0, 0) if residual is None else _row_strides(residual)), *_row_strides(target), self.norm_eps or 0.0,
                N=features, K=channels, NORM=self.norm_eps is not None, ACTIVATION=self.activation,
                enable_fp_fusion=True, **config.options(), **dependent_launch.options(x.device),
            )  # fmt: skip
        return out
