"""A GEMM's candidates tried and timed: the fastest tile is the one that is used from then on."""

import dataclasses
import functools
import statistics
from collections.abc import Callable
from typing import Any

import torch
import triton
from triton.runtime.errors import OutOfResources, PTXASError

from . import tiles

# Another tile is another order of adding, so a result may differ by some roundings of its largest number.
_TOLERANCE = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
# Less is noise, and the tile used so far stays.
_WORTH = 0.97

Runs = dict[str, Callable[[], Any]]


class WrongTile(RuntimeError):
    """A tile computes something else than the one that is in use."""


@dataclasses.dataclass(frozen=True)
class Tuned:
    """One GEMM: its name, sizes, the tile chosen, its median seconds and those of the tile used before."""

    name: str
    problem: tiles.Problem
    config: tiles.Config
    seconds: float
    before: float


def capability_of(device: torch.device) -> int:
    """Major compute capability; 0 for Triton's interpreter."""
    return torch.cuda.get_device_capability(device)[0] if device.type == "cuda" else 0


def worth_timing(problem: tiles.Problem, device: torch.device) -> list[tiles.Config]:
    """Candidates without the splits that leave half the multiprocessors idle or take more than two rounds."""
    configs = tiles.candidate_configs(problem, capability_of(device))
    if device.type != "cuda":
        return configs
    count = torch.cuda.get_device_properties(device).multi_processor_count
    return [each for each in configs if each.split == 1 or count / 2 <= each.split * each.tiles(problem) <= 2 * count]


def attempt(layer: Any, arguments: tuple, problem: tiles.Problem, config: tiles.Config) -> torch.Tensor | None:
    """The layer's result with this tile; None where this GPU cannot hold it or its compiler gives up."""
    tiles.set_config(problem, config, capability_of(arguments[0].device))
    try:
        return layer(*arguments)
    except (OutOfResources, PTXASError):
        return None


def tune_one(
    name: str, layer: Any, arguments: tuple, problem: tiles.Problem, time: Callable[[Runs], dict[str, list[float]]]
) -> Tuned:
    """Measure every candidate of a GEMM, and use the best from now on.

    Args:
        name: of the GEMM, for messages.
        layer: `Linear` or `Conv3x3`. arguments: what it is called with.
        time: seconds of several calls of each run, the runs taking turns.

    Raises:
        WrongTile: a candidate computes something else.
    """
    device = arguments[0].device
    used = tiles.config_for(problem, device)
    expected = layer(*arguments).float()
    bound = _TOLERANCE[layer.weight.dtype] * float(expected.abs().max())
    configs = {}
    for config in (used, *worth_timing(problem, device)):
        found = attempt(layer, arguments, problem, config)
        if found is None:
            continue
        error = float((found.float() - expected).abs().max())
        if not error <= bound:
            raise WrongTile(f"{name} with {config}: wrong by {error:.3g}, allowed is {bound:.3g}")
        configs[str(config)] = config

    def with_tile(config: tiles.Config) -> torch.Tensor:
        tiles.set_config(problem, config, capability_of(device))
        return layer(*arguments)

    times = time({key: functools.partial(with_tile, config) for key, config in configs.items()})
    middle = {key: statistics.median(one) for key, one in times.items()}
    best = min(middle, key=lambda key: middle[key])
    if middle[best] > _WORTH * middle[str(used)]:
        best = str(used)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else "Triton's interpreter"
    source = f"measured on {where}, Triton {triton.__version__}"
    tiles.set_config(problem, configs[best], capability_of(device), source)
    return Tuned(name, problem, configs[best], middle[best], middle[str(used)])
