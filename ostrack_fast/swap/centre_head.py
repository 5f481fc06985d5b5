"""The towers of a centre head, side by side, with their BatchNorm folded in."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..ops.layers import conv3x3, linear
from .linear import owns_only

# The method that computes the maps; the head's own forward and `cal_bbox` go on from them.
METHOD = "get_score_map"


def _towers(module: nn.Module) -> list[str]:
    found = (re.fullmatch(r"conv1_(\w+)", name) for name, _ in module.named_children())
    return [match[1] for match in found if match]


def _depth(module: nn.Module, tower: str) -> int:
    return 1 + max(i for i in range(1, 100) if isinstance(getattr(module, f"conv{i}_{tower}", None), nn.Sequential))


def _is_convolution(module: Any) -> bool:
    """3 x 3 convolution, BatchNorm with statistics, ReLU."""
    parts = list(module) if isinstance(module, nn.Sequential) else []
    if len(parts) != 3 or not isinstance(parts[0], nn.Conv2d) or not isinstance(parts[2], nn.ReLU):
        return False
    plain = parts[0].kernel_size == (3, 3) and parts[0].padding == (1, 1) and parts[0].stride == (1, 1)
    return plain and parts[0].groups == 1 and all(hasattr(parts[1], each) for each in ("running_mean", "running_var"))


def is_centre_head(module: nn.Module) -> bool:
    """Whether it has towers conv1_NAME, conv2_NAME, ..., the last a 1 x 1 convolution, of the same widths."""
    towers = _towers(module)
    if not towers or not callable(getattr(module, METHOD, None)):
        return False
    if not all(_is_convolution(getattr(module, f"conv1_{tower}")) for tower in towers):
        return False
    depths = {_depth(module, tower) for tower in towers}
    if len(depths) != 1:
        return False
    depth = depths.pop()
    for i in range(1, depth):
        layers = [getattr(module, f"conv{i}_{tower}", None) for tower in towers]
        if not all(_is_convolution(each) for each in layers):
            return False
        if len({cast(nn.Sequential, each)[0].weight.shape for each in layers}) != 1:
            return False
    last = [getattr(module, f"conv{depth}_{tower}", None) for tower in towers]
    plain = all(isinstance(each, nn.Conv2d) and each.kernel_size == (1, 1) and each.bias is not None for each in last)
    return plain and owns_only(module, *module.children())


def _folded(block: nn.Sequential) -> tuple[Tensor, Tensor]:
    """Weight and bias, float64, of a convolution with its BatchNorm folded in."""
    conv, norm = cast(nn.Conv2d, block[0]), cast(Any, block[1])
    factor = (norm.running_var.double() + getattr(norm, "eps", 1e-5)).rsqrt()
    shift = -norm.running_mean.double()
    if conv.bias is not None:
        shift = shift + conv.bias.detach().double()
    if norm.weight is not None:
        factor = factor * norm.weight.detach().double()
    bias = shift * factor if norm.bias is None else shift * factor + norm.bias.detach().double()
    return conv.weight.detach().double() * factor[:, None, None, None], bias


def build_centre_head(module: nn.Module, dtype: torch.dtype) -> Callable[..., dict[str, Tensor]]:
    towers = _towers(module)
    depth = _depth(module, towers[0])
    convolutions = []
    for i in range(1, depth):
        parts = [_folded(cast(nn.Sequential, getattr(module, f"conv{i}_{tower}"))) for tower in towers]
        weight, bias = (torch.cat(each).float() for each in zip(*parts, strict=True))
        convolutions.append(conv3x3(weight, bias, groups=1 if i == 1 else len(towers), dtype=dtype))
    last = [cast(nn.Conv2d, getattr(module, f"conv{depth}_{tower}")) for tower in towers]
    weight = torch.block_diag(*(each.weight.detach().float().flatten(1) for each in last))
    # In float32: half precision would resolve a position on the grid no better than to a pixel of the crop.
    end = linear(weight, torch.cat([cast(Tensor, each.bias).detach().float() for each in last]))
    widths, half = [each.out_channels for each in last], torch.bfloat16 if dtype == torch.int8 else dtype

    def run(x: Tensor) -> dict[str, Tensor]:
        y = x.permute(0, 2, 3, 1).to(half).contiguous()
        for convolution in convolutions:
            y = convolution(y)
        batch, side, _, channels = y.shape
        maps = end(y.view(batch, side * side, channels)).transpose(1, 2).reshape(batch, -1, side, side).to(x.dtype)
        return {name: part.contiguous() for name, part in zip(towers, maps.split(widths, 1), strict=True)}

    return run


def _probability(x: Tensor) -> Tensor:
    return x.sigmoid().clamp(min=1e-4, max=1 - 1e-4)


# What the method returns, of the towers' maps; the second is of a head whose size comes out of the offset's tower.
FORMS: tuple[Callable[[Any], Any], ...] = (
    lambda maps: (_probability(maps["ctr"]), _probability(maps["size"]), maps["offset"]),
    lambda maps: (_probability(maps["ctr"]), _probability(maps["offset"][:, 2:]), maps["offset"][:, :2]),
)
