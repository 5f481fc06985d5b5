"""restore_conv3x3: the head's first convolution of all towers, from the tokens that elimination leaves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ostrack_fast import ops
from ostrack_fast.config import ModelConfig
from ostrack_fast.ops import layers, reference

from . import bench_conv3x3, bench_restore
from .bench_conv3x3 import random_weights, towers
from .case import TOLERANCE, Case, Comparison, Implementation, add_layer

_NORM_EPS = 1e-6


def cases(cfg: ModelConfig, batch: int, dtype: torch.dtype, device: torch.device) -> Iterator[Case]:
    grid, inputs, outputs, kept = cfg.search_grid, cfg.embed_dim, 3 * cfg.head_channels, cfg.search_tokens()[-1]
    weights = outputs * inputs * 9
    flops = 2.0 * batch * kept * weights
    moved = float(batch * (4 * kept * inputs + grid * grid * outputs * dtype.itemsize) + weights * dtype.itemsize)
    build = partial(_compare, batch, grid, inputs, outputs, kept, dtype, device)
    shape = f"{kept} of {grid} x {grid}, {inputs} to {outputs}, all towers"
    yield Case("restore_conv3x3", shape, batch, dtype, device, flops, moved, build)


def _compare(
    batch: int, grid: int, inputs: int, outputs: int, kept: int, dtype: torch.dtype, device: torch.device
) -> Comparison:
    tokens = torch.randn(batch, kept, inputs, device=device)
    order = torch.rand(batch, grid * grid, device=device).argsort(1)
    ids, removed = order.split((kept, grid * grid - kept), dim=1)
    weight, bias = random_weights(outputs, inputs, dtype, device)
    scale, shift = torch.ones(inputs, device=device), torch.zeros(inputs, device=device)
    restored = reference.restore(
        tokens.double(), ids, grid, scale.double(), shift.double(), _NORM_EPS, channels_last=True
    )
    with ops.use("reference"):
        exact = layers.conv3x3(weight.double(), bias.double(), dtype=torch.float64)
        best = layers.conv3x3(weight, bias, dtype=dtype)
    first = torch.arange(0, batch * grid * grid, grid * grid, device=device)[:, None]

    def normed() -> Tensor:
        return functional.layer_norm(tokens, (inputs,), scale, shift, _NORM_EPS).to(dtype)

    def upstream() -> tuple[Tensor, ...]:
        planes = bench_restore.upstream(normed(), ids, removed, grid)
        return bench_conv3x3.upstream([planes] * 3, weight, bias)

    def torch_best() -> tuple[Tensor, ...]:
        return towers(best, bench_restore.torch_best(normed(), ids, grid, first).permute(0, 2, 3, 1))

    def build(compute_dtype: torch.dtype) -> Callable[[], Any]:
        norm = scale, shift, _NORM_EPS
        layer = layers.restore_conv3x3(weight.float(), bias.float(), norm, kept, grid, compute_dtype)
        return partial(towers, layer, tokens, ids)

    baselines = {
        "upstream": Implementation(upstream, TOLERANCE[dtype]),
        "torch": Implementation(torch_best, TOLERANCE[dtype]),
    }
    comparison = Comparison(towers(exact, restored.permute(0, 2, 3, 1)), baselines)
    add_layer(comparison, "conv3x3", weight.float(), dtype, build)
    return comparison


def test_restore_conv3x3(check_then_time, case, implementation):
    check_then_time(case, implementation)
