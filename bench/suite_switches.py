"""The suite `switches`: a frame as it is, with each of `ostrack_fast.switches` turned, and on every backend.

On a GPU the device time of the frame's CUDA graph alone, which nothing of the host disturbs, and beside it what the
host does around it too ("step").
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from copy import copy
from dataclasses import replace
from functools import partial
from math import ceil
from multiprocessing import get_context
from typing import NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor

from ostrack_fast import ops, switches
from ostrack_fast.config import ModelConfig, get_config
from ostrack_fast.engine import Engine
from ostrack_fast.model import OSTrack
from ostrack_fast.model.cost import stage_flops

from .case import Case, Comparison, Implementation, Options
from .networks import NAMES, half_dtype, make_model
from .suite_track import FRAME, TOLERANCE, smooth_frame, some_boxes, upstream_run

__all__ = ["NAMES", "cases"]


class Variant(NamedTuple):
    """What is set while an engine is built and runs first is what it keeps.

    switches: as in the environment variable. fills_tiles: kept counts that fill tiles, another network. whole_step:
    with what the host does, on a GPU too.
    """

    switches: str = ""
    backend: str = "auto"
    fills_tiles: bool = False
    whole_step: bool = False


def variants(device: torch.device) -> dict[str, Variant]:
    """By name."""
    turned = [f"{name}={'off' if default else 'on'}" for name, default in switches.DEFAULTS.items()]
    # All on together too, because one may bring what another needs: a chain of early launches without gaps.
    every = ",".join(f"{name}=on" for name in switches.DEFAULTS)
    found = {"default": Variant(), **{text: Variant(text) for text in turned}, "all on": Variant(every)}
    found["kept counts fill tiles"] = Variant(fills_tiles=True)
    found["all on, kept counts fill tiles"] = Variant(every, fills_tiles=True)
    found["backend reference"] = Variant(backend="reference")
    if device.type == "cuda":
        found["backend triton"] = Variant(backend="triton")
        found["all on, backend triton"] = Variant(every, "triton")
        found["step"] = Variant(whole_step=True)
    return found


def cases(options: Options) -> Iterator[Case]:
    """A case for every network and number of targets."""
    for name in options.names or NAMES[: 1 if options.quick else 3]:
        for targets in options.chosen_batches:
            flops = targets * sum(stage_flops(get_config(name)).values())
            shape = f"{name}: {FRAME[1]} x {FRAME[0]} px frame"
            build = partial(_compare, name, targets, options)
            yield Case(
                "switches", shape, targets, torch.float32, options.device, flops, 3.0 * FRAME[0] * FRAME[1], build
            )


def filling_tiles(cfg: ModelConfig) -> ModelConfig:
    """Another network: each elimination keeps so many candidates that all tokens are a multiple of 64, a tile's rows.

    The nearest multiple to what the configuration keeps.
    """
    template, left, meant, ratios = cfg.template_grid**2, cfg.search_grid**2, cfg.search_grid**2, []
    for ratio in cfg.ce_keep_ratio:
        meant = ceil(ratio * meant)
        kept = min(left, max(1, round((template + meant) / 64) * 64 - template))
        ratios.append((kept - 0.5) / left)  # the network rounds up
        left = kept
    return replace(cfg, ce_keep_ratio=tuple(ratios))


def _compare(name: str, targets: int, options: Options) -> Comparison:
    device = options.device
    wanted = {label: each for label, each in variants(device).items() if options.wants(label)}
    if device.type == "cuda":
        compile_in_parallel(name, targets, device, list(wanted), max(1, (os.cpu_count() or 1) - 2))
    model, frame = make_model(name, device), smooth_frame()
    upstream = upstream_run(model, frame, targets)
    comparison = Comparison((upstream().to(device),), {})
    comparison.implementations["upstream"] = Implementation(lambda: upstream().to(device), 0.0, torch.float32)
    dtype = _dtype(device)
    for label, variant in wanted.items():
        tolerance = float("inf") if variant.fills_tiles else TOLERANCE[dtype]
        try:
            run = build(model, variant, targets, device)
            comparison.implementations[label] = Implementation(run, tolerance, dtype)
            comparison.check(label)
        # One that fails must not cost the times of all others: it is reported beside them.
        except Exception as error:
            traceback.print_exc(file=sys.stderr)
            comparison.implementations.pop(label, None)
            comparison.skipped[label] = f"{type(error).__name__}: {error}".splitlines()[0]
    return comparison


def _dtype(device: torch.device) -> torch.dtype:
    return half_dtype(device) if device.type == "cuda" else torch.float32


def build(model: OSTrack, variant: Variant, targets: int, device: torch.device) -> Callable[[], Tensor]:
    """What returns the boxes (targets,4) in the next frame, each time the same."""
    frame, boxes = smooth_frame().numpy(), some_boxes(targets)
    if variant.fills_tiles:
        model = copy(model)
        model.cfg = filling_tiles(model.cfg)
    with patch.dict(os.environ, {switches.VARIABLE: variant.switches}), ops.use(variant.backend):
        engine = Engine(model, device, _dtype(device))
        for box in boxes:
            engine.add(frame, box)

        def step() -> Tensor:
            engine.place(boxes)
            return torch.tensor(engine.step(frame), dtype=torch.float64, device=device)[:, :4]

        step()  # captures the frame's graph
    if variant.whole_step or not engine.graphs:
        return step
    engine.place(boxes)

    def replay(held: Engine = engine) -> Tensor:  # a graph does not keep what it reads
        (graph,) = held.graphs.values()
        return graph.replay()[0][:targets, :4]

    return replay


def compile_in_parallel(name: str, targets: int, device: torch.device, labels: Sequence[str], processes: int) -> None:
    """Fill Triton's cache with every variant's kernels, by processes of their own; one after another takes a minute."""
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        running = {label: pool.submit(_compile, name, targets, str(device), label) for label in labels}
        for label, each in running.items():
            if error := each.exception():  # building it here will say more
                print(f"{label}: not compiled beforehand: {error}", file=sys.stderr)


def _compile(name: str, targets: int, device: str, label: str) -> None:
    torch.set_num_threads(1)
    on = torch.device(device)
    with torch.inference_mode():
        build(make_model(name, on), variants(on)[label], targets, on)
