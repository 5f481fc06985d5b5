"""Where the time of a frame goes: stage by stage, beside the least the arithmetic could take."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import torch

from .. import ops
from ..config import ModelConfig
from ..engine import Engine
from .ceilings import Ceilings
from .measure import clock

Box = tuple[float, float, float, float]

# Stages by the names of the ops that make them up.
_OPS = {
    "crop": "crop",
    "attention": "attention and score",
    "eliminate": "elimination",
    "decode": "decode",
    "advance": "box update",
}
_LAYERS = {
    "qkv": "norm, qkv",
    "q": "norm, qkv",
    "kv": "norm, qkv",
    "proj": "projection, residual",
    "fc1": "norm, fc1, gelu",
    "fc2": "fc2, residual",
}


@dataclass(frozen=True)
class Stage:
    """Median seconds of a frame in one stage, how often a frame enters it, and its multiply-adds times two."""

    name: str
    seconds: float
    calls: int
    flops: float


@dataclass(frozen=True)
class Profile:
    """Of a frame: seconds as a user sees them, stages (measured one by one, which costs a little), kernels launched on
    a GPU (None on a CPU), and the floor: weights read or products computed, whichever takes longer.
    """

    seconds: float
    stages: list[Stage]
    kernels: int | None
    floor: float
    bound: str


def profile(engine: Engine, frame: np.ndarray, box: Box, frames: int = 50) -> Profile:
    """Follow a target through the same frame again and again. The engine's targets are forgotten.

    Args:
        frame: (h,w,3) uint8 RGB. box: xywh in its pixels.
    """
    engine.clear()
    engine.add(frame, box)
    seconds = median(_seconds(lambda: engine.step(frame)) for _ in range(frames))
    watch = _Stopwatch(engine.device)
    found = []
    with _watched(engine, watch), torch.no_grad():
        image = torch.from_numpy(frame).to(engine.device)
        for _ in range(3):
            engine._locate(1, image)
        for _ in range(frames):
            watch.start()
            engine._locate(1, image)
            found.append(watch.read())
    work = stage_flops(engine.cfg, engine.network.eliminates)
    stages = [
        Stage(name, median(one[name][0] for one in found), calls, work.get(name, 0.0))
        for name, (_, calls) in found[0].items()
    ]
    ceilings = Ceilings(engine.device, clock(engine.device))
    weights = engine.network.parameters * engine.dtype.itemsize
    floor, bound = ceilings.seconds(sum(work.values()), float(weights), engine.dtype)
    return Profile(seconds, stages, _kernels(engine, frame), floor, bound)


def stage_flops(cfg: ModelConfig, elimination: bool = True) -> dict[str, float]:
    """Twice the multiply-adds of a frame's products, by stage; the template is embedded beforehand."""
    width, hidden = cfg.embed_dim, int(cfg.embed_dim * cfg.mlp_ratio)
    template, places = cfg.template_grid**2, cfg.search_grid**2
    counts = [template + count for count in cfg.search_tokens(None if elimination else 1.0)]
    work: dict[str, float] = defaultdict(float)
    work["patch embedding"] = places * 3 * cfg.patch_size**2 * width
    for before, after in pairwise(counts):
        work["norm, qkv"] += 3 * before * width**2
        work["attention and score"] += 2 * before**2 * width
        work["projection, residual"] += before * width**2
        work["norm, fc1, gelu"] += after * width * hidden
        work["fc2, residual"] += after * width * hidden
    widths = [cfg.embed_dim, *(cfg.head_channels >> level for level in range(4))]
    work["norm, restoration, head"] = places * (3 * 9 * sum(a * b for a, b in pairwise(widths)) + 5 * widths[-1])
    return {name: 2.0 * count for name, count in work.items()}


class _Stopwatch:
    """Time between marks, on the CPU's clock or in a GPU's stream."""

    def __init__(self, device: torch.device):
        self._cuda = device.type == "cuda"
        self._marks: list[tuple[str, Any, Any]] = []

    def start(self) -> None:
        self._marks.clear()

    def _mark(self) -> Any:
        if not self._cuda:
            return perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def watch(self, name: str, function: Callable) -> Callable:
        def run(*arguments: Any, **options: Any) -> Any:
            begin = self._mark()
            result = function(*arguments, **options)
            self._marks.append((name, begin, self._mark()))
            return result

        return run

    def read(self) -> dict[str, tuple[float, int]]:
        """Seconds and calls by name, since `start`."""
        if self._cuda:
            torch.cuda.synchronize()
        total: dict[str, tuple[float, int]] = {}
        for name, begin, end in self._marks:
            seconds, calls = total.get(name, (0.0, 0))
            total[name] = seconds + (begin.elapsed_time(end) / 1e3 if self._cuda else end - begin), calls + 1
        return total


@contextmanager
def _watched(engine: Engine, watch: _Stopwatch) -> Iterator[None]:
    """The engine's stages go by the stopwatch; eagerly, as a graph's inside cannot be timed."""
    network, before = engine.network, {name: getattr(ops, name) for name in _OPS}
    timed = copy(network)
    timed._patch = watch.watch("patch embedding", network._patch)  # type: ignore[assignment]
    timed._blocks = []
    for block in network._blocks:
        layers = {name: getattr(block, name) for name in _LAYERS}
        watched: dict[str, Any] = {name: each and watch.watch(_LAYERS[name], each) for name, each in layers.items()}
        timed._blocks.append(block._replace(**watched))
    timed._cross_attention = watch.watch(_OPS["attention"], network._cross_attention)
    timed._head = watch.watch("norm, restoration, head", network._head)  # type: ignore[method-assign]
    engine.network = timed
    for name, stage in _OPS.items():
        setattr(ops, name, watch.watch(stage, before[name]))
    try:
        yield
    finally:
        engine.network = network
        for name, function in before.items():
            setattr(ops, name, function)


def _seconds(run: Callable[[], Any]) -> float:
    begin = perf_counter()
    run()
    return perf_counter() - begin


def _kernels(engine: Engine, frame: np.ndarray) -> int | None:
    """How many kernels a frame launches, copies and fills included."""
    if engine.device.type != "cuda":
        return None
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as recorded:
        engine.step(frame)
        torch.cuda.synchronize(engine.device)
    return sum(event.device_type == torch.autograd.DeviceType.CUDA for event in recorded.events())
