"""`ostrack-fast demo`: the shipped video, tracked with the shipped weights."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Annotated

import typer

from ._weights import Config


def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the results.")] = Path("ostrack_fast_demo"),
    weights: Annotated[str, typer.Option(help="Name of weights that ship with the package, or a file.")] = "small",
    config: Config = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, float16, bfloat16 or int8.")] = "auto",
) -> None:
    """Track Big Buck Bunny through the video that comes with the package. Needs no network."""
    from ._outputs import Outputs
    from ._run import follow, print_summary

    outputs = Outputs(output / "demo.mp4", output / "boxes.txt", output / "demo.png")
    outputs.check(None, weights)

    from ..model import OSTrack
    from ..tracker import MultiTracker
    from ..video import open_source

    assets = resources.files("ostrack_fast") / "assets"
    facts = json.loads((assets / "demo.json").read_text(encoding="utf-8"))
    tracker = MultiTracker(OSTrack.from_pretrained(weights, config), device, dtype)
    with resources.as_file(assets / "demo.mp4") as path:
        source = open_source(path)
        source.name = facts["title"]
        run = follow(tracker, source, iter(source), [tuple(facts["box"])], outputs)
    print_summary(run, outputs)
    print(facts["credit"])
    if run.interrupted:
        raise typer.Exit(130)
