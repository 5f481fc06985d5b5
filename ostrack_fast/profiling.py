"""Where the time of a frame goes, beside the least the arithmetic could take.

On a CPU stage by stage, from the ranges that the engine names in a trace; on a GPU node by node of the frame's graph.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity

from .bench.roofline import Roofline
from .engine import Engine
from .inputs import Box
from .model.cost import stage_flops
from .timing import clock


@dataclass(frozen=True)
class Stage:
    """Mean seconds of a frame in one stage, how often a frame enters it, and its multiply-adds times two."""

    name: str
    seconds: float
    calls: int
    flops: float


@dataclass(frozen=True)
class Node:
    """A kernel, copy or fill on the device: median seconds, and the median idle seconds before it."""

    name: str
    seconds: float
    gap: float


@dataclass(frozen=True)
class Profile:
    """A frame: seconds as a user sees them, its stages (empty on a GPU), its nodes in order (empty on a CPU), and the
    roofline: weights read or matmuls computed, whichever takes longer.
    """

    seconds: float
    stages: list[Stage]
    nodes: list[Node]
    roofline: float
    bound: str


def profile(engine: Engine, frame: np.ndarray, box: Box, frames: int = 50) -> Profile:
    """Follow a target through the same frame again and again. The engine's targets are forgotten.

    Args:
        frame: (h,w,3) uint8 RGB. box: xywh in its pixels.
    """
    engine.clear()
    engine.add(frame, box)

    def step() -> None:
        engine.place([box])
        engine.step(frame)

    for _ in range(3):
        step()
    times = []
    for _ in range(frames):
        begin = perf_counter()
        step()
        times.append(perf_counter() - begin)
    work = stage_flops(engine.cfg, engine.network.eliminates)
    on_gpu = engine.device.type == "cuda"
    roofline = Roofline(engine.device, clock(engine.device))
    weights = float(engine.network.parameters * engine.dtype.itemsize)
    least, bound = roofline.seconds(sum(work.values()), weights, engine.dtype)
    stages = [] if on_gpu else _stages(step, frames, work)
    return Profile(median(times), stages, nodes(step, frames) if on_gpu else [], least, bound)


def _stages(step: Callable[[], Any], frames: int, work: dict[str, float]) -> list[Stage]:
    with torch.profiler.profile(activities=[ProfilerActivity.CPU]) as recorded:
        for _ in range(frames):
            step()
    return [
        Stage(one.key, one.cpu_time_total / 1e6 / frames, one.count // frames, work.get(one.key, 0.0))
        for one in recorded.key_averages()
        if one.is_user_annotation
    ]


def nodes(run: Callable[[], Any], times: int = 20, device: DeviceType = DeviceType.CUDA) -> list[Node]:
    """Every node that a run launches on the device, in order.

    Raises:
        RuntimeError: the runs do not launch the same nodes, so they cannot be laid one over the other.
    """
    activity = ProfilerActivity.CUDA if device == DeviceType.CUDA else ProfilerActivity.CPU
    for repeats in (3, times):  # the first trace of a process may miss what runs while the profiler starts
        with torch.profiler.profile(activities=[activity]) as recorded:
            for _ in range(repeats):
                run()
            if device == DeviceType.CUDA:
                torch.cuda.synchronize()
    events = [event for event in recorded.events() if event.device_type == device and not event.is_user_annotation]
    events.sort(key=lambda event: event.time_range.start)
    count, rest = divmod(len(events), times)
    runs = [events[index * count : (index + 1) * count] for index in range(times)]
    if rest or count == 0 or any([e.name for e in one] != [e.name for e in runs[0]] for one in runs):
        raise RuntimeError(f"{len(events)} nodes in {times} runs: every run must launch the same ones")
    found = []
    for index, first in enumerate(runs[0]):
        seconds = median(one[index].time_range.elapsed_us() for one in runs) / 1e6
        gaps = [one[index].time_range.start - one[index - 1].time_range.end for one in runs] if index else [0.0]
        found.append(Node(first.name, seconds, median(gaps) / 1e6))
    return found
