"""What a run starts from: its pairs, its model and its optimizer, as a `TrainConfig` says."""

from __future__ import annotations

from functools import partial
from math import log
from pathlib import Path
from typing import Literal, cast

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ..baselines import NETWORKS
from ..model import OSTrack
from ..model.checkpoint import fitting, load_pretrained
from ..model.vit import Block
from .config import TrainConfig
from .dataset import DataConfig, PairDataset
from .pretrained import load_backbone, mark_template, resize_positions
from .sources import bind_sources, build_sources


def build_dataset(cfg: TrainConfig) -> PairDataset:
    """The pairs of a run, numbered from 0 to `cfg.total_pairs`.

    Raises:
        ValueError: a data section that cannot be, or files that cannot be used. FileNotFoundError: files are missing.
    """
    sources = build_sources(bind_sources(cfg.data, "data"), Path(cfg.data_root))
    return PairDataset(sources, DataConfig(cfg.crops, cfg.augment, cfg.seed, cfg.total_pairs, cfg.bad_images))


def build_model(cfg: TrainConfig) -> OSTrack:
    """The model a run starts from."""
    model = NETWORKS[cfg.network](cfg.model)
    if cfg.weights:
        _, state = load_pretrained(cfg.weights)
        for name, grid in (("pos_embed_z", cfg.model.template_grid), ("pos_embed_x", cfg.model.search_grid)):
            table = state[f"backbone.{name}"]
            if table.shape[1] != grid**2:
                state[f"backbone.{name}"] = resize_positions(table, grid)
        if cfg.model.template_box:  # weights of a model without it start with what it has: nothing
            state.setdefault("backbone.box_embed", torch.zeros_like(cast(torch.Tensor, model.backbone.box_embed)))
        model.load_state_dict(fitting(state, model, cfg.weights))
        return model
    if cfg.backbone:
        load_backbone(model.backbone, cfg.backbone)
        if cfg.mark_template:
            mark_template(model.backbone, cfg.mark_template, cfg.seed)
    nn.init.constant_(model.box_head.get_parameter("conv5_ctr.bias"), log(cfg.score_prior / (1 - cfg.score_prior)))
    return model


def freeze_blocks(model: OSTrack, count: int) -> None:
    """Exclude the patch embedding, the position tables and the first `count` blocks from training."""
    if not count:
        return
    backbone = model.backbone
    backbone.patch_embed.requires_grad_(False)
    for table in (backbone.pos_embed_z, backbone.pos_embed_x):
        table.requires_grad_(False)
    for block in backbone.blocks[:count]:
        block.requires_grad_(False)


def recompute(model: OSTrack, part: Literal["mlp", "block"]) -> None:
    """Keep only the inputs of each block, or of its MLP, for the backward pass, which then computes it again."""
    for block in cast("list[Block]", model.backbone.blocks):
        again: nn.Module = block.mlp if part == "mlp" else block
        # Blocks may draw whom to drop; an MLP draws nothing.
        kept_state = part == "block"
        again.forward = partial(checkpoint, again.forward, use_reentrant=False, preserve_rng_state=kept_state)


def build_optimizer(model: OSTrack, cfg: TrainConfig, batch: int) -> torch.optim.AdamW:
    """AdamW with the published two rates: the lower one is the backbone's, the other that of all behind it.

    `batch` is the number of pairs in a step of all processes.
    """
    # Part of every published checkpoint, but no gradient ever reaches them.
    for unused in (model.backbone.cls_token, model.backbone.pos_embed):
        unused.requires_grad_(False)
    parts: tuple[list[nn.Parameter], list[nn.Parameter]] = ([], [])
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parts[name.startswith("backbone.")].append(parameter)
    groups = [
        {"params": part, "base_lr": rate, "lr": rate} for part, rate in zip(parts, base_rates(cfg, batch), strict=True)
    ]
    return torch.optim.AdamW(groups, weight_decay=cfg.optim.weight_decay, fused=True)


def base_rates(cfg: TrainConfig, batch: int) -> tuple[float, float]:
    """Learning rates of head and backbone before the schedule's factor, for steps of `batch` pairs."""
    rate = cfg.optim.lr * (batch / cfg.optim.lr_batch if cfg.optim.lr_batch else 1)
    return rate, rate * cfg.optim.backbone_lr
