"""`ostrack-fast profile`: where the time of a frame goes."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from ._lists import MOST
from ._outputs import check_outputs
from ._weights import Config

if TYPE_CHECKING:
    from rich.table import Table

    from ..profiling import Profile


def profile(
    weights: Annotated[
        list[str],
        typer.Option(
            help="Name of weights that ship with the package, a file, or a preset (untrained); again for another."
        ),
    ] = ["small"],  # noqa: B006
    config: Config = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, float16, bfloat16 or int8.")] = "auto",
    threads: Annotated[int | None, typer.Option(min=1, max=MOST, help="Threads on the CPU.")] = None,
    frames: Annotated[int, typer.Option(min=1, help="How many frames to time.")] = 50,
    width: Annotated[int, typer.Option(min=64, help="Of the frame, pixels.")] = 1920,
    height: Annotated[int, typer.Option(min=64, help="Of the frame, pixels.")] = 1080,
    json: Annotated[Path | None, typer.Option(help="Write all numbers and the machine's description here.")] = None,
) -> None:
    """Time every stage of a tracked frame, on a GPU every node of its CUDA graph, beside the least it could take."""
    check_outputs((json,), sources=weights)

    import numpy as np
    import torch

    from ..bench import report
    from ..bench.networks import make_model
    from ..engine import Engine
    from ..profiling import profile as measure

    if threads is not None:
        torch.set_num_threads(threads)
    frame = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    profiles = {}
    for name in weights:
        engine = Engine(make_model(name, config=config), device, dtype)
        found = measure(engine, frame, (0.4 * width, 0.4 * height, 0.1 * width, 0.1 * width), frames)
        profiles[name] = asdict(found)
        if json is not None:
            report.write(json, {"profiles": profiles})
        where = f"{engine.device}" if engine.device.type != "cpu" else f"cpu, {torch.get_num_threads()} thread(s)"
        _print(f"{name} on {where}, {str(engine.dtype).removeprefix('torch.')}", found)


def _print(title: str, found: Profile) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    if found.nodes:
        _add_nodes(table, found)
    else:
        _add_stages(table, found)
    table.add_section()
    table.add_row("frame", "", f"{1e3 * found.seconds:.3f}", f"{1 / found.seconds:.1f} frames/s", "")
    Console(markup=False).print(table)
    print(f"roofline: {1e3 * found.roofline:.3f} ms ({found.bound}), {found.roofline / found.seconds:.0%} of the frame")


def _columns(table: Table, *titles: str) -> None:
    for title in titles:
        table.add_column(title, justify="left" if title in ("stage", "node") else "right")


def _add_stages(table: Table, found: Profile) -> None:
    _columns(table, "stage", "calls", "ms", "share", "GFLOP/s")
    for stage in sorted(found.stages, key=lambda one: -one.seconds):
        rate = f"{stage.flops / stage.seconds / 1e9:.0f}" if stage.flops else ""
        share = f"{stage.seconds / found.seconds:.1%}"
        table.add_row(stage.name, str(stage.calls), f"{1e3 * stage.seconds:.3f}", share, rate)
    rest = found.seconds - sum(stage.seconds for stage in found.stages)
    table.add_row("between stages", "", f"{1e3 * rest:.3f}", f"{rest / found.seconds:.1%}", "")


def _add_nodes(table: Table, found: Profile) -> None:
    """The nodes by name, and the gaps between them."""
    _columns(table, "node", "calls", "ms", "share", "")
    by_name: dict[str, list[float]] = {}
    for node in found.nodes:
        by_name.setdefault(node.name, []).append(node.seconds)
    gaps = [node.gap for node in found.nodes[1:]]
    rows = [*by_name.items(), ("gaps between nodes", gaps)]
    for name, times in sorted(rows, key=lambda one: -sum(one[1])):
        share = f"{sum(times) / found.seconds:.1%}"
        table.add_row(name[:60], str(len(times)), f"{1e3 * sum(times):.3f}", share, "")
