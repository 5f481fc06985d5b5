"""The suite `ops`: every op at the shapes that the presets give it, from the upstream models to the shipped one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

from ostrack_fast.config import ModelConfig, get_config

from .case import Case, Options, Setting

# Whatever has a file bench_X.py.
NAMES = tuple(
    module.name.removeprefix("bench_")
    for module in iter_modules([str(Path(__file__).parent)])
    if module.name.startswith("bench_")
)
_PRESETS = ("small", "ostrack_256_ce", "ostrack_384_ce")


def cases(options: Options) -> Iterator[Case]:
    """All cases of the options, ordered by op."""
    presets = [get_config(name) for name in (_PRESETS[:1] if options.quick else _PRESETS)]
    yield from of_networks(options, presets, options.chosen_batches)


def of_networks(options: Options, networks: Sequence[ModelConfig], batches: Sequence[int]) -> Iterator[Case]:
    for op in options.names or NAMES:
        module = import_module(f"ostrack_fast.bench.bench_{op}")
        for cfg in networks:
            for dtype in options.chosen_dtypes:
                for batch in batches:
                    yield from module.cases(Setting(cfg, batch, dtype, options.device))
