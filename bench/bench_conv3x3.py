"""conv3x3: the head's convolutions over whole maps, its three towers side by side."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ostrack_fast import ops

from .case import Case, Comparison, Setting, compare

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


def towers(result: Any) -> tuple[Tensor, ...]:
    """The layer's result as upstream gives it: one tensor a tower."""
    return result if isinstance(result, tuple) else result.chunk(_TOWERS, dim=-1)


def cases(at: Setting) -> Iterator[Case]:
    grid, widths = at.cfg.search_grid, [_TOWERS * at.cfg.head_channels >> level for level in range(4)]
    for groups, inputs, outputs in zip((1, 3, 3, 3), (at.cfg.embed_dim, *widths), widths, strict=False):
        weights = outputs * inputs // groups * 9
        flops = 2.0 * at.batch * grid * grid * weights
        moved = float((at.batch * grid * grid * (inputs + outputs) + weights) * at.dtype.itemsize)
        shape = f"{grid} x {grid}, {inputs} to {outputs}, {'towers apart' if groups > 1 else 'all towers'}"
        yield at.case("conv3x3", shape, flops, moved, _compare, at, inputs, outputs, groups)


def _compare(at: Setting, inputs: int, outputs: int, groups: int) -> Comparison:
    arguments = at.example("conv3x3", inputs, outputs, groups)
    x = ops.LAYERS["conv3x3"].inputs(*arguments, at.batch, at.cfg.search_grid)[0].to(at.dtype)
    planes = x.permute(0, 3, 1, 2).contiguous()
    images = [each.contiguous() for each in planes.chunk(groups, dim=1)] * (_TOWERS // groups)
    weight, bias = (each.to(at.dtype) for each in arguments[:2])
    baselines = {"upstream": partial(upstream, images, weight, bias)}
    return compare("conv3x3", arguments, at.dtype, baselines, (x,), towers)
