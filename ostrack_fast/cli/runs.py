"""`ostrack-fast runs`: training runs side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def runs(
    folders: Annotated[
        list[Path] | None, typer.Argument(help="Folders of runs, or folders that hold them; by default runs.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw their curves into this picture (.png, .svg, .pdf).")] = None,
) -> None:
    """List training runs: how far each is, its loss, its validation, its speed."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    from ..files import check_writable
    from ..training.runs import find_runs, plot_runs
    from ..visualization.sheet import check_image_path

    if plot is not None:
        check_image_path(plot)
        check_writable(plot)
    found = find_runs(folders or [Path("runs")])
    if plot is not None:
        plot_runs(found, plot)
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for heading in ("run", "started", "commit", "pairs", "loss", "IoU", "val IoU", "val AO", "pairs/s"):
        table.add_column(heading, justify="left" if heading in ("run", "started", "commit") else "right")
    for run in found:
        start = run.starts[-1] if run.starts else {}
        numbers = [
            "" if value is None else f"{value:.{digits}f}"
            for name, digits in (("loss", 3), ("iou", 3), ("validation_iou", 3), ("validation_ao", 3),
                                 ("pairs_per_second", 1))
            for value in [run.last(name)]
        ]  # fmt: skip
        pairs = f"{run.pairs:,}" + (f" of {run.total:,}" if run.total else "")
        table.add_row(str(run.path), str(start.get("time", ""))[:16].replace("T", " "), run.commit, pairs, *numbers)
    # No markup: brackets in the names of folders are brackets.
    Console(soft_wrap=True, markup=False).print(table)
    if plot is not None:
        print(f"{plot} is written")
