"""What one frame costs: multiply-accumulates (MACs), by layer type, and parameters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from ..baselines.two_stream import CrossBlock
from ..config import ModelConfig
from ..model import OSTrack
from ..model.vit import Attention


@dataclass(frozen=True)
class Macs:
    """Multiply-accumulates of one frame at batch 1, template included.

    Args:
        layers: of the linear layers and convolutions, which is what the paper counts.
        attention: of the two products of attention, queries by keys and probabilities by values.
    """

    layers: int
    attention: int

    @property
    def total(self) -> int:
        return self.layers + self.attention


def count_macs(cfg: ModelConfig) -> Macs:
    """The MACs of a network as published: template and search region go through every layer in each frame.

    Elimination sits between a block's attention and its MLP, so a block that eliminates pays for all candidates in the
    first and for those that are left in the second.
    """
    width, template, cells = cfg.embed_dim, cfg.template_grid**2, cfg.search_grid**2
    hidden = int(width * cfg.mlp_ratio)
    counts = cfg.search_tokens()
    layers = (template + cells) * 3 * cfg.patch_size**2 * width
    attention = 0
    for entering, leaving in pairwise(counts):
        tokens = template + entering
        layers += tokens * 4 * width**2 + (template + leaving) * 2 * width * hidden
        attention += 2 * tokens**2 * width
    return Macs(layers + cells * _head_macs_of_a_cell(cfg), attention)


def _head_macs_of_a_cell(cfg: ModelConfig) -> int:
    """Of the three towers at one cell: four 3x3 convolutions whose width halves, and a 1x1 to 1 or 2 channels."""
    widths = [cfg.embed_dim, *(cfg.head_channels >> halved for halved in range(4))]
    tower = sum(9 * before * after for before, after in pairwise(widths))
    return 3 * tower + widths[-1] * (1 + 2 + 2)


def measured_macs(model: OSTrack, run: Callable[[], Any]) -> Macs:
    """The MACs of a call that runs a network's modules: batch 1, no elimination."""
    layers, attention = [], []

    def layer(module: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> None:
        weight = module.get_parameter("weight")
        layers.append(out.numel() * weight[0].numel())

    def attend(module: nn.Module, inputs: tuple[Tensor, ...], out: Tensor | tuple[Tensor, Any]) -> None:
        queries, memory = inputs[0], inputs[1] if isinstance(module, CrossBlock) else inputs[0]
        attention.append(2 * queries.numel() * memory.shape[1])

    hooks = [
        module.register_forward_hook(layer if isinstance(module, (nn.Linear, nn.Conv2d)) else attend)
        for module in model.modules()
        if isinstance(module, (nn.Linear, nn.Conv2d, Attention, CrossBlock))
    ]
    try:
        with torch.no_grad():
            run()
    finally:
        for hook in hooks:
            hook.remove()
    return Macs(sum(layers), sum(attention))
