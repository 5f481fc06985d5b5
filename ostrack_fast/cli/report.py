"""`ostrack-fast report`: one page of several trackers' results."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from ._outputs import check_outputs


def report(
    results: Annotated[list[Path], typer.Argument(help="Folders of result files, one a tracker.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The page (.html).")] = Path("report.html"),
    markdown: Annotated[Path | None, typer.Option(help="Write the table of trackers to this file (.md).")] = None,
    benchmark: Annotated[
        str | None,
        typer.Option(help="As for `score`; by default what `evaluate --benchmark` noted beside the results."),
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Folder of the benchmark; by default the noted one.")] = None,
    split: Annotated[str | None, typer.Option(help="Of the benchmark.")] = None,
    protocol: Annotated[str | None, typer.Option(help="By default the benchmark's official one.")] = None,
) -> None:
    """Write one self-contained HTML page of results: tables, curves, speed, intervals, the worst sequences.

    The worst sequences are those of the first tracker.
    """
    from ..evaluation.report import make_report, save_report, to_markdown

    for path, suffix in ((output, ".html"), (markdown, ".md")):
        if path is not None and path.suffix.lower() != suffix:
            raise ValueError(f"{path} must end in {suffix}")
    check_outputs((output, markdown))
    made = make_report(results, benchmark, data, split, protocol)
    save_report(made, output)
    if markdown is not None:
        save_report(made, markdown)
    for note in made.scored.loaded.notes:
        print(f"note: {note}", file=sys.stderr)
    print(to_markdown(made), end="")
    print(f"{output} is written")
