"""`ostrack-fast tune`: measure the tiles of the Triton GEMMs on this GPU."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ._lists import MOST, counts
from ._outputs import check_outputs
from ._weights import Config


def tune(
    output: Annotated[Path, typer.Argument(help="The file to write, for OSTRACK_FAST_TUNING to name.")],
    weights: Annotated[
        str, typer.Option(help="Preset, name of weights that ship with the package, or a file.")
    ] = "ostrack_256_ce",
    config: Config = None,
    batch: Annotated[str, typer.Option(help="Numbers of targets, such as 1,8.")] = "1",
    device: Annotated[str, typer.Option(help="auto, cuda or cuda:N.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float16, bfloat16 or float32.")] = "auto",
    seconds: Annotated[float, typer.Option(min=0, help="For each GEMM, about.")] = 2.0,
    processes: Annotated[
        int | None, typer.Option(min=0, max=MOST, help="That many compile all tiles first; 0: compile one by one.")
    ] = None,
) -> None:
    """Time every tile a GEMM can run with, and cuBLASLt, once for all, and write what is fastest to a file.

    Tracking itself never measures: it uses this file if OSTRACK_FAST_TUNING names it, then the table that ships, and
    for what neither holds a model of the GPU.
    The file is written after every GEMM; what it held before stays for GEMMs that are not measured again.
    """
    check_outputs((output,), sources=(weights,))
    batches = counts("--batch", batch) or [1]

    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from .. import tuning
    from ..bench.networks import make_model
    from ..engine import Engine
    from ..files import write_atomically
    from ..kernels import tiles
    from ..kernels.candidates import Tuned

    if output.exists():
        tiles.load_configs(output)
    engine = Engine(make_model(weights, config=config), device, dtype)
    table = Table(title=f"{weights} on {engine.device}", title_justify="left", box=SIMPLE_HEAD)
    for title in ("GEMM", "rows", "tile", "split", "warps", "stages", "µs", "before"):
        table.add_column(title, justify="left" if title == "GEMM" else "right")
    console = Console(stderr=True, markup=False)
    with console.status("compiling") as status:

        def done(one: Tuned) -> None:
            status.update(f"measured {one.name}")
            write_atomically(output, tiles.save_configs)
            tile = f"{one.config.block_m} x {one.config.block_n} x {one.config.block_k}"
            shape = [str(value) for value in (one.config.split, one.config.num_warps, one.config.num_stages)]
            if one.library:
                tile, shape = "cuBLASLt", ["", "", ""]
            table.add_row(
                one.name, str(one.problem.m), tile, *shape, f"{1e6 * one.seconds:.1f}", f"{1e6 * one.before:.1f}"
            )

        if processes is None:
            processes = max(1, (os.cpu_count() or 1) - 2) if engine.device.type == "cuda" else 0
        if processes:
            tuning.compile_in_parallel(weights, str(engine.device), dtype, batches, processes, config)
        tuning.tune(engine, batches, seconds, done)
    Console(markup=False).print(table)
    print(f"written to {output}; OSTRACK_FAST_TUNING={output} makes trackers use it")
