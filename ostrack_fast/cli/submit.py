"""`ostrack-fast submit`: a zip file for a benchmark's evaluation server, checked before it is sent."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from ..files import is_special
from ._outputs import check_outputs, check_outside


def submit(
    benchmark: Annotated[str, typer.Argument(help="got10k or trackingnet.")],
    data: Annotated[Path, typer.Argument(help="Folder of the benchmark, with the images of its test set.")],
    results: Annotated[
        Path, typer.Argument(help="A tracker's folder of result files; or a zip file, to check it alone.")
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The zip file; by default BENCHMARK-RESULTS.zip.")
    ] = None,
) -> None:
    """Pack results for the evaluation server of GOT-10k or TrackingNet, and check them as it does.

    Sequences, numbers of frames, formats and first boxes are compared with the test set in DATA.
    """
    from ..evaluation.submission import check_submission, expected_sequences, make_submission, refuse

    if results.is_file():
        expected, notes = expected_sequences(benchmark, data)
        refuse(results, check_submission(benchmark, expected, results))
        print(f"{results}: {len(expected)} sequences, nothing to complain of")
    else:
        path = output or Path(f"{benchmark}-{results.resolve().name}.zip")
        if path.suffix.lower() != ".zip" and not is_special(path):
            raise ValueError(f"{path} must end in .zip: the servers take no other file")
        check_outputs((path,))
        for folder in (data, results):
            check_outside(path, folder)
        notes = make_submission(benchmark, data, results, path)
        print(f"{path} is written and checked")
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
