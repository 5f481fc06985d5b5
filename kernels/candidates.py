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
from .linear import Linear
from .tiles import capability_of

# Another tile is another order of adding, so a result may differ by some roundings of its largest number.
_TOLERANCE = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
# Less is noise, and the tile used so far stays.
_WORTH = 0.97
_LIBRARY = "library"
# Around the library's GEMM nothing begins early (see `dependent_launch`), which a call measured alone does not show: on
# an H200 early launches saved a frame 46 us, or 0.6 us a launch, and the library's GEMM is up to three of them.
_LIBRARY_SECONDS = 2e-6

Runs = dict[str, Callable[[], Any]]


class WrongTile(RuntimeError):
    """A tile computes something else than the one that is in use."""


@dataclasses.dataclass(frozen=True)
class Tuned:
    """One GEMM: its name, sizes, the fastest tile, whether the library's GEMM is faster than that.

    With the median seconds of what is fastest, and of the tile used before.
    """

    name: str
    problem: tiles.Problem
    config: tiles.Config
    library: bool
    seconds: float
    before: float


def worth_timing(problem: tiles.Problem, device: torch.device) -> list[tiles.Config]:
    """Candidates without the splits that leave half the multiprocessors idle or take more than two rounds."""
    configs = tiles.candidate_configs(problem, capability_of(device))
    if device.type != "cuda":
        return configs
    count = torch.cuda.get_device_properties(device).multi_processor_count
    return [each for each in configs if each.split == 1 or count / 2 <= each.split * each.tiles(problem) <= 2 * count]


def attempt(layer: Any, arguments: tuple, problem: tiles.Problem, config: tiles.Config) -> torch.Tensor | None:
    """The layer's result with this tile; None where this GPU cannot hold it or its compiler gives up."""
    tiles.set_config(problem, config, capability_of(layer.weight.device))
    try:
        return layer(*arguments)
    except (OutOfResources, PTXASError):
        return None


def tune_one(
    name: str, layer: Any, arguments: tuple, problem: tiles.Problem, time: Callable[[Runs], dict[str, list[float]]]
) -> Tuned:
    """Measure every candidate of a GEMM, and the library's where the layer has one; use the best from now on.

    Args:
        name: of the GEMM, for messages.
        layer: `Linear` or `Conv3x3`. arguments: what it is called with.
        time: seconds of several calls of each run, the runs taking turns.

    Raises:
        WrongTile: a candidate computes something else.
    """
    device = layer.weight.device
    used = tiles.config_for(problem, device)
    expected = layer(*arguments).float()
    bound = _TOLERANCE[layer.weight.dtype] * float(expected.abs().max())
    configs = {}

    def check(found: torch.Tensor, what: object) -> None:
        error = float((found.float() - expected).abs().max())
        if not error <= bound:
            raise WrongTile(f"{name} with {what}: wrong by {error:.3g}, allowed is {bound:.3g}")

    for config in (used, *worth_timing(problem, device)):
        found = attempt(layer, arguments, problem, config)
        if found is not None:
            check(found, config)
            configs[str(config)] = config

    def with_tile(config: tiles.Config) -> torch.Tensor:
        tiles.set_config(problem, config, capability_of(device))
        return layer(*arguments)

    runs: Runs = {key: functools.partial(with_tile, config) for key, config in configs.items()}
    if isinstance(layer, Linear) and problem.half:
        runs[_LIBRARY] = functools.partial(layer.by_library, *arguments)
        check(runs[_LIBRARY](), "the library's GEMM")
    middle = {key: statistics.median(one) for key, one in time(runs).items()}
    best = min(configs, key=lambda key: middle[key])
    if middle[best] > _WORTH * middle[str(used)]:
        best = str(used)
    library = middle.get(_LIBRARY, float("inf")) + _LIBRARY_SECONDS < middle[best]
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else "Triton's interpreter"
    source = f"measured on {where}, Triton {triton.__version__}"
    tiles.set_config(problem, configs[best], capability_of(device), source, library)
    return Tuned(name, problem, configs[best], library, middle[_LIBRARY if library else best], middle[str(used)])
