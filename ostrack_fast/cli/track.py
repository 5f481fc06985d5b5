"""`ostrack-fast track`: follow one object through a video."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Annotated

import typer

from ._boxes import parse_box
from ._weights import Config


def track(
    source: Annotated[
        str,
        typer.Argument(
            help="A video file, a folder of images, the number of a camera, an address (rtsp://...), a pipe, or - for "
            "standard input."
        ),
    ],
    box: Annotated[
        str | None, typer.Option(help="The target in the first frame, x,y,w,h in pixels. Without it, draw it.")
    ] = None,
    weights: Annotated[str, typer.Option(help="Name of weights that ship with the package, or a file.")] = "small",
    config: Config = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the annotated video (.mp4).")] = None,
    boxes: Annotated[Path | None, typer.Option(help="Write the boxes, a line x,y,w,h a frame.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw frames and score over time (.png, .pdf, ...).")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, float16, bfloat16 or int8.")] = "auto",
) -> None:
    """Follow one object through a video.

    Ctrl-C ends the run early; what was tracked until then is written.
    """
    target = None if box is None else parse_box(box)

    from ._draw_box import draw_box
    from ._outputs import Outputs
    from ._run import follow, print_summary

    outputs = Outputs(output, boxes, plot)
    outputs.check(source, weights)

    from ..model import OSTrack
    from ..tracker import Tracker, checked_box
    from ..video import open_source

    opened = open_source(source)
    tracker = Tracker(OSTrack.from_pretrained(weights, config), device, dtype)
    frames = iter(opened)
    if target is None:
        first = next(frames)
        target, frames = draw_box(first), chain([first], frames)
    width, height = opened.size
    run = follow(tracker, opened, frames, checked_box(target, height, width), outputs)
    print_summary(run, outputs)
    if not (output or boxes or plot):
        print("nothing was written: ask for a video with -o, for --boxes or a --plot")
    if run.interrupted:
        raise typer.Exit(130)
