"""restore_conv3x3: the head's first convolution of all towers, from the tokens that elimination leaves."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor
from torch.nn import functional

from ostrack_fast import ops

from . import bench_conv3x3, bench_restore
from .case import Case, Comparison, Setting, compare


def cases(at: Setting) -> Iterator[Case]:
    grid, inputs, outputs = at.cfg.search_grid, at.cfg.embed_dim, 3 * at.cfg.head_channels
    kept, weights, size = at.cfg.search_tokens()[-1], 9 * inputs * outputs, at.dtype.itemsize
    moved = float(at.batch * (4 * kept * inputs + grid * grid * outputs * size) + weights * size)
    shape = f"{kept} of {grid} x {grid}, {inputs} to {outputs}, all towers"
    flops = 2.0 * at.batch * kept * weights
    yield at.case("restore_conv3x3", shape, flops, moved, _compare, at, inputs, outputs, kept, grid)


def _compare(at: Setting, *sizes: int) -> Comparison:
    weight, bias, norm, _, grid, dtype = arguments = at.example("restore_conv3x3", *sizes)
    tokens, ids = ops.LAYERS["restore_conv3x3"].inputs(*arguments, at.batch)
    removed, first = bench_restore.removed_cells(ids, grid), bench_restore.first_rows(ids, grid)
    weight, bias = weight.to(dtype), bias.to(dtype)
    with ops.use("reference"):
        best = ops.LAYERS["conv3x3"].build(weight, bias, dtype=dtype)

    def normed() -> Tensor:
        return functional.layer_norm(tokens, tokens.shape[2:], *norm).to(dtype)

    def upstream() -> tuple[Tensor, ...]:
        return bench_conv3x3.upstream([bench_restore.upstream(normed(), ids, removed, grid)] * 3, weight, bias)

    def torch_best() -> tuple[Tensor, ...]:
        restored = bench_restore.torch_best(normed(), ids, grid, first)
        return bench_conv3x3.towers(best(restored.permute(0, 2, 3, 1)))

    baselines = {"upstream": upstream, "torch": torch_best}
    return compare("restore_conv3x3", arguments, at.dtype, baselines, (tokens, ids), bench_conv3x3.towers)
