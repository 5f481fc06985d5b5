"""Backbone weights to start training from: MAE, DeiT and any timm ViT, or DINOv2 in Hugging Face's names."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import timm
import torch
from timm.layers import resample_patch_embed
from torch import Tensor

from ..model.checkpoint import State, read_state
from ..model.vit import VisionTransformer

# The choices of the paper's Table 4 for a ViT-B, besides none, as timm calls them.
PRETRAINED = {
    "mae": "timm:vit_base_patch16_224.mae",
    "augreg": "timm:vit_base_patch16_224.augreg_in21k",
    "deit": "timm:deit_base_patch16_224.fb_in1k",
}


# Unread, or of networks that add to a ViT: these keep what they start with.
_NOT_PRETRAINED = ("pos_embed", "cls_token", "box_embed", "identity", "distance")


def load_backbone(vit: VisionTransformer, source: str | Path) -> None:
    """Initialise the backbone in place.

    Args:
        source: a key of `PRETRAINED`; `timm:NAME` (timm's pretrained weights, which it downloads); or a file: a ViT's
            state dict in timm's names (.safetensors, or .pth such as MAE's), or a .npz of DINOv2 arrays in Hugging
            Face's names.

    The position tables of template and search are the pretrained one resized (bicubic, as published), the patch
    kernel is resized where sizes differ, layer scale is folded into the projection before it, and a deeper ViT gives
    its first blocks.

    Raises:
        ValueError: the file's widths differ, or it has too few blocks.
    """
    source = PRETRAINED.get(str(source), source)
    if str(source).startswith("timm:"):
        state = timm.create_model(str(source).removeprefix("timm:"), pretrained=True, num_classes=0).state_dict()
    elif str(source).endswith(".npz"):
        with np.load(source, allow_pickle=False) as arrays:
            state = _from_dinov2({name: torch.from_numpy(arrays[name]).float() for name in arrays.files})
    else:
        state, _ = read_state(Path(source))
    state = _fold_layer_scale(state)
    own = vit.state_dict()
    kernel = state["patch_embed.proj.weight"]
    if kernel.shape[2:] != own["patch_embed.proj.weight"].shape[2:]:
        size = list(own["patch_embed.proj.weight"].shape[2:])
        state["patch_embed.proj.weight"] = resample_patch_embed(kernel, size)
    table = state["pos_embed"][:, 1:]
    loaded = {name: state[name] for name in own if name in state and state[name].shape == own[name].shape}
    loaded["pos_embed_z"] = resize_positions(table, vit.cfg.template_grid)
    loaded["pos_embed_x"] = resize_positions(table, vit.cfg.search_grid)
    missing = [n for n in own if n not in loaded and n.rpartition(".")[2] not in _NOT_PRETRAINED]
    if missing:
        raise ValueError(f"{source} does not fit the backbone: no (or another shape of) {', '.join(missing[:4])}")
    vit.load_state_dict(loaded, strict=False)


@torch.no_grad()
def mark_template(vit: VisionTransformer, strength: float, seed: int = 0) -> None:
    """Add two random directions to the template's positions: one on the target's half of the crop, one around it.

    Pretrained position tables give template and search tokens nearly the same codes; until some are learned, no block
    can tell the target from what surrounds it. `strength` is the added norm over the mean norm of a position.
    """
    grid, table = vit.cfg.template_grid, vit.pos_embed_z
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randn(2, table.shape[2], generator=generator, dtype=torch.float32, device="cpu")
    codes = torch.nn.functional.normalize(codes, dim=1).to(table)
    place = (torch.arange(grid, dtype=torch.float32, device=table.device) + 0.5) / grid - 0.5
    share = 0.5 / vit.cfg.template_factor
    inside = ((place[:, None].abs() < share) & (place[None].abs() < share)).flatten().to(table.dtype)[:, None]
    norm = vit.pos_embed_x.norm(dim=2).mean()
    added = strength * norm * (inside * codes[0] + (1 - inside) * codes[1])
    table.add_(added)


def resize_positions(table: Tensor, grid: int) -> Tensor:
    """Position table (1,n*n,C) of a square grid -> (1,grid*grid,C), bicubic as published."""
    side = int(table.shape[1] ** 0.5)
    maps = table.transpose(1, 2).unflatten(2, (side, side))
    maps = torch.nn.functional.interpolate(maps, size=(grid, grid), mode="bicubic", align_corners=False)
    return maps.flatten(2).transpose(1, 2)


def _fold_layer_scale(state: State) -> State:
    folded = {}
    for name, value in state.items():
        for module, scale in (("attn.proj", "ls1"), ("mlp.fc2", "ls2")):
            block, _, rest = name.partition(f".{module}.")
            gamma = state.get(f"{block}.{scale}.gamma")
            if rest and gamma is not None:
                value = value * (gamma[:, None] if value.dim() == 2 else gamma)
        folded[name] = value
    return folded


def _from_dinov2(arrays: State) -> State:
    """Hugging Face `Dinov2` names to timm's, query, key and value joined."""
    state = {
        "patch_embed.proj.weight": arrays["embeddings.patch_embeddings.projection.weight"],
        "patch_embed.proj.bias": arrays["embeddings.patch_embeddings.projection.bias"],
        "pos_embed": arrays["embeddings.position_embeddings"],
        "norm.weight": arrays["layernorm.weight"],
        "norm.bias": arrays["layernorm.bias"],
    }
    names = {
        "norm1": "norm1",
        "norm2": "norm2",
        "attention.output.dense": "attn.proj",
        "mlp.fc1": "mlp.fc1",
        "mlp.fc2": "mlp.fc2",
    }
    depth = 1 + max(int(m[1]) for m in (re.match(r"encoder\.layer\.(\d+)\.", name) for name in arrays) if m)
    for i in range(depth):
        source, block = f"encoder.layer.{i}.", f"blocks.{i}."
        for kind in ("weight", "bias"):
            for theirs, ours in names.items():
                state[f"{block}{ours}.{kind}"] = arrays[f"{source}{theirs}.{kind}"]
            parts = [arrays[f"{source}attention.attention.{part}.{kind}"] for part in ("query", "key", "value")]
            state[f"{block}attn.qkv.{kind}"] = torch.cat(parts)
        for number in (1, 2):
            state[f"{block}ls{number}.gamma"] = arrays[f"{source}layer_scale{number}.lambda1"]
    return state
