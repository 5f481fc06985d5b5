"""`ostrack-fast profile`: where the time of a frame goes."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console


def profile(
    weights: Annotated[
        str, typer.Option(help="Name of weights that ship with the package, a file, or a preset (untrained).")
    ] = "small",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, float16, bfloat16 or int8.")] = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="Threads on the CPU.")] = None,
    frames: Annotated[int, typer.Option(min=1, help="How many frames to time.")] = 50,
    width: Annotated[int, typer.Option(min=64, help="Of the frame, pixels.")] = 1920,
    height: Annotated[int, typer.Option(min=64, help="Of the frame, pixels.")] = 1080,
) -> None:
    """Time every stage of a tracked frame, and print it beside the least the arithmetic could take."""
    import numpy as np
    import torch
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from ..benchmark.profile import profile as measure
    from ..config import PRESETS
    from ..engine import Engine
    from ..model import OSTrack
    from ..model.checkpoint import shipped_weights

    if threads is not None:
        torch.set_num_threads(threads)
    untrained = weights in PRESETS and weights not in shipped_weights()
    model = OSTrack.from_preset(weights) if untrained else OSTrack.from_pretrained(weights)
    engine = Engine(model, device, dtype)
    frame = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    found = measure(engine, frame, (0.4 * width, 0.4 * height, 0.1 * width, 0.1 * width), frames)

    where = f"{engine.device}" if engine.device.type != "cpu" else f"cpu, {torch.get_num_threads()} thread(s)"
    kind = str(engine.dtype).removeprefix("torch.")
    table = Table(title=f"{weights} on {where}, {kind}", title_justify="left", box=SIMPLE_HEAD)
    for title in ("stage", "calls", "ms", "share", "GFLOP/s"):
        table.add_column(title, justify="left" if title == "stage" else "right")
    for stage in sorted(found.stages, key=lambda one: -one.seconds):
        rate = f"{stage.flops / stage.seconds / 1e9:.0f}" if stage.flops else ""
        share = f"{stage.seconds / found.seconds:.1%}"
        table.add_row(stage.name, str(stage.calls), f"{1e3 * stage.seconds:.3f}", share, rate)
    rest = found.seconds - sum(stage.seconds for stage in found.stages)
    if engine.device.type == "cpu":
        table.add_row("between stages", "", f"{1e3 * rest:.3f}", f"{rest / found.seconds:.1%}", "")
    table.add_section()
    table.add_row("frame", "", f"{1e3 * found.seconds:.3f}", f"{1 / found.seconds:.1f} frames/s", "")
    Console().print(table)
    print(f"floor: {1e3 * found.floor:.3f} ms ({found.bound}), {found.floor / found.seconds:.0%} of the frame's time")
    if found.kernels is not None:
        print(f"{found.kernels} kernels, copies and fills a frame; stages are timed eagerly, the frame as a graph")
