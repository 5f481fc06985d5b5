"""What a network of the published code, or of a fork of it, is: read from its modules by their attributes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from math import isqrt
from typing import Any

import torch
from torch import nn

from .config import ModelConfig
from .model import OSTrack

# What the network's modules fix. The template range, the crops and the drop path are not in them.
_READ = (
    *("template_size", "search_size", "patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio", "head_channels"),
    *("ce_layers", "ce_keep_ratio"),
)


def unwrapped(network: nn.Module) -> nn.Module:
    """The network inside DataParallel, DistributedDataParallel and torch.compile."""
    while True:
        names = {name for name, _ in network.named_children()}
        if names not in ({"module"}, {"_orig_mod"}):
            return network
        network = network.get_submodule(names.pop())


def plain_names(name: str) -> str:
    """A parameter's name without what torch.compile and DataParallel, around a part of the network, put into it."""
    return re.sub(r"(^|(?<=\.))(module|_orig_mod)\.", "", name)


def read_config(network: nn.Module, what: str, expected: ModelConfig | None = None) -> ModelConfig:
    """The configuration of a network.

    Args:
        what: names it in errors.
        expected: must agree with the network; what its modules do not show is taken from it.

    Raises:
        ValueError: it is no such network, has a part that this package lacks, or contradicts `expected`.
    """
    if isinstance(network, OSTrack):
        found = network.cfg
    else:
        try:
            found = ModelConfig(**_settings(network, what))
        except (AttributeError, IndexError, TypeError) as error:
            raise ValueError(f"{what} is not built like the published OSTrack: {error}") from error
    if expected is None:
        return found
    for name in _READ:
        wanted, there = getattr(expected, name), getattr(found, name)
        if wanted != there:
            raise ValueError(f"cfg says {name}={wanted}, but {what} has {there}, {_WHERE.get(name, 'by its shapes')}")
    return expected


_WHERE = {
    "num_heads": "by backbone.blocks[i].attn.num_heads",
    "ce_layers": "by backbone.blocks[i].keep_ratio_search",
    "ce_keep_ratio": "by backbone.blocks[i].keep_ratio_search",
    "depth": "by the length of backbone.blocks",
}


def _settings(network: Any, what: str) -> dict[str, Any]:
    backbone = network.backbone
    blocks = list(backbone.blocks)
    kernel, stride = (tuple(getattr(backbone.patch_embed.proj, name)) for name in ("kernel_size", "stride"))
    if kernel != stride or kernel[0] != kernel[1]:
        raise ValueError(f"{what}: backbone.patch_embed.proj has the kernel {kernel} and the stride {stride}")
    width = backbone.pos_embed_x.shape[2]
    hidden = _common([block.mlp.fc1.out_features for block in blocks], f"{what}: backbone.blocks[i].mlp.fc1")
    heads = _common([block.attn.num_heads for block in blocks], f"{what}: backbone.blocks[i].attn.num_heads")
    ratios = {i: float(getattr(block, "keep_ratio_search", 1)) for i, block in enumerate(blocks)}
    eliminating = tuple(i for i, ratio in ratios.items() if ratio < 1)
    mode = getattr(backbone, "cat_mode", "direct")
    if eliminating and mode != "direct":
        raise ValueError(f"{what}: backbone.cat_mode is {mode!r}; only 'direct' is supported with elimination")
    return {
        "template_size": kernel[0] * _side(backbone.pos_embed_z, f"{what}: backbone.pos_embed_z"),
        "search_size": kernel[0] * _side(backbone.pos_embed_x, f"{what}: backbone.pos_embed_x"),
        "patch_size": kernel[0],
        "embed_dim": width,
        "depth": len(blocks),
        "num_heads": heads,
        "mlp_ratio": hidden / width,
        "head_channels": network.box_head.conv1_ctr[0].out_channels,
        "ce_layers": eliminating,
        "ce_keep_ratio": tuple(ratios[i] for i in eliminating),
    }


def _common(values: Sequence[int], what: str) -> int:
    if len(set(values)) != 1:
        raise ValueError(f"{what} differ between blocks: {sorted(set(values))}")
    return values[0]


def _side(table: torch.Tensor, what: str) -> int:
    side = isqrt(table.shape[1])
    if side**2 != table.shape[1]:
        raise ValueError(f"{what} has {table.shape[1]} positions, which is no square")
    return side


def read_layers(network: Any, model: OSTrack, what: str) -> None:
    """Take over what layers compute besides their parameters: epsilons; and refuse what the engine does not compute.

    Raises:
        ValueError: an activation or a scale of attention that the engine lacks, saying where.
    """
    theirs = {plain_names(name): module for name, module in network.named_modules()}
    for name, module in model.named_modules():
        eps = getattr(theirs.get(name), "eps", None)
        if isinstance(eps, float) and hasattr(module, "eps"):
            module.eps = eps
    probe = torch.linspace(-4, 4, 81, dtype=torch.float32, device="cpu")
    for index, block in enumerate(network.backbone.blocks):
        activation = getattr(block.mlp, "act", None)
        # By what it computes: a class of any name may be the exact GELU, or its approximation by tanh.
        if activation is not None and not torch.allclose(
            activation(probe.clone()), nn.functional.gelu(probe), rtol=0, atol=1e-6
        ):
            raise ValueError(f"{what}: backbone.blocks[{index}].mlp.act is no exact GELU, but {activation}")
        scale, usual = getattr(block.attn, "scale", None), (model.cfg.embed_dim // model.cfg.num_heads) ** -0.5
        if isinstance(scale, float) and abs(scale - usual) > 1e-6 * usual:
            raise ValueError(f"{what}: backbone.blocks[{index}].attn.scale is {scale:g} instead of {usual:g}")
