"""The suites `ops`, every op at the shapes that the presets give it, and `ragged`, at sizes that do not fill tiles.

    PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool memcheck --report-api-errors no \
        ostrack-fast bench ragged --check --only native

How exact the kernels are, the tests hold; at odd sizes under a sanitizer a stray value must show.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

import torch

from ostrack_fast.config import ModelConfig, get_config

from .case import Case, Options, Setting

# Whatever has a file bench_X.py.
NAMES = tuple(
    module.name.removeprefix("bench_")
    for module in iter_modules([str(Path(__file__).parent)])
    if module.name.startswith("bench_")
)
_PRESETS = ("small", "ostrack_256_ce", "ostrack_384_ce")
_ELIMINATING: dict[str, Any] = {"depth": 2, "ce_layers": (0,), "ce_keep_ratio": (0.7,)}
# Head dimensions 64, 96, 32 and 128; tokens that fill tiles and tokens that do not, maps from 3 x 3 cells.
_RAGGED = (
    ModelConfig(128, 256, embed_dim=192, num_heads=3, head_channels=64, **_ELIMINATING),
    ModelConfig(80, 144, embed_dim=96, num_heads=1, head_channels=24, **_ELIMINATING),
    ModelConfig(16, 48, embed_dim=32, num_heads=1, head_channels=8, **_ELIMINATING),
    ModelConfig(96, 208, embed_dim=256, num_heads=2, head_channels=40, **_ELIMINATING),
)


def cases(options: Options) -> Iterator[Case]:
    """All cases of the options, ordered by op."""
    presets = [get_config(name) for name in (_PRESETS[:1] if options.quick else _PRESETS)]
    dtypes = options.dtypes or (torch.float32, torch.bfloat16)
    return _of_networks(options, presets, dtypes, options.chosen_batches)


def ragged(options: Options) -> Iterator[Case]:
    """Every op at odd sizes, in all three dtypes."""
    dtypes = options.dtypes or (torch.float32, torch.float16, torch.bfloat16)
    return _of_networks(options, _RAGGED, dtypes, options.batches or (1, 3))


def _of_networks(
    options: Options, networks: Sequence[ModelConfig], dtypes: Sequence[torch.dtype], batches: Sequence[int]
) -> Iterator[Case]:
    for op in options.names or NAMES:
        module = import_module(f"ostrack_fast.bench.bench_{op}")
        for cfg in networks:
            for dtype in dtypes:
                for batch in batches:
                    yield from module.cases(Setting(cfg, batch, dtype, options.device))
