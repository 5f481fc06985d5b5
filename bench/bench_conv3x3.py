"""conv3x3: the head's convolutions over whole maps, its three towers side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ostrack_fast import ops
from ostrack_fast.ops import layers

from .case import Case, Comparison, Setting, compare_layer, run_under_pytest

_TOWERS = 3


def upstream(images: list[Tensor], weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
    """Convolution, BatchNorm, ReLU, one tower after the other; NCHW in, a channels-last view of each tower out.

    Mean 0, variance 1: the convolution's own result, at BatchNorm's cost.
    """
    zeros, ones = (torch.full_like(bias[: len(bias) // _TOWERS], value) for value in (0.0, 1.0))
    made = []
    for x, w, b in zip(images, weight.chunk(_TOWERS), bias.chunk(_TOWERS), strict=True):
        normed = functional.batch_norm(functional.conv2d(x, w, b, padding=1), zeros, ones, ones, zeros, eps=0.0)
        made.append(torch.relu(normed).permute(0, 2, 3, 1))
    return tuple(made)


def towers(run: Callable[..., Tensor], *arguments: Any) -> tuple[Tensor, ...]:
    return run(*arguments).chunk(_TOWERS, dim=-1)


def random_weights(at: Setting, outputs: int, inputs: int) -> tuple[Tensor, Tensor]:
    """Weight and bias that a conversion to the dtype does not change."""
    weight = (at.normal(outputs, inputs, 3, 3) * (9 * inputs) ** -0.5).to(at.dtype)
    return weight, at.normal(outputs).to(at.dtype)


def cases(at: Setting) -> Iterator[Case]:
    grid, widths = at.cfg.search_grid, [_TOWERS * at.cfg.head_channels >> level for level in range(4)]
    for groups, inputs, outputs in zip((1, 3, 3, 3), (at.cfg.embed_dim, *widths), widths, strict=False):
        weights = outputs * inputs // groups * 9
        flops = 2.0 * at.batch * grid * grid * weights
        moved = float((at.batch * grid * grid * (inputs + outputs) + weights) * at.dtype.itemsize)
        shape = f"{grid} x {grid}, {inputs} to {outputs}, {'towers apart' if groups > 1 else 'all towers'}"
        yield at.case("conv3x3", shape, flops, moved, partial(_compare, at, inputs, outputs, groups))


def _compare(at: Setting, inputs: int, outputs: int, groups: int) -> Comparison:
    x = at.normal(at.batch, at.cfg.search_grid, at.cfg.search_grid, inputs).to(at.dtype)
    weight, bias = random_weights(at, outputs, inputs // groups)
    with ops.use("reference"):
        exact = layers.conv3x3(weight.double(), bias.double(), groups, dtype=torch.float64)
        best = layers.conv3x3(weight, bias, groups, dtype=at.dtype)
    planes = x.permute(0, 3, 1, 2).contiguous()
    images = [each.contiguous() for each in planes.chunk(groups, dim=1)] * (_TOWERS // groups)
    baselines = partial(upstream, images, weight, bias), partial(towers, best, x)

    def build(kind: torch.dtype) -> partial:
        return partial(towers, layers.conv3x3(weight.float(), bias.float(), groups, dtype=kind), x)

    return compare_layer("conv3x3", weight.float(), at.dtype, towers(exact, x.double()), baselines, build)


test_conv3x3 = run_under_pytest
