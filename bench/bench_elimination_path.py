"""All that candidate elimination and the decoding cost a frame: every elimination, restore and decode in a row."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from . import bench_decode, bench_eliminate, bench_restore
from .case import TOLERANCE, Case, Comparison, Implementation, Setting


def cases(at: Setting) -> Iterator[Case]:
    eliminations = bench_eliminate.all_cases(at)
    parts = [*eliminations, *bench_restore.cases(at), *bench_decode.cases(at)]

    def build() -> Comparison:
        comparisons = [part.build() for part in parts]
        skipped = {name: reason for one in comparisons for name, reason in one.skipped.items()}

        def run(name: str) -> tuple[Any, ...]:
            return tuple(tensor for one in comparisons for tensor in one.implementations[name].run())

        names = [name for name in comparisons[0].implementations if name not in skipped]
        made = {name: Implementation(partial(run, name), TOLERANCE[at.dtype]) for name in names}
        return Comparison(tuple(tensor for one in comparisons for tensor in one.expected), made, skipped)

    shape = f"{len(eliminations)} times from {at.cfg.search_grid} x {at.cfg.search_grid}, C {at.cfg.embed_dim}"
    yield at.case("elimination_path", shape, 0.0, sum(part.bytes for part in parts), build)
