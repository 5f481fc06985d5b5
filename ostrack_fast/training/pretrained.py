"""Backbone weights to start training from: MAE, DeiT and any timm ViT, or DINOv2 in Hugging Face's names."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import timm
import torch
from timm.layers import resample_patch_embed
from torch import Tensor

from ..model.checkpoint import CheckpointError, State, read_state
from ..model.stored import damaged
from ..model.vit import VisionTransformer

# The choices of the paper's Table 4 for a ViT-B, besides none, as timm calls them.
PRETRAINED = {
    "mae": "timm:vit_base_patch16_224.mae",
    "augreg": "timm:vit_base_patch16_224.augreg_in21k",
    "deit": "timm:deit_base_patch16_224.fb_in1k",
}

_MOST_INFLATED = 8
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
        ValueError: the file is damaged, is no such ViT, has other widths or too few blocks, or numbers that are not
            finite. OSError: it cannot be read, or not be downloaded.
    """
    source = PRETRAINED.get(str(source), str(source))
    if not source.startswith("timm:"):
        with open(source, "rb"):
            pass  # or say why not
    own = vit.state_dict()
    with damaged(Path(source)):
        try:
            loaded = _fitted(_fold_layer_scale(_read(source)), own, vit)
        except KeyError as error:
            raise CheckpointError(f"is no ViT in timm's names, or in a .npz DINOv2's: it lacks {error}") from error
    missing = [
        name
        for name, value in own.items()
        if name.rpartition(".")[2] not in _NOT_PRETRAINED and (name not in loaded or loaded[name].shape != value.shape)
    ]
    if missing:
        raise ValueError(f"{source} does not fit the backbone: no (or another shape of) {', '.join(missing[:4])}")
    broken = [name for name, value in loaded.items() if not bool(torch.isfinite(value).all())]
    if broken:
        raise ValueError(f"{source}: {broken[0]} holds numbers that are not finite: the file is damaged")
    vit.load_state_dict(loaded, strict=False)


def _read(source: str) -> State:
    """A ViT's state dict in timm's names. What the libraries raise for damaged files is not sorted."""
    if source.startswith("timm:"):
        try:
            return timm.create_model(source.removeprefix("timm:"), pretrained=True, num_classes=0).state_dict()
        except Exception as error:  # of timm, of the Hub's client, and of what lies below them
            text = " ".join(str(error).split())[:200]
            raise CheckpointError(f"timm cannot give these weights ({type(error).__name__}: {text})") from error
    if not source.endswith(".npz"):
        return read_state(Path(source))[0]
    with zipfile.ZipFile(source) as archive:
        # Arrays of weights hardly shrink, and a few bytes of zeros may become gigabytes.
        if sum(each.file_size for each in archive.infolist()) > _MOST_INFLATED * Path(source).stat().st_size:
            raise CheckpointError(f"holds arrays more than {_MOST_INFLATED} times as large as the file: it is damaged")
    with np.load(source, allow_pickle=False) as arrays:
        return _from_dinov2({name: torch.from_numpy(arrays[name]).float() for name in arrays.files})


def _fitted(state: State, own: Mapping[str, Tensor], vit: VisionTransformer) -> State:
    """The tensors of another ViT that fit this one, whose own are `own`."""
    kernel, size = state["patch_embed.proj.weight"], list(own["patch_embed.proj.weight"].shape[2:])
    if list(kernel.shape[2:]) != size:
        state["patch_embed.proj.weight"] = resample_patch_embed(kernel, size)
    table = state["pos_embed"][:, 1:]
    loaded = {name: state[name] for name in own if name in state and state[name].shape == own[name].shape}
    loaded["pos_embed_z"] = resize_positions(table, vit.cfg.template_grid)
    loaded["pos_embed_x"] = resize_positions(table, vit.cfg.search_grid)
    return loaded


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
