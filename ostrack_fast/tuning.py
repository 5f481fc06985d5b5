"""The Triton GEMMs of a network, for `ostrack-fast tune` and for the table of tiles that ships.

    TRITON_INTERPRET=1 python -m ostrack_fast.tuning [FILE ...]

writes kernels/tiles.json: what is measured there and in files that `tune` wrote stays, the rest is what the model of
`kernels.tiles` says of an H100. Run it after a change of that model or of a preset.
"""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from . import ops
from .bench.networks import make_model
from .config import PRESETS
from .engine import Engine
from .files import write_atomically
from .model import OSTrack
from .timing import clock, interleave

if TYPE_CHECKING:
    from .kernels.candidates import Tuned

H100_CAPABILITY, H100_MULTIPROCESSORS = 9, 132
SHIPPED_BATCHES = (1, 8, 64)


# The head's last convolution computes in float32 whatever the engine's dtype, outside Triton.
_NO_GEMM = "conv5"


def gemms(engine: Engine, batches: Sequence[int], without: Sequence[str] = ()) -> Iterator[tuple[str, Any, int, Any]]:
    """(name, layer, rows, problem) of every GEMM whose tile can be chosen, each problem once.

    Args:
        batches: numbers of targets.
        without: names of layers that are left out.

    Raises:
        ValueError: the engine's GEMMs do not run in Triton.
    """
    seen = set()
    for batch in batches:
        for name, layer, rows in engine.network.layers():
            if name in (_NO_GEMM, *without):
                continue
            if not hasattr(layer, "problem"):
                raise ValueError(
                    f"{name} runs in {type(layer).__module__}, and only Triton's GEMMs have tiles to tune: "
                    "a CUDA GPU and float16 or bfloat16 are needed, or OSTRACK_FAST_BACKEND=triton"
                )
            problem = layer.problem(batch * rows).bucket()
            if problem not in seen:
                seen.add(problem)
                yield name, layer, batch * rows, problem


def inputs(engine: Engine, name: str, layer: Any, rows: int) -> tuple[torch.Tensor, ...]:
    """Random arguments for a layer of `gemms`, in the dtypes that a frame gives it."""
    dtype, random = engine.network.dtype, partial(torch.randn, dtype=torch.float32, device=engine.device)
    if name.startswith("conv"):
        grid = engine.cfg.search_grid
        return (random(rows // grid**2, grid, grid, layer.inputs).to(dtype),)
    if layer.norm_eps is not None:  # reads the residual stream
        return (random(1, rows, layer.inputs),)
    return random(1, rows, layer.inputs).to(dtype), random(1, rows, layer.weight.shape[0])


def compile_share(
    weights: str, device: str, dtype: str, batches: Sequence[int], share: int, shares: int, config: str | None = None
) -> int:
    """Compile every `shares`-th tile of a network, beginning with number `share`, into Triton's cache; how many."""
    from .kernels import candidates

    torch.set_num_threads(1)
    engine = Engine(make_model(weights, config=config), device, dtype)
    work = [
        (name, layer, rows, problem, tile)
        for name, layer, rows, problem in gemms(engine, batches)
        for tile in candidates.worth_timing(problem, engine.device)
    ][share::shares]
    with torch.no_grad():
        for name, layer, rows, problem, tile in work:
            candidates.attempt(layer, inputs(engine, name, layer, rows), problem, tile)
    return len(work)


def compile_in_parallel(
    weights: str, device: str, dtype: str, batches: Sequence[int], processes: int, config: str | None = None
) -> int:
    """Fill Triton's cache with all tiles of a network by that many processes; returns how many tiles there are."""
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        shares = [
            pool.submit(compile_share, weights, device, dtype, batches, share, processes, config)
            for share in range(processes)
        ]
        return sum(each.result() for each in shares)


def tune(engine: Engine, batches: Sequence[int], seconds: float, done: Callable[[Tuned], None]) -> list[Tuned]:
    """Measure all candidates of every GEMM once, about `seconds` each, and use the best from now on.

    Raises:
        ValueError: the engine's GEMMs do not run in Triton.
        WrongTile: a candidate computes something else.
    """
    from .kernels.candidates import tune_one

    time = partial(interleave, timer=clock(engine.device), seconds=seconds)
    tuned = []
    with torch.no_grad():
        for name, layer, rows, problem in gemms(engine, batches):
            tuned.append(tune_one(name, layer, inputs(engine, name, layer, rows), problem, time))
            done(tuned[-1])
    return tuned


def main() -> None:
    from .kernels import tiles

    problems = []
    for preset in PRESETS:
        with ops.use("triton"):
            engine = Engine(OSTrack.from_preset(preset), "cpu", "float16")
        # GEMMs that only a CPU splits are not in a frame on a GPU.
        problems += [problem for *_, problem in gemms(engine, SHIPPED_BATCHES, without=("q", "kv"))]
    table = tiles.modelled_table(problems, H100_CAPABILITY, H100_MULTIPROCESSORS)
    for path in (tiles.TABLE, *map(Path, sys.argv[1:])):
        known = tiles.read_table(path)
        table |= {key: entry for key, entry in known.items() if entry.source != tiles.MODELLED}
    write_atomically(tiles.TABLE, lambda path: tiles.save_configs(path, table))
    measured = sum(entry.source != tiles.MODELLED for entry in table.values())
    print(f"{tiles.TABLE}: {len(table)} tiles, {measured} of them measured")


if __name__ == "__main__":
    main()
