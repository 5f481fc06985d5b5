"""The suite `ragged`: every op at sizes that fill tiles and at sizes that do not, for `--check` under a sanitizer.

    PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool memcheck --report-api-errors no \
        ostrack-fast bench ragged --check --only native

How exact the kernels are, the tests hold; here a stray value must show.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from ostrack_fast.config import ModelConfig

from .case import Case, Options
from .suite_ops import NAMES, of_networks

__all__ = ["NAMES", "cases"]

_ELIMINATING: dict[str, Any] = {"depth": 2, "ce_layers": (0,), "ce_keep_ratio": (0.7,)}
# Head dimensions 64, 96, 32 and 128; tokens that fill tiles and tokens that do not, maps from 3 x 3 cells.
_NETWORKS = (
    ModelConfig(128, 256, embed_dim=192, num_heads=3, head_channels=64, **_ELIMINATING),
    ModelConfig(80, 144, embed_dim=96, num_heads=1, head_channels=24, **_ELIMINATING),
    ModelConfig(16, 48, embed_dim=32, num_heads=1, head_channels=8, **_ELIMINATING),
    ModelConfig(96, 208, embed_dim=256, num_heads=2, head_channels=40, **_ELIMINATING),
)


def cases(options: Options) -> Iterator[Case]:
    dtypes = options.dtypes or (torch.float32, torch.float16, torch.bfloat16)
    yield from of_networks(replace(options, dtypes=dtypes), _NETWORKS, options.batches or (1, 3))
