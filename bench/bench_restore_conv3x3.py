"""restore_conv3x3: the head's first convolution of all towers, from the tokens that elimination leaves."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from ostrack_fast import ops
from ostrack_fast.ops import layers, reference

from . import bench_conv3x3, bench_restore
from .bench_conv3x3 import random_weights, towers
from .case import Case, Comparison, Setting, compare_layer, run_under_pytest

_NORM_EPS = 1e-6


def cases(at: Setting) -> Iterator[Case]:
    grid, inputs, outputs = at.cfg.search_grid, at.cfg.embed_dim, 3 * at.cfg.head_channels
    kept, weights, size = at.cfg.search_tokens()[-1], 9 * inputs * outputs, at.dtype.itemsize
    moved = float(at.batch * (4 * kept * inputs + grid * grid * outputs * size) + weights * size)
    build = partial(_compare, at, grid, inputs, outputs, kept)
    shape = f"{kept} of {grid} x {grid}, {inputs} to {outputs}, all towers"
    yield at.case("restore_conv3x3", shape, 2.0 * at.batch * kept * weights, moved, build)


def _compare(at: Setting, grid: int, inputs: int, outputs: int, kept: int) -> Comparison:
    tokens = at.normal(at.batch, kept, inputs)
    order = torch.rand(at.batch, grid * grid, device=at.device).argsort(1)
    ids, removed = order.split((kept, grid * grid - kept), dim=1)
    weight, bias = random_weights(at, outputs, inputs)
    norm = torch.ones(inputs, device=at.device), torch.zeros(inputs, device=at.device), _NORM_EPS
    scale, shift, eps = norm[0].double(), norm[1].double(), norm[2]
    restored = reference.restore(tokens.double(), ids, grid, scale, shift, eps, channels_last=True)
    with ops.use("reference"):
        exact = layers.conv3x3(weight.double(), bias.double(), dtype=torch.float64)
        best = layers.conv3x3(weight, bias, dtype=at.dtype)
    first = torch.arange(0, at.batch * grid * grid, grid * grid, device=at.device)[:, None]

    def normed() -> Tensor:
        return functional.layer_norm(tokens, (inputs,), *norm).to(at.dtype)

    def upstream() -> tuple[Tensor, ...]:
        planes = bench_restore.upstream(normed(), ids, removed, grid)
        return bench_conv3x3.upstream([planes] * 3, weight, bias)

    def torch_best() -> tuple[Tensor, ...]:
        return towers(best, bench_restore.torch_best(normed(), ids, grid, first).permute(0, 2, 3, 1))

    def build(kind: torch.dtype) -> partial:
        return partial(
            towers, layers.restore_conv3x3(weight.float(), bias.float(), norm, kept, grid, kind), tokens, ids
        )

    expected = towers(exact, restored.permute(0, 2, 3, 1))
    return compare_layer("conv3x3", weight.float(), at.dtype, expected, (upstream, torch_best), build)


test_restore_conv3x3 = run_under_pytest
