"""All that candidate elimination and the decoding cost a frame: every elimination, restore and decode in a row."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from ostrack_fast.config import ModelConfig

from . import bench_decode, bench_eliminate, bench_restore
from .case import TOLERANCE, Case, Comparison, Implementation


def cases(cfg: ModelConfig, batch: int, dtype: torch.dtype, device: torch.device) -> Iterator[Case]:
    chosen = cfg, batch, dtype, device
    eliminations = bench_eliminate.all_cases(*chosen)
    parts = [*eliminations, *bench_restore.cases(*chosen), *bench_decode.cases(*chosen)]

    def build() -> Comparison:
        comparisons = [part.build() for part in parts]
        skipped = {name: reason for one in comparisons for name, reason in one.skipped.items()}

        def run(name: str) -> tuple[Any, ...]:
            results = [one.implementations[name].run() for one in comparisons]
            return tuple(tensor for result in results for tensor in (result if isinstance(result, tuple) else [result]))

        names = [name for name in comparisons[0].implementations if name not in skipped]
        made = {name: Implementation(partial(run, name), TOLERANCE[dtype]) for name in names}
        return Comparison(tuple(tensor for one in comparisons for tensor in one.expected), made, skipped)

    shape = f"{len(eliminations)} times from {cfg.search_grid} x {cfg.search_grid}, C {cfg.embed_dim}"
    yield Case("elimination_path", shape, batch, dtype, device, 0.0, sum(part.bytes for part in parts), build)


def test_elimination_path(check_then_time, case, implementation):
    check_then_time(case, implementation)
