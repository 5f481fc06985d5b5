"""The suite `ops`: every op at the shapes that the presets give it, from the upstream models to the shipped one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ostrack_fast.config import ModelConfig, get_config

from . import (
    bench_attention,
    bench_conv3x3,
    bench_crop,
    bench_decode,
    bench_eliminate,
    bench_elimination_path,
    bench_linear,
    bench_restore,
    bench_restore_conv3x3,
)
from .case import Case, Options, Setting

MODULES = {
    "attention": bench_attention,
    "eliminate": bench_eliminate,
    "restore": bench_restore,
    "decode": bench_decode,
    "elimination_path": bench_elimination_path,
    "crop": bench_crop,
    "linear": bench_linear,
    "conv3x3": bench_conv3x3,
    "restore_conv3x3": bench_restore_conv3x3,
}
NAMES = tuple(MODULES)
_PRESETS = ("small", "ostrack_256_ce", "ostrack_384_ce")


def cases(options: Options) -> Iterator[Case]:
    """All cases of the options, ordered by op."""
    presets = [get_config(name) for name in (_PRESETS[:1] if options.quick else _PRESETS)]
    yield from of_networks(options, presets, options.chosen_batches)


def of_networks(options: Options, networks: Sequence[ModelConfig], batches: Sequence[int]) -> Iterator[Case]:
    for op in options.names or NAMES:
        for cfg in networks:
            for dtype in options.chosen_dtypes:
                for batch in batches:
                    yield from MODULES[op].cases(Setting(cfg, batch, dtype, options.device))
