"""Low-rank adaptation (LoRA, arXiv:2106.09685): the backbone stays, and small matrices beside it are trained."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..model import OSTrack

_ORIGINAL = ".parametrizations.weight.original"


class LowRank(nn.Module):
    """A weight W (out,in) becomes W + up @ down, with `up` (out,rank) and `down` (rank,in); `up` starts as zero."""

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        outputs, inputs = weight.shape
        down = torch.randn(rank, inputs, dtype=torch.float32, device=weight.device) / inputs**0.5
        self.down = nn.Parameter(down)
        self.up = nn.Parameter(torch.zeros(outputs, rank, dtype=torch.float32, device=weight.device))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.up.to(weight.dtype) @ self.down.to(weight.dtype)


def adapt(model: OSTrack, rank: int) -> None:
    """Freeze the backbone but for matrices of this rank beside every attention's query, key, value and projection.

    The two vectors that tell the template's box (`template_box`) are trained, too: weights of a model that was not told
    it start with zeros there.
    """
    model.backbone.requires_grad_(False)
    if model.backbone.box_embed is not None:
        model.backbone.box_embed.requires_grad_(True)
    for block in model.backbone.blocks:
        attention = block.get_submodule("attn")
        for layer in (attention.get_submodule("qkv"), attention.get_submodule("proj")):
            weight = layer.get_parameter("weight")
            parametrize.register_parametrization(layer, "weight", LowRank(weight, rank))


def merged(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of an adapted model as that of a plain one; that of a plain one as it is."""
    plain = {name: value for name, value in state.items() if ".parametrizations." not in name}
    for name, value in state.items():
        if name.endswith(_ORIGINAL):
            layer = name.removesuffix(_ORIGINAL)
            beside = f"{layer}.parametrizations.weight.0"
            plain[f"{layer}.weight"] = value + state[f"{beside}.up"] @ state[f"{beside}.down"]
    return plain
