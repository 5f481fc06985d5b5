"""`ostrack-fast evaluate`: one-pass evaluation over a folder of videos."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from ..evaluation import EvaluationResult, Scores

_COLUMNS = {
    "AUC": "auc",
    "P@20": "precision_20",
    "P_norm@0.2": "normalized_precision_20",
    "P_norm AUC": "normalized_precision_auc",
    "AO": "average_overlap",
    "SR0.5": "success_50",
    "SR0.75": "success_75",
}
_PICTURES = ("pdf", "png", "svg")


def evaluate(
    data: Annotated[Path, typer.Option(help="Folder of videos: NAME/img/*.jpg and NAME/groundtruth_rect.txt.")],
    weights: Annotated[str, typer.Option(help="Name of weights that ship with the package, or a file.")] = "small",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, float16 or bfloat16.")] = "auto",
    one_based: Annotated[
        list[str] | None,
        typer.Option(
            help="Name or pattern ('OTB_*') of videos whose ground truth counts pixels from 1; may be repeated."
        ),
    ] = None,
    json: Annotated[Path | None, typer.Option(help="Write all numbers and curves to this file.")] = None,
    results: Annotated[Path | None, typer.Option(help="Write each video's boxes to NAME.txt in this folder.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the curves into this picture (png, pdf, svg).")] = None,
) -> None:
    """Track every video once from its first frame and print success, precision and speed.

    Frames without ground truth are left out. AUC and precisions count the first frame, AO and SR do not.
    """
    # Found out now, not after hours of tracking.
    if plot is not None and plot.suffix.lower().lstrip(".") not in _PICTURES:
        raise ValueError(f"--plot {plot}: the file's suffix must be one of {', '.join(_PICTURES)}")
    from ..evaluation import evaluate_folder
    from ..tracker import Tracker

    tracker = Tracker(weights, device, dtype)
    patterns = one_based or []
    result = evaluate_folder(data, tracker, one_based=patterns, results=results, progress=True)
    Console().print(_table(result))
    if json is not None:
        settings = {
            "weights": weights,
            "device": str(tracker.device),
            "dtype": str(tracker.dtype).removeprefix("torch."),
        }
        result.save(json, data=str(data), one_based=patterns, tracker=settings)
    if plot is not None:
        from ..evaluation.plots import save_plot

        save_plot(result, plot, Path(weights).stem)


def _table(result: EvaluationResult) -> Table:
    table = Table(title=f"One-pass evaluation, {len(result.videos)} videos", show_footer=True)
    table.add_column("video", "mean", overflow="fold")
    table.add_column("frames", str(sum(len(video.boxes) for video in result.videos)), justify="right")
    for title, mean in zip(_COLUMNS, _cells(result.mean), strict=True):
        table.add_column(title, mean, justify="right")
    table.add_column("fps", f"{result.fps:.1f}", justify="right")
    for video in result.videos:
        table.add_row(video.name, str(len(video.boxes)), *_cells(video.scores), f"{video.fps:.1f}")
    return table


def _cells(scores: Scores) -> list[str]:
    return [f"{getattr(scores, name):.3f}" for name in _COLUMNS.values()]
