"""The suite `track`: a whole frame, from pixels to box, for one target and for many."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from ostrack_fast.engine import Engine
from ostrack_fast.model import OSTrack

from .case import Case, Comparison, Implementation, Options, short_name
from .networks import NAMES, engine_dtypes, make_model, network_cases, pause
from .upstream import Box, upstream_tracking

__all__ = ["NAMES", "cases"]

FRAME = 1080, 1920
# Largest error of a box, as a share of its largest coordinate: a score map of random pixels has many near maxima.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 0.2, torch.bfloat16: 0.2, torch.int8: 0.3}


def cases(options: Options) -> Iterator[Case]:
    """A case for every network and number of targets; an implementation for every dtype worth timing."""
    shape, moved = f"{FRAME[1]} x {FRAME[0]} px frame", 3.0 * FRAME[0] * FRAME[1]
    return network_cases("track", options, lambda cfg: (shape, moved), _compare)


def smooth_frame() -> Tensor:
    """(1080,1920,3) uint8, so smooth that a crop looks like a picture and not like noise."""
    coarse = np.random.default_rng(0).random((3, 27, 48), dtype=np.float32)
    fine = torch.nn.functional.interpolate(torch.from_numpy(coarse)[None], size=FRAME, mode="bicubic")[0]
    return (fine.permute(1, 2, 0).clamp(0, 1) * 255).to(torch.uint8).contiguous()


def engine_tracking(model: OSTrack, frame: Tensor, boxes: list[Box], dtype: torch.dtype) -> Callable[[], Tensor]:
    """The engine's boxes (targets,4) in the next frame."""
    engine = Engine(model, model.backbone.norm.weight.device, dtype)
    for box in boxes:
        engine.add(frame.numpy(), box)

    def run() -> Tensor:
        engine.place(boxes)
        return torch.tensor(engine.step(frame.numpy()), dtype=torch.float64)[:, :4]

    run()  # captures the frame's graph
    return run


def _compare(name: str, targets: int, options: Options) -> Comparison:
    model, frame = make_model(name, options.device), smooth_frame()
    boxes = [(300.0 + 37 * index, 250.0 + 11 * index, 180.0, 140.0 + index) for index in range(targets)]
    upstream = upstream_tracking(model, frame, boxes)
    comparison = Comparison((upstream(),), {"upstream": Implementation(upstream, 0.0, torch.float32)}, pause=pause())
    for dtype in engine_dtypes(options.device):
        if options.wants(label := f"engine {short_name(dtype)}", dtype):
            run = engine_tracking(model, frame, boxes, dtype)
            comparison.implementations[label] = Implementation(run, TOLERANCE[dtype], dtype)
    return comparison
