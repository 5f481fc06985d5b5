"""`ostrack-fast track`: follow objects through a video, a camera or a stream."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ._boxes import parse_box
from ._weights import BoxPrior, Config, Smoothing


def track(
    source: Annotated[
        str,
        typer.Argument(
            help="A video file, a folder of images, the number of a camera, an address (rtsp://...), a pipe, or - for "
            "standard input."
        ),
    ],
    box: Annotated[
        list[str] | None,
        typer.Option(help="A target in the first frame, x,y,w,h in pixels; once for each. Without it, draw them."),
    ] = None,
    weights: Annotated[str, typer.Option(help="Name of weights that ship with the package, or a file.")] = "small",
    config: Config = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the annotated video (.mp4).")] = None,
    boxes: Annotated[
        Path | None,
        typer.Option(help="Write the boxes: of one target a line x,y,w,h a frame, of several MOTChallenge lines."),
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw frames and score over time (.png, .pdf, ...).")] = None,
    json_lines: Annotated[
        bool, typer.Option("--json-lines", help="Print each frame's boxes at once, as a JSON object a line.")
    ] = False,
    window: Annotated[bool, typer.Option("--window", help="Show the video, and change targets in it.")] = False,
    frames: Annotated[
        str,
        typer.Option(help="every, or newest: those that came meanwhile are passed over. auto: newest of what is live."),
    ] = "auto",
    redetect: Annotated[
        bool, typer.Option("--redetect", help="When the target is lost, search the whole frame for it.")
    ] = False,
    box_prior: BoxPrior = False,
    smoothing: Smoothing = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, float16, bfloat16 or int8.")] = "auto",
) -> None:
    """Follow objects through a video, a camera or a stream.

    Ctrl-C ends the run early; what was tracked until then is written.
    """
    given = [parse_box(text) for text in box or []]
    if frames not in ("auto", "every", "newest"):
        raise ValueError(f"--frames {frames!r} is none of auto, every, newest")

    from ._outputs import Outputs
    from ._run import follow, print_summary

    outputs = Outputs(output, boxes, plot, json_lines)
    outputs.check(source, weights)

    from ..inputs import checked_box
    from ..model import OSTrack
    from ..tracker import MultiTracker
    from ..video import open_source
    from ..video.live import LiveFrames

    shown = None
    if window or not given:
        from ._window import open_window

        shown = open_window(paused=not given)
    opened = open_source(source)
    tracker = MultiTracker(
        OSTrack.from_pretrained(weights, config), device, dtype, redetect=redetect, box_prior=box_prior,
        smoothing=smoothing,
    )  # fmt: skip
    width, height = opened.size
    targets = [checked_box(each, height, width) for each in given]
    newest = opened.live if frames == "auto" else frames == "newest"
    with LiveFrames(opened, newest) as coming:
        run = follow(tracker, opened, coming, targets, outputs, shown)
    print_summary(run, outputs)
    if not (output or boxes or plot or json_lines or shown):
        print("nothing was written: ask for a video with -o, for --boxes, --json-lines or a --plot")
    if run.interrupted:
        raise typer.Exit(130)
