"""`ostrack-fast evaluate`: one-pass evaluation over a folder of videos."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..interrupts import Interrupts
from ._lists import MOST
from ._outputs import INCOMPLETE, check_outputs, check_outside, check_results, raise_all
from ._weights import BoxPrior, Config, Smoothing

if TYPE_CHECKING:
    from ..evaluation import EvaluationResult, Scores

_COLUMNS = {
    "AUC": "auc",
    "P": "precision_20",
    "P_norm": "normalized_precision_20",
    "AO": "average_overlap",
    "SR0.5": "success_50",
    "SR0.75": "success_75",
}
_CAPTION = "P: centres within 20 pixels; P_norm: within 0.2 of the target's size"


def evaluate(
    data: Annotated[
        Path,
        typer.Option(
            help="Folder of videos: NAME/img/*.jpg and NAME/groundtruth_rect.txt. With --benchmark, the folder that it "
            "was unpacked into."
        ),
    ],
    weights: Annotated[str, typer.Option(help="Name of weights that ship with the package, or a file.")] = "small",
    config: Config = None,
    box_prior: BoxPrior = False,
    smoothing: Smoothing = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, float16, bfloat16 or int8.")] = "auto",
    one_based: Annotated[
        list[str] | None,
        typer.Option(
            help="Name or pattern ('OTB_*') of videos whose ground truth counts pixels from 1; may be repeated."
        ),
    ] = None,
    json: Annotated[Path | None, typer.Option(help="Write all numbers and curves to this file.")] = None,
    results: Annotated[
        Path | None,
        typer.Option(
            help="Write each video's boxes to NAME.txt in this folder; with --benchmark in the layout of its toolkit, "
            "by default to results/BENCHMARK/WEIGHTS."
        ),
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the curves into this picture (png, pdf, svg).")] = None,
    benchmark: Annotated[
        str | None,
        typer.Option(help="got10k, lasot, ...: see `ostrack-fast score`. Writes result files and scores them."),
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="Of the benchmark; by default the usual one that DATA holds.")
    ] = None,
    protocol: Annotated[str | None, typer.Option(help="By default the benchmark's official one.")] = None,
    workers: Annotated[
        int, typer.Option(min=1, max=MOST, help="Processes, with --benchmark; GPUs are taken by turns.")
    ] = 1,
    batch: Annotated[
        int,
        typer.Option(
            min=1, max=MOST, help="With --benchmark: sequences that a process tracks at once, as one batch on its GPU."
        ),
    ] = 1,
    resume: Annotated[
        bool, typer.Option(help="Go on with a run of --benchmark that was interrupted or killed.")
    ] = False,
    starts: Annotated[
        int,
        typer.Option(
            min=1,
            max=MOST,
            help="With --benchmark: start in this many frames of every sequence, evenly spaced, and track to its end.",
        ),
    ] = 1,
    tracker: Annotated[
        str, typer.Option(help="With --benchmark: ostrack, or OpenCV's mil, nano, vit, kcf or csrt to compare with.")
    ] = "ostrack",
    peer_models: Annotated[Path | None, typer.Option(help="Folder of the ONNX files of OpenCV's nano and vit.")] = None,
    realtime: Annotated[
        float | None,
        typer.Option(
            min=0.1,
            help="With --benchmark: frames a second that videos arrive at. Frames that arrive while the tracker is "
            "busy are answered with its last box.",
        ),
    ] = None,
) -> None:
    """Track every video once from its first frame and print success, precision and speed.

    Videos that cannot be evaluated are skipped, counted and named at the end, and listed in --json. All others are
    evaluated and written; the exit status is then 3, so that a script does not take a part for the whole. It is 2 where
    nothing could be evaluated. Ctrl-C ends the run early, with status 130; what it writes holds the videos that are
    finished.

    Frames without ground truth are left out. AUC and precisions count the first frame, AO and SR do not.

    With --benchmark the sequences are tracked into result files, the longest first, and scored as `ostrack-fast score`
    does. A sequence's file is written atomically; --resume goes on after any kind of end.
    """
    if benchmark is not None:
        from ._benchmark import MakeTracker, evaluate_benchmark

        if plot or (one_based and benchmark != "folder"):
            raise ValueError("--one-based and --plot are for folders of videos: leave them out with --benchmark")
        if realtime and (workers > 1 or batch > 1):
            raise ValueError("--realtime measures the tracker's time, which --workers and --batch would disturb")
        if batch > 1 and tracker != "ostrack":
            raise ValueError("--batch is for our tracker: OpenCV's follow one target each")
        make = MakeTracker(weights, config, device, dtype, workers, tracker, peer_models, batch, box_prior, smoothing)
        evaluate_benchmark(
            benchmark, data, make, split=split, protocol=protocol, results=results, resume=resume, json=json,
            one_based=one_based or (), realtime=realtime, starts=starts,
        )  # fmt: skip
        return
    several = max(workers, batch, starts) > 1
    if split or protocol or resume or several or tracker != "ostrack" or peer_models or realtime:
        raise ValueError(
            "--split, --protocol, --workers, --batch, --resume, --starts, --tracker, --peer-models and --realtime are "
            "for --benchmark: name one"
        )

    from ..evaluation import evaluate_folder
    from ..model import OSTrack
    from ..tracker import Tracker

    check_outputs((json, plot), plot, (weights,))
    for path in (json, plot):
        check_outside(path, data)
    if results is not None:
        check_results(results, data)
    ours = Tracker(OSTrack.from_pretrained(weights, config), device, dtype, box_prior=box_prior, smoothing=smoothing)
    patterns = one_based or []
    settings = {
        "weights": weights,
        "device": str(ours.device),
        "dtype": str(ours.dtype).removeprefix("torch."),
        "box_prior": box_prior,
        "smoothing": smoothing,
    }
    notes = {"data": str(data), "one_based": patterns, "tracker": settings}
    with Interrupts() as interrupts:
        result = evaluate_folder(
            data, ours, one_based=patterns, results=results, progress=True, stop=lambda: interrupts.requested
        )
        failures = _save(result, json, notes, plot, Path(weights).stem) if result.videos else []
    if result.videos:
        Console().print(_table(result))
    for name, reason in result.skipped.items():
        print(f"skipped, and left out of all numbers: {name}: {reason}", file=sys.stderr)
    if result.skipped:
        everything = len(result.videos) + len(result.skipped) + len(result.unfinished)
        print(f"{len(result.skipped)} of {everything} videos were skipped", file=sys.stderr)
    if result.unfinished:
        rest = f"not finished, and left out of all numbers: {', '.join(result.unfinished)}"
        none = "" if result.videos else "; there is nothing to report"
        print(f"interrupted after {len(result.videos)} videos; {rest}{none}", file=sys.stderr)
    raise_all(failures)
    if result.unfinished:
        raise typer.Exit(130)
    if result.skipped:
        raise typer.Exit(INCOMPLETE)


def _save(
    result: EvaluationResult, json: Path | None, notes: dict[str, Any], plot: Path | None, label: str
) -> list[Exception]:
    # Written before anything is printed, and one that cannot be written costs no other.
    failures: list[Exception] = []
    try:
        if json is not None:
            result.save(json, **notes)
    except OSError as error:
        failures.append(error)
    try:
        if plot is not None:
            from ..evaluation.plots import save_plot

            save_plot(result, plot, label)
    except Exception as error:
        failures.append(error)
    return failures


def _table(result: EvaluationResult) -> Table:
    # Fits into the 80 columns that rich assumes where there is no terminal.
    title = f"One-pass evaluation, {len(result.videos)} videos"
    table = Table(
        title=title, caption=_CAPTION, show_footer=True, box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False
    )
    table.add_column("video", "mean", overflow="fold")
    table.add_column("frames", str(sum(len(video.boxes) for video in result.videos)), justify="right", no_wrap=True)
    for column, mean in zip(_COLUMNS, _cells(result.mean), strict=True):
        table.add_column(column, mean, justify="right", no_wrap=True)
    table.add_column("fps", f"{result.fps:.1f}", justify="right", no_wrap=True)
    for video in result.videos:
        table.add_row(escape(video.name), str(len(video.boxes)), *_cells(video.scores), f"{video.fps:.1f}")
    return table


def _cells(scores: Scores) -> list[str]:
    return [f"{getattr(scores, name):.3f}" for name in _COLUMNS.values()]
