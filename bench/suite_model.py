"""The suite `model`: the whole network, from the upstream formulation step by step to the engine."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from functools import partial

import torch

from ostrack_fast.config import ModelConfig, get_config

from .case import Case, Comparison, Implementation, Options
from .memory import peak_bytes
from .networks import NAMES, baselines, make_model, parameter_count, stage_flops, steps
from .upstream import UpstreamNetwork

__all__ = ["NAMES", "cases"]

# Mean error over a whole network. Half precision and int8 also change which candidates a network with random weights
# keeps, whose candidates are nearly alike: this finds what is broken, bench/accuracy.py measures what is lost.
_TOLERANCE = {torch.float32: 1e-4, torch.float16: 5e-2, torch.bfloat16: 0.25, torch.int8: 0.4}


def cases(options: Options) -> Iterator[Case]:
    """A case for every network and batch; the implementations have compute dtypes of their own, the case is float32."""
    for name in options.names or (NAMES[:1] if options.quick else NAMES[:3]):
        cfg = get_config(name)
        for batch in options.chosen_batches:
            flops = batch * sum(stage_flops(cfg).values())
            build = partial(_compare, name, cfg, batch, options)
            shape = f"{name}: {cfg.template_size} and {cfg.search_size} px"
            memory = None if options.quick else partial(peak_bytes, name, batch, device=options.device)
            moved = 4.0 * parameter_count(cfg)
            yield Case("model", shape, batch, torch.float32, options.device, flops, moved, build, memory)


def _compare(name: str, cfg: ModelConfig, batch: int, options: Options) -> Comparison:
    model = make_model(name, options.device)
    z = torch.randn(batch, 3, cfg.template_size, cfg.template_size, device=options.device)
    x = torch.randn(batch, 3, cfg.search_size, cfg.search_size, device=options.device)
    entries = steps(options.device) | baselines(options.device)
    if options.quick:  # compiling takes minutes
        entries = {label: entry for label, entry in entries.items() if "compile" not in label}
    if options.dtypes is not None:
        chosen = {"upstream": entries["upstream"]}
        entries = chosen | {label: entry for label, entry in entries.items() if entry[1] in options.dtypes}
    comparison = Comparison(UpstreamNetwork(deepcopy(model).double())(z, x), {}, mean_error=True)
    for label, (build, dtype) in entries.items():
        # Without elimination it is another function, there for comparison.
        tolerance = float("inf") if "all candidates" in label else _TOLERANCE[dtype]
        comparison.implementations[label] = Implementation(build(model, z, x), tolerance, dtype)
    return comparison
