"""A 3 x 3 convolution with frozen weights over channels-last maps, bias and ReLU included, in one launch.

An implicit GEMM, whose left matrix is never stored: its row (b, y, x) is the channels of nine neighbours one after the
other. Each step of the main loop reads a few channels of one neighbour, zeros where that lies outside the map.
"""

import torch
import triton
import triton.language as tl

from . import dependent_launch
from .dependent_launch import fetch_weights, wait_for_inputs
from .gemm import Workspace, reduce_and_store
from .tiles import Problem, config_for


@triton.jit(do_not_specialize=["M"])
def _conv3x3(
    x, weight, bias, out, partial, arrivals, M, F: tl.constexpr, K: tl.constexpr, N: tl.constexpr, GROUPS: tl.constexpr,
    ACTIVATION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, SPLIT: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """Map side F, and in each group K inputs and N outputs."""
    tile, split = tl.program_id(0), tl.program_id(1)
    row_tiles = tl.cdiv(M, BLOCK_M)
    COLUMN_TILES: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
    first_row = (tile % row_tiles) * BLOCK_M
    column_tile = tile // row_tiles % COLUMN_TILES
    group = tile // row_tiles // COLUMN_TILES
    rows = tl.minimum(first_row + tl.arange(0, BLOCK_M), M - 1)
    map_y, map_x = rows // F % F, rows % F
    x_rows = (rows - first_row) * (GROUPS * K)
    x += first_row.to(tl.int64) * (GROUPS * K) + group * K
    columns = column_tile * BLOCK_N + tl.arange(0, BLOCK_N)
    weight_rows = (group * N + tl.minimum(columns, N - 1)) * (9 * K)
    CHUNKS: tl.constexpr = (K + BLOCK_K - 1) // BLOCK_K
    STEPS: tl.constexpr = 9 * CHUNKS // SPLIT
    first = split * STEPS // CHUNKS * K + split * STEPS % CHUNKS * BLOCK_K
    fetch_weights(weight, weight_rows, first, 9 * K, 2 * BLOCK_K, PDL)
    wait_for_inputs(PDL)
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for step in range(STEPS):
        tap = (split * STEPS + step) // CHUNKS
        k = (split * STEPS + step) % CHUNKS * BLOCK_K + tl.arange(0, BLOCK_K)
        dy, dx = tap // 3 - 1, tap % 3 - 1
        inside = (map_y + dy >= 0) & (map_y + dy < F) & (map_x + dx >= 0) & (map_x + dx < F)
        a_at = x + x_rows[:, None] + (dy * F + dx) * (GROUPS * K) + k[None, :]
        b_at = weight + weight_rows[:, None] + tap * K + k[None, :]
        if K % BLOCK_K == 0:
            a = tl.load(a_at, mask=inside[:, None], other=0.0)
            b = tl.load(b_at)
        else:
            a = tl.load(a_at, mask=inside[:, None] & (k < K)[None, :], other=0.0)
            b = tl.load(b_at, mask=(k < K)[None, :], other=0.0)
        acc = tl.dot(a, tl.trans(b), acc, input_precision="ieee")
    reduce_and_store(
        acc, tile, split, first_row, columns, bias + group * N, None, out + group * N, partial, arrivals, M, N, M, 0, 0,
        0, GROUPS * N, ACTIVATION, SPLIT, BLOCK_M, BLOCK_N,
    )  # fmt: skip


class Conv3x3:
    """activation(3 x 3 convolution + bias), padding 1, with the weights laid out and rounded once.

    Args:
        weight: (O,I/groups,3,3), on the GPU where the layer will run; bias: (O,). Any floating dtype.
        groups: each group's outputs see only its inputs.
        activation: "relu" or "none".
        dtype: of operands and result: float16, bfloat16, or float32, which is IEEE float32 throughout, never tf32.
            Sums, bias and activation are float32 always.
        workspace: for split-K partials; a new one by default. Layers of one stream may share one.
    """

    def __init__(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor,
        groups: int = 1,
        activation: str = "relu",
        dtype: torch.dtype = torch.float32,
        workspace: Workspace | None = None,
    ):
        # (O,3,3,I/groups): the order in which the loop goes over an output's weights.
        self.weight = weight.detach().to(dtype).permute(0, 2, 3, 1).contiguous()
        self.bias = bias.detach().float().contiguous()
        self.groups, self.activation, self.inputs = groups, activation, weight.shape[1] * groups
        self.workspace = Workspace() if workspace is None else workspace

    def problem(self, rows: int) -> Problem:
        """The GEMM for that many cells, as `tiles` names it."""
        outputs, _, _, inputs = self.weight.shape
        half = self.weight.dtype != torch.float32
        return Problem(rows, outputs // self.groups, inputs, half=half, groups=self.groups, taps=9)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x (B,F,F,I), float32 or the layer's dtype -> (B,F,F,O). Not from two streams at once with one workspace.

        Raises:
            ValueError: x has another shape: its channels would be read as other cells'.
        """
        batch, grid = x.shape[:2]
        outputs = self.weight.shape[0]
        out = x.new_empty(batch, grid, grid, outputs, dtype=self.weight.dtype)
        rows = batch * grid * grid
        if x.shape != (batch, grid, grid, self.inputs):
            raise ValueError(f"x must be (B,F,F,{self.inputs}), is {tuple(x.shape)}")
        if rows == 0:
            return out
        x = x.to(self.weight.dtype).contiguous()
        problem = self.problem(rows)
        config = config_for(problem, x.device)
        tiles = config.tiles(problem)
        partial = arrivals = None
        if config.split > 1:
            partials = tiles * config.split * config.block_m * config.block_n
            partial, arrivals = self.workspace.reserve(x.device, partials, tiles)
        with torch.cuda.device_of(x):
            _conv3x3[(tiles, config.split)](
                x, self.weight, self.bias, out, partial, arrivals, rows, F=grid, K=problem.k, N=problem.n,
                GROUPS=self.groups, ACTIVATION=self.activation, enable_fp_fusion=True,
                **config.options(), **dependent_launch.options(x.device),
            )  # fmt: skip
        return out
