"""What a frame costs: the arithmetic of each stage that a profiler sees, and the number of parameters."""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise

import torch

from ..config import ModelConfig
from .ostrack import OSTrack


def stage_flops(cfg: ModelConfig, elimination: bool = True) -> dict[str, float]:
    """Twice the multiply-adds of a frame's matmuls, by stage; the template is embedded beforehand."""
    width, hidden = cfg.embed_dim, int(cfg.embed_dim * cfg.mlp_ratio)
    template, cells = cfg.template_grid**2, cfg.search_grid**2
    counts = [template + count for count in cfg.search_tokens(None if elimination else 1.0)]
    work: dict[str, float] = defaultdict(float)
    work["patch embedding"] = cells * 3 * cfg.patch_size**2 * width
    for before, after in pairwise(counts):
        work["norm, qkv"] += 3 * before * width**2
        work["attention and score"] += 2 * before**2 * width
        work["projection, residual"] += before * width**2
        work["norm, fc1, gelu"] += after * width * hidden
        work["fc2, residual"] += after * width * hidden
    widths = [cfg.embed_dim, *(cfg.head_channels >> level for level in range(4))]
    work["norm, restoration, head"] = cells * (3 * 9 * sum(a * b for a, b in pairwise(widths)) + 5 * widths[-1])
    return {name: 2.0 * count for name, count in work.items()}


def parameter_count(cfg: ModelConfig) -> int:
    with torch.device("meta"):
        return sum(each.numel() for each in OSTrack(cfg).parameters())
