"""Tiles of the Triton products, measured: for every product of a network, the fastest of its candidates."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from statistics import median
from typing import Any

import torch

from ..engine import Engine
from .case import WrongResult
from .measure import clock, race

# Another tile is another order of adding, so a result may differ by some roundings of its largest number.
_TOLERANCE = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
# Less is noise, and the model's choice stays.
_WORTH = 0.97


@dataclass(frozen=True)
class Tuned:
    """One product: its name, sizes, the tile chosen, its median seconds and those of the tile used before."""

    name: str
    problem: Any
    config: Any
    seconds: float
    before: float


def products(engine: Engine, batch: int) -> Iterator[tuple[str, Any, tuple]]:
    """(name, layer, arguments) of every product of a frame with so many targets."""
    cfg, network, device = engine.cfg, engine.network, engine.device
    template, places, width = cfg.template_grid**2, cfg.search_grid**2, cfg.embed_dim
    hidden, dtype = int(width * cfg.mlp_ratio), network.dtype

    def values(rows: int, features: int, kind: torch.dtype) -> torch.Tensor:
        return torch.randn(batch, rows, features, device=device).to(kind)

    stream = partial(values, kind=torch.float32)
    inner = partial(values, kind=dtype)
    yield "patch embedding", network._patch, (inner(places, 3 * cfg.patch_size**2), stream(places, width))
    counts = [template + count for count in cfg.search_tokens(None if network.eliminates else 1.0)]
    for block, (before, after) in zip(network._blocks, pairwise(counts), strict=True):
        for name, layer in (("qkv", block.qkv), ("q", block.q), ("kv", block.kv)):
            if layer is not None:
                yield name, layer, (stream(before, width),)
        if block is network._blocks[-1] and block.keep is None:
            before, after = before - template, after - template  # the template's tokens end with the last attention
        yield "proj", block.proj, (inner(before, width), stream(before, width))
        yield "fc1", block.fc1, (stream(after, width),)
        yield "fc2", block.fc2, (inner(after, hidden), stream(after, width))
    for index, layer in enumerate(network._convolutions):
        channels = width if index == 0 else 3 * (cfg.head_channels >> (index - 1))
        shape = batch, cfg.search_grid, cfg.search_grid, channels
        yield f"conv{index + 1}", layer, (torch.randn(shape, device=device).to(dtype),)


def tune(engine: Engine, batches: list[int], seconds: float, done: Callable[[Tuned], None]) -> list[Tuned]:
    """Measure all candidates of every product once, about `seconds` each, and use the best from now on.

    Raises:
        ValueError: the engine's products do not run in Triton.
        WrongResult: a candidate computes something else.
    """
    on_gpu = engine.device.type == "cuda"
    capability = torch.cuda.get_device_capability(engine.device)[0] if on_gpu else 0  # 0: Triton's interpreter
    tuned, seen = [], set()
    with torch.no_grad():
        for batch in batches:
            for name, layer, arguments in products(engine, batch):
                if not hasattr(layer, "problem"):
                    raise ValueError(
                        f"{name} runs in {type(layer).__module__}, and only Triton's products have tiles to tune: "
                        "a CUDA GPU and float16 or bfloat16 are needed, or OSTRACK_FAST_BACKEND=triton"
                    )
                problem = layer.problem(arguments[0].numel() // arguments[0].shape[-1]).bucket()
                if problem in seen:
                    continue
                seen.add(problem)
                tuned.append(_tune_one(name, layer, arguments, problem, capability, seconds))
                done(tuned[-1])
    return tuned


def _measured_on(device: torch.device) -> str:
    import triton

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "Triton's interpreter"
    return f"measured on {name}, Triton {triton.__version__}"


def _tune_one(name: str, layer: Any, arguments: tuple, problem: Any, capability: int, seconds: float) -> Tuned:
    from ..kernels import tiles

    device = arguments[0].device
    used = tiles.config_for(problem, device)
    expected = layer(*arguments).float()
    bound = _TOLERANCE[arguments[0].dtype if not problem.half else layer.weight.dtype] * float(expected.abs().max())

    def with_tile(config: Any) -> torch.Tensor:
        tiles.set_config(problem, config, capability)
        return layer(*arguments)

    configs = {str(config): config for config in (used, *tiles.candidate_configs(problem))}
    for config in configs.values():
        error = float((with_tile(config).float() - expected).abs().max())
        if not error <= bound:
            raise WrongResult(f"{name} with {config}: wrong by {error:.3g}, allowed is {bound:.3g}")
    times = race({key: partial(with_tile, config) for key, config in configs.items()}, clock(device), seconds)
    middle = {key: median(one) for key, one in times.items()}
    best = min(middle, key=lambda key: middle[key])
    if middle[best] > _WORTH * middle[str(used)]:
        best = str(used)
    tiles.set_config(problem, configs[best], capability, _measured_on(device))
    return Tuned(name, problem, configs[best], middle[best], middle[str(used)])
