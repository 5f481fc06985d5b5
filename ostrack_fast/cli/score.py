"""`ostrack-fast score`: a benchmark's figures from the result files of any tracker."""

from __future__ import annotations

import json as json_format
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ._lists import MOST
from ._outputs import check_outputs, check_outside

if TYPE_CHECKING:
    from ..evaluation.scoring import Scored


def score(
    benchmark: Annotated[
        str,
        typer.Argument(
            help="got10k, lasot, lasot_ext, trackingnet, nfs, uav123, tnl2k, vasttrack, avist, otb, davis, vot, folder."
        ),
    ],
    data: Annotated[Path, typer.Argument(help="Folder that the benchmark was unpacked into.")],
    results: Annotated[
        list[Path],
        typer.Argument(help="Folders of result files, one a tracker: SEQUENCE.txt or SEQUENCE/SEQUENCE_001.txt."),
    ],
    split: Annotated[str | None, typer.Option(help="By default the usual one of those that DATA holds.")] = None,
    protocol: Annotated[
        str | None,
        typer.Option(
            help="got10k, got10k_balanced, lasot, otb, pytracking, stark, pysot, trackingnet or folder; by default the "
            "benchmark's official one."
        ),
    ] = None,
    starts: Annotated[
        int, typer.Option(min=1, max=MOST, help="As given to `evaluate`: starts in every sequence, evenly spaced.")
    ] = 1,
    json: Annotated[Path | None, typer.Option(help="Write all figures to this file.")] = None,
) -> None:
    """Score result files as a benchmark's own toolkit does; nothing is tracked.

    AO and SR of GOT-10k are fractions, AUC, P and P_norm percent.
    """
    from ..evaluation.scoring import score_results
    from ..files import write_text

    check_outputs((json,))
    for folder in (data, *results):
        check_outside(json, folder)
    scored = score_results(benchmark, data, results, split, protocol, starts)
    if json is not None:
        write_text(json, json_format.dumps(scored.to_dict(), indent=1, allow_nan=False) + "\n")
    for note in scored.loaded.notes:
        print(f"note: {note}", file=sys.stderr)
    Console().print(scores_table(scored))


def scores_table(scored: Scored) -> Table:
    """The trackers' figures, the best first, for the terminal."""
    count = len(scored.loaded.sequences)
    title = f"{scored.benchmark}, split {scored.loaded.split}, {count} sequences, protocol {scored.protocol}"
    table = Table(title=title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("tracker", overflow="fold")
    names = list(scored.trackers[0].summary)
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    for tracker in sorted(scored.trackers, key=lambda each: -each.summary[names[0]]):
        digits = 3 if "AO" in tracker.summary else 2
        table.add_row(escape(tracker.name), *(f"{tracker.summary[name]:.{digits}f}" for name in names))
    return table
