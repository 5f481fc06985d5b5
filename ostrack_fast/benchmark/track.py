"""The suite `track`: a whole frame, from pixels to box, for one target and for many."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ..config import get_config
from ..engine import Engine
from ..ops.layers import fast_bfloat16, why_no_int8
from .case import Case, Contender, Contest, Options
from .model import NAMES, make_model
from .profile import stage_flops
from .published_network import PublishedNetwork, PublishedTracker

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
            moved = float(_FRAME[0] * _FRAME[1] * 3)
            yield Case(
                "track", shape, targets, torch.float32, options.device, flops, moved,
                partial(_contest, name, targets, options),
            )  # fmt: skip


def _contest(name: str, targets: int, options: Options) -> Contest:
    device = options.device
    model = make_model(name, device)
    # Smooth, so that a crop looks like a picture and not like noise.
    coarse = np.random.default_rng(0).random((3, 27, 48), dtype=np.float32)
    fine = torch.nn.functional.interpolate(torch.from_numpy(coarse)[None], size=_FRAME, mode="bicubic")[0]
    frame = (fine.permute(1, 2, 0).clamp(0, 1) * 255).to(torch.uint8).contiguous()
    boxes = [(300.0 + 37 * index, 250.0 + 11 * index, 180.0, 140.0 + index) for index in range(targets)]
    published = [PublishedTracker(PublishedNetwork(model)) for _ in boxes]
    for tracker, box in zip(published, boxes, strict=True):
        tracker.initialize(frame, box)

    def by_published() -> Tensor:
        rows = []
        for tracker, box in zip(published, boxes, strict=True):
            tracker.box = box
            rows.append(tracker.track(frame))
        return torch.tensor(rows, dtype=torch.float64)

    contest = Contest((by_published(),), {"published": Contender(by_published, 0.0, torch.float32)})
    half = torch.float16 if device.type == "cuda" else torch.bfloat16
    kinds = [torch.float32] + ([half] if device.type == "cuda" or fast_bfloat16() else [])
    kinds += [torch.int8] if why_no_int8(device) is None else []
    for dtype in (kind for kind in kinds if options.dtypes is None or kind in options.dtypes):
        run = _by_engine(Engine(model, device, dtype), frame.numpy(), boxes)
        contest.contenders[f"ours {str(dtype).removeprefix('torch.')}"] = Contender(run, _TOLERANCE[dtype], dtype)
    return contest


def _by_engine(engine: Engine, frame: np.ndarray, boxes: list[tuple[float, float, float, float]]) -> Callable:
    for box in boxes:
        engine.add(frame, box)

    def run() -> Tensor:
        engine.place(boxes)
        return torch.tensor(engine.step(frame), dtype=torch.float64)[:, :4]

    return run
