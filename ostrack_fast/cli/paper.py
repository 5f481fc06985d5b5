"""`ostrack-fast paper`: the paper's tables and figures, ours beside the printed ones."""

from __future__ import annotations

import json as json_format
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, cast

import typer
from rich.console import Console

from ._boxes import parse_box
from ._lists import counts
from ._outputs import check_outputs, check_outside

if TYPE_CHECKING:
    from ..paper.report import Report, Tell
    from ..paper.small_scale import Scale, Videos

Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Dtype = Annotated[str, typer.Option(help="auto, float32, float16, bfloat16 or int8.")]
Rounds = Annotated[int, typer.Option(min=1, help="Frames timed of each network.")]
Json = Annotated[Path | None, typer.Option(help="Write all figures to this file.")]
Runs = Annotated[Path, typer.Option(help="Folder of the training runs; runs that lie there are continued.")]
Recipe = Annotated[str, typer.Option(help="Training settings that all runs share: a yaml file, or a recipe's name.")]
Pairs = Annotated[int, typer.Option(min=1, help="Training pairs of each network.")]
DataRoot = Annotated[Path | None, typer.Option(help="Folder of the training data, instead of the recipe's.")]
Backbone = Annotated[str | None, typer.Option(help="Pretrained ViT that training starts from.")]
Validation = Annotated[Path | None, typer.Option(help="Folder of videos whose pairs give convergence curves.")]
Folder = Annotated[Path, typer.Option("--videos", help="Folder of videos with ground truth to track.")]
Frames = Annotated[int | None, typer.Option(min=2, help="So many first frames of each video; all by default.")]


def _printed(
    work: Callable[[Tell], Report], json: Path | None, videos: Path | None = None, sources: Sequence[str | Path] = ()
) -> None:
    """Run a command of the paper, which reads a folder of videos and files, print its report, and write it as JSON."""
    check_outputs((json,), sources=sources)
    check_outside(json, videos)
    console, begin = Console(markup=False), perf_counter()
    with Console(stderr=True, markup=False).status("starting") as status:
        report = work(status.update)
    seconds = perf_counter() - begin
    if json is not None:
        report.write(json, seconds)
    report.show(console, seconds)


def _scale(
    runs: Path, recipe: str, pairs: int, data_root: Path | None, backbone: str | None, validation: Path | None,
    device: str,
) -> Scale:  # fmt: skip
    from ..paper.small_scale import Scale

    return Scale(runs, recipe, pairs, data_root, backbone, validation, device)


def _videos(folder: Path, frames: int | None) -> Videos:
    from ..paper.small_scale import Videos

    return Videos(folder, frames)


def table3(
    device: Device = "auto",
    dtype: Dtype = "auto",
    rounds: Rounds = 7,
    scores: Annotated[
        list[Path] | None,
        typer.Option(help="A file of `score --json` whose trackers are called as the presets; may be repeated."),
    ] = None,
    json: Json = None,
) -> None:
    """Table 3: MACs, parameters and speed with and without candidate elimination."""
    from ..paper import table3 as paper

    _printed(
        lambda tell: paper.report(paper.table3(device, dtype, rounds, scores or (), tell), rounds),
        json,
        None,
        scores or (),
    )


def table4(
    videos: Folder,
    runs: Runs = Path("runs/paper"),
    start: Annotated[
        list[str] | None,
        typer.Option(help="A start: none, ImageNet-1k, ImageNet-21k, MAE, or NAME=SOURCE; may be repeated."),
    ] = None,
    recipe: Recipe = "tiny",
    pairs: Pairs = 5000,
    data_root: DataRoot = None,
    validation: Validation = None,
    frames: Frames = None,
    device: Device = "auto",
    json: Json = None,
) -> None:
    """Table 4: the same network trained from different pretrained weights, and from none.

    The paper's are those of a ViT-B, which timm downloads: --recipe ostrack_256 --pairs 18000000.
    """
    from ..paper import table4 as paper

    scale = _scale(runs, recipe, pairs, data_root, None, validation, device)
    sources = paper.sources_of(start)
    _printed(lambda tell: paper.table4(scale, _videos(videos, frames), sources, tell), json, videos)


def table5(
    preset: Annotated[str, typer.Option(help="ViT, head and crops of the networks that are timed.")] = "ostrack_256",
    dtype: Dtype = "auto",
    rounds: Rounds = 7,
    videos: Annotated[Path | None, typer.Option(help="Train, too, and track this folder of videos.")] = None,
    runs: Runs = Path("runs/paper"),
    recipe: Recipe = "tiny",
    pairs: Pairs = 5000,
    data_root: DataRoot = None,
    backbone: Backbone = None,
    validation: Validation = None,
    frames: Frames = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the convergence curves in this picture.")] = None,
    device: Device = "auto",
    json: Json = None,
) -> None:
    """Table 5: one stream against two: parameters, MACs and speed; with --videos trained at small scale, too."""
    from ..paper import table5 as paper

    if plot is not None:
        check_outputs((plot, json), plot)
        check_outside(plot, videos)
        if videos is None or validation is None:
            raise ValueError("--plot draws what training converged to: give --videos and --validation")
    scale = None if videos is None else _scale(runs, recipe, pairs, data_root, backbone, validation, device)
    where = None if videos is None else _videos(videos, frames)
    _printed(lambda tell: paper.table5(preset, device, dtype, rounds, tell, scale, where, plot), json, videos)


def ablations(
    videos: Folder,
    weights: Annotated[str, typer.Option(help="Trained weights whose options are changed.")] = "small",
    train: Annotated[bool, typer.Option(help="Train for the options that need it: the embeddings.")] = False,
    runs: Runs = Path("runs/paper"),
    recipe: Recipe = "tiny",
    pairs: Pairs = 5000,
    data_root: DataRoot = None,
    backbone: Backbone = None,
    frames: Frames = None,
    rounds: Rounds = 7,
    device: Device = "auto",
    json: Json = None,
) -> None:
    """Template tokens, keep ratio, eliminating blocks and embeddings: accuracy and speed in one table."""
    from ..paper import ablations as paper

    scale = _scale(runs, recipe, pairs, data_root, backbone, None, device) if train else None
    _printed(
        lambda tell: paper.ablations(weights, _videos(videos, frames), runs, device, rounds, tell, scale),
        json,
        videos,
        (weights,),
    )


def figures(
    folder: Annotated[Path, typer.Argument(help="Folder for the pictures.")],
    source: Annotated[str | None, typer.Option(help="A video file or a folder of images; the shipped video.")] = None,
    box: Annotated[str | None, typer.Option(help="The target in its first frame, x,y,w,h in pixels.")] = None,
    frames: Annotated[str, typer.Option(help="Frames to show, numbers between commas, the first being 0.")] = "10,60",
    results: Annotated[
        list[Path] | None, typer.Option(help="A file of `evaluate --json`, for Figure 1; may be repeated.")
    ] = None,
    two_stream: Annotated[Path | None, typer.Option(help="Weights of a two-stream network, for Figure 6.")] = None,
    network: Annotated[str, typer.Option(help="Which: stark-aligned or swintrack-aligned.")] = "stark-aligned",
    weights: Annotated[str, typer.Option(help="Name of weights that ship with the package, or a file.")] = "small",
    json: Json = None,
) -> None:
    """Figures 1, 4, 5 and 6: speed, attention, elimination, and features beside a two-stream network's."""
    from ..baselines import NETWORKS, TwoStream
    from ..model import OSTrack
    from ..paper import figures as paper
    from ..video import open_source

    kinds = {name: kind for name, kind in NETWORKS.items() if issubclass(kind, TwoStream)}
    if network not in kinds:
        raise ValueError(f"--network {network!r} must be one of {', '.join(kinds)}")
    if (source is None) != (box is None):
        raise ValueError("--source and --box belong together: give both, or neither for the shipped video")
    assets = resources.files("ostrack_fast") / "assets"
    read = [each for each in (source, two_stream, weights, *(results or ())) if each is not None]
    check_outputs([folder / name for name in paper.FILES], sources=read)
    numbers = counts("--frames", frames, 2**31) or []
    beside = None if two_stream is None else cast(TwoStream, kinds[network].from_pretrained(two_stream))
    with resources.as_file(assets / "demo.mp4") as shipped:
        demo = json_format.loads((assets / "demo.json").read_text(encoding="utf-8"))["box"]
        where = tuple(demo) if box is None else parse_box(box)
        made = open_source(shipped if source is None else source)
        points = paper.read_points(results or ())
        model = OSTrack.from_pretrained(weights)
        _printed(
            lambda tell: paper.figures(iter(made), where, model, folder, numbers, points, beside, tell),
            json,
            None,
            read,
        )


COMMANDS = (table3, table4, table5, figures, ablations)
