"""`ostrack-fast paper`: the paper's tables, our figures beside the printed ones."""

from __future__ import annotations

import json as json_format
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table


def table3(
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, float16, bfloat16 or int8.")] = "auto",
    rounds: Annotated[int, typer.Option(min=1, help="Frames timed of each model.")] = 7,
    scores: Annotated[
        list[Path] | None,
        typer.Option(help="A file of `score --json` whose trackers are called as the presets; may be repeated."),
    ] = None,
    json: Annotated[Path | None, typer.Option(help="Write all figures to this file.")] = None,
) -> None:
    """Table 3: MACs, parameters and speed with and without candidate elimination."""
    from ..files import check_writable, write_text
    from ..paper import table3 as paper

    if json is not None:
        check_writable(json)
    console, begin = Console(), perf_counter()
    with Console(stderr=True).status("building the models") as status:
        rows = paper.table3(device, dtype, rounds, scores or (), status.update)
    seconds = perf_counter() - begin
    if json is not None:
        document = {"seconds": seconds, "rows": [asdict(row) for row in rows]}
        write_text(json, json_format.dumps(document, indent=1) + "\n")
    figures = sorted({name for row in rows for name in row.accuracy})
    table = Table(title="Table 3: candidate elimination (in brackets: the paper, RTX 2080 Ti)")
    for column in ("model", "MACs, layers", "MACs, all", "parameters", "frames/s", "speed-up", *figures):
        table.add_column(column, justify="left" if column == "model" else "right", no_wrap=column == "model")
    for without, row in zip((rows[0], rows[0], rows[2], rows[2]), rows, strict=True):
        table.add_row(
            row.preset, f"{row.macs.layers / 1e9:.1f} G ({row.published.macs})", f"{row.macs.total / 1e9:.1f} G",
            f"{row.parameters / 1e6:.1f} M", f"{row.fps:.1f} ({row.published.fps})",
            f"{row.fps / without.fps:.2f} ({row.published.fps / without.published.fps:.2f})",
            *(f"{row.accuracy[name]:.4g}" if name in row.accuracy else "" for name in figures),
        )  # fmt: skip
    console.print(table)
    console.print(f"network time at batch 1, models in turns, {rounds} rounds; took {seconds:.0f} s", highlight=False)
