"""The suite `track`: a whole frame, from pixels to box, for one target and for many."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ostrack_fast.config import get_config
from ostrack_fast.engine import Engine

from .case import Case, Comparison, Implementation, Options, short_name
from .networks import NAMES, engine_dtypes, make_model, stage_flops
from .upstream import UpstreamNetwork, UpstreamTracker

__all__ = ["NAMES", "cases"]

_FRAME = 1080, 1920
# Largest error of a box, as a share of its largest coordinate: a score map of random pixels has many near maxima.
_TOLERANCE = {torch.float32: 1e-4, torch.float16: 0.2, torch.bfloat16: 0.2, torch.int8: 0.3}


def cases(options: Options) -> Iterator[Case]:
    """A case for every network and number of targets."""
    for name in options.names or (NAMES[:1] if options.quick else NAMES[:3]):
        cfg = get_config(name)
        for targets in options.chosen_batches:
            flops = targets * sum(stage_flops(cfg).values())
            shape = f"{name}: {_FRAME[1]} x {_FRAME[0]} px frame"
            build = partial(_compare, name, targets, options)
            moved = float(_FRAME[0] * _FRAME[1] * 3)
            yield Case("track", shape, targets, torch.float32, options.device, flops, moved, build)


def smooth_frame() -> Tensor:
    """(1080,1920,3) uint8, so smooth that a crop looks like a picture and not like noise."""
    coarse = np.random.default_rng(0).random((3, 27, 48), dtype=np.float32)
    fine = torch.nn.functional.interpolate(torch.from_numpy(coarse)[None], size=_FRAME, mode="bicubic")[0]
    return (fine.permute(1, 2, 0).clamp(0, 1) * 255).to(torch.uint8).contiguous()


def _compare(name: str, targets: int, options: Options) -> Comparison:
    device = options.device
    model, frame = make_model(name, device), smooth_frame()
    boxes = [(300.0 + 37 * index, 250.0 + 11 * index, 180.0, 140.0 + index) for index in range(targets)]
    trackers = [UpstreamTracker(UpstreamNetwork(model)) for _ in boxes]
    for tracker, box in zip(trackers, boxes, strict=True):
        tracker.initialize(frame, box)

    def upstream() -> Tensor:
        rows = []
        for tracker, box in zip(trackers, boxes, strict=True):
            tracker.box = box
            rows.append(tracker.track(frame))
        return torch.tensor(rows, dtype=torch.float64)

    comparison = Comparison((upstream(),), {"upstream": Implementation(upstream, 0.0, torch.float32)})
    for dtype in (each for each in engine_dtypes(device) if options.dtypes is None or each in options.dtypes):
        run = _by_engine(Engine(model, device, dtype), frame.numpy(), boxes)
        comparison.implementations[f"engine {short_name(dtype)}"] = Implementation(run, _TOLERANCE[dtype], dtype)
    return comparison


def _by_engine(engine: Engine, frame: np.ndarray, boxes: list[tuple[float, float, float, float]]) -> Callable:
    for box in boxes:
        engine.add(frame, box)

    def run() -> Tensor:
        engine.place(boxes)
        return torch.tensor(engine.step(frame), dtype=torch.float64)[:, :4]

    return run
