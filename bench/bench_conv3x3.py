"""conv3x3: the head's convolutions over whole maps, its three towers side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ostrack_fast import ops
from ostrack_fast.config import ModelConfig
from ostrack_fast.ops import layers

from .case import TOLERANCE, Case, Comparison, Implementation, add_layer

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


def cases(cfg: ModelConfig, batch: int, dtype: torch.dtype, device: torch.device) -> Iterator[Case]:
    grid, widths = cfg.search_grid, [_TOWERS * cfg.head_channels >> level for level in range(4)]
    for groups, inputs, outputs in zip((1, 3, 3, 3), (cfg.embed_dim, *widths), widths, strict=False):
        weights = outputs * inputs // groups * 9
        flops = 2.0 * batch * grid * grid * weights
        moved = float((batch * grid * grid * (inputs + outputs) + weights) * dtype.itemsize)
        build = partial(_compare, batch, grid, inputs, outputs, groups, dtype, device)
        shape = f"{grid} x {grid}, {inputs} to {outputs}, {'towers apart' if groups > 1 else 'all towers'}"
        yield Case("conv3x3", shape, batch, dtype, device, flops, moved, build)


def random_weights(outputs: int, inputs: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Weight and bias that a conversion to the dtype does not change."""
    weight = (torch.randn(outputs, inputs, 3, 3, device=device) * (9 * inputs) ** -0.5).to(dtype)
    return weight, torch.randn(outputs, device=device).to(dtype)


def _compare(
    batch: int, grid: int, inputs: int, outputs: int, groups: int, dtype: torch.dtype, device: torch.device
) -> Comparison:
    x = torch.randn(batch, grid, grid, inputs, device=device).to(dtype)
    weight, bias = random_weights(outputs, inputs // groups, dtype, device)
    with ops.use("reference"):
        exact = layers.conv3x3(weight.double(), bias.double(), groups, dtype=torch.float64)
        best = layers.conv3x3(weight, bias, groups, dtype=dtype)
    planes = x.permute(0, 3, 1, 2).contiguous()
    images = [each.contiguous() for each in planes.chunk(groups, dim=1)] * (_TOWERS // groups)
    baselines = {
        "upstream": Implementation(partial(upstream, images, weight, bias), TOLERANCE[dtype]),
        "torch": Implementation(partial(towers, best, x), TOLERANCE[dtype]),
    }
    comparison = Comparison(towers(exact, x.double()), baselines)
    weight, bias = weight.float(), bias.float()
    add_layer(
        comparison, "conv3x3", weight, dtype,
        lambda kind: partial(towers, layers.conv3x3(weight, bias, groups, dtype=kind), x),
    )  # fmt: skip
    return comparison


def test_conv3x3(check_then_time, case, implementation):
    check_then_time(case, implementation)
