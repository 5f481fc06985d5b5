"""Tiles of the Triton GEMMs, measured: for every GEMM of a network, the fastest of its candidates."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import torch

from ostrack_fast import OSTrack
from ostrack_fast.config import PRESETS
from ostrack_fast.engine import Engine

from .case import WrongResult
from .networks import make_model
from .timing import clock, interleave

# Another tile is another order of adding, so a result may differ by some roundings of its largest number.
_TOLERANCE = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
# Less is noise, and the tile used so far stays.
_WORTH = 0.97


@dataclass(frozen=True)
class Tuned:
    """One GEMM: its name, sizes, the tile chosen, its median seconds and those of the tile used before."""

    name: str
    problem: Any
    config: Any
    seconds: float
    before: float


def load_engine(weights: str, device: str, dtype: str, config: str | None = None) -> Engine:
    """The engine to tune: `weights` is a preset, the name of weights that ship, or a file, then with its `config`."""
    model = make_model(weights) if weights in PRESETS else OSTrack.from_pretrained(weights, config)
    return Engine(model, device, dtype)


def gemms(engine: Engine, batch: int) -> Iterator[tuple[str, Any, int]]:
    """(name, layer, rows) of every GEMM whose tile can be chosen, in a frame with that many targets.

    The head's last convolution is left out: it computes in float32 whatever the engine's dtype, outside Triton.

    Raises:
        ValueError: the engine's GEMMs do not run in Triton.
    """
    for name, layer, rows in engine.network.layers():
        if name == "conv5":
            continue
        if not hasattr(layer, "problem"):
            raise ValueError(
                f"{name} runs in {type(layer).__module__}, and only Triton's GEMMs have tiles to tune: "
                "a CUDA GPU and float16 or bfloat16 are needed, or OSTRACK_FAST_BACKEND=triton"
            )
        yield name, layer, batch * rows


def inputs(engine: Engine, name: str, layer: Any, rows: int) -> tuple[torch.Tensor, ...]:
    """Random arguments for a layer of `gemms`, in the dtypes that a frame gives it."""
    device, dtype = engine.device, engine.network.dtype
    if name.startswith("conv"):
        grid = engine.cfg.search_grid
        return (torch.randn(rows // grid**2, grid, grid, layer.inputs, device=device).to(dtype),)
    if layer.norm_eps is not None:  # reads the residual stream
        return (torch.randn(1, rows, layer.inputs, device=device),)
    residual = torch.randn(1, rows, layer.weight.shape[0], device=device)
    return torch.randn(1, rows, layer.inputs, device=device).to(dtype), residual


def _distinct(engine: Engine, batches: Sequence[int]) -> Iterator[tuple[str, Any, int, Any]]:
    seen = set()
    for batch in batches:
        for name, layer, rows in gemms(engine, batch):
            problem = layer.problem(rows).bucket()
            if problem not in seen:
                seen.add(problem)
                yield name, layer, rows, problem


def _worth_timing(problem: Any, device: torch.device) -> list[Any]:
    """Candidates without the splits that leave half the multiprocessors idle or take more than two rounds."""
    from ostrack_fast.kernels import tiles

    configs = tiles.candidate_configs(problem, _capability(device))
    if device.type != "cuda":
        return configs
    count = torch.cuda.get_device_properties(device).multi_processor_count
    return [each for each in configs if each.split == 1 or count / 2 <= each.split * each.tiles(problem) <= 2 * count]


def _capability(device: torch.device) -> int:
    return torch.cuda.get_device_capability(device)[0] if device.type == "cuda" else 0  # 0: Triton's interpreter


def _try(layer: Any, arguments: tuple, problem: Any, config: Any, capability: int) -> torch.Tensor | None:
    """The layer's result with this tile; None where this GPU cannot hold it or its compiler gives up."""
    from triton.runtime.errors import OutOfResources, PTXASError

    from ostrack_fast.kernels import tiles

    tiles.set_config(problem, config, capability)
    try:
        return layer(*arguments)
    except (OutOfResources, PTXASError):
        return None


def compile_share(
    weights: str, device: str, dtype: str, batches: Sequence[int], share: int, shares: int, config: str | None = None
) -> int:
    """Compile every `shares`-th tile of a network, beginning with number `share`, into Triton's cache; how many."""
    torch.set_num_threads(1)
    engine = load_engine(weights, device, dtype, config)
    capability = _capability(engine.device)
    work = [
        (name, layer, rows, problem, config)
        for name, layer, rows, problem in _distinct(engine, batches)
        for config in _worth_timing(problem, engine.device)
    ][share::shares]
    with torch.no_grad():
        for name, layer, rows, problem, config in work:
            _try(layer, inputs(engine, name, layer, rows), problem, config, capability)
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
        WrongResult: a candidate computes something else.
    """
    tuned = []
    with torch.no_grad():
        for name, layer, rows, problem in _distinct(engine, batches):
            tuned.append(_tune_one(name, layer, inputs(engine, name, layer, rows), problem, seconds))
            done(tuned[-1])
    return tuned


def _tune_one(name: str, layer: Any, arguments: tuple, problem: Any, seconds: float) -> Tuned:
    import triton

    from ostrack_fast.kernels import tiles

    device = arguments[0].device
    capability = _capability(device)
    here = torch.cuda.get_device_name(device) if device.type == "cuda" else "Triton's interpreter"
    used = tiles.config_for(problem, device)
    expected = layer(*arguments).float()
    bound = _TOLERANCE[layer.weight.dtype] * float(expected.abs().max())
    configs = {}
    for config in (used, *_worth_timing(problem, device)):
        found = _try(layer, arguments, problem, config, capability)
        if found is None:
            continue
        error = float((found.float() - expected).abs().max())
        if not error <= bound:
            raise WrongResult(f"{name} with {config}: wrong by {error:.3g}, allowed is {bound:.3g}")
        configs[str(config)] = config

    def with_tile(config: Any) -> torch.Tensor:
        tiles.set_config(problem, config, capability)
        return layer(*arguments)

    times = interleave({key: partial(with_tile, config) for key, config in configs.items()}, clock(device), seconds)
    middle = {key: median(one) for key, one in times.items()}
    best = min(middle, key=lambda key: middle[key])
    if middle[best] > _WORTH * middle[str(used)]:
        best = str(used)
    tiles.set_config(problem, configs[best], capability, f"measured on {here}, Triton {triton.__version__}")
    return Tuned(name, problem, configs[best], middle[best], middle[str(used)])
