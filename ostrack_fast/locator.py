"""One frame, as the published tracker's `track`: crop, network, decoding, box update."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import astuple
from math import pi
from typing import Any

import torch
from torch import Tensor

from . import ops
from .config import ModelConfig
from .model import FrozenOSTrack, Template, stage
from .ops.recording import Recordings
from .smoothing import Smoothing, smoothed_decode
from .targets import Targets

# Pixels of the box that stay inside the frame, at least (the upstream call of `clip_box`).
CLIP_MARGIN = 10


class Locator:
    """Finds targets in frames and in search crops. It knows the network and no target: those are given.

    On a CPU, for one target, the kernels behind the crop are recorded and called again (see `Recordings`).
    """

    def __init__(self, network: FrozenOSTrack, cfg: ModelConfig, device: torch.device, smoothing: Smoothing | None):
        self.network, self.cfg, self._smoothing = network, cfg, smoothing
        self.window = hann_window(cfg.search_grid).to(device)
        # The backends of the ops around the network are chosen once, for tensors as they will be.
        grid = cfg.search_grid
        box = torch.ones(1, 4, dtype=torch.float64, device=device)
        frame = torch.zeros(8, 8, 3, dtype=torch.uint8, device=device)
        maps = [torch.zeros(1, n, grid, grid, dtype=torch.float32, device=device) for n in (1, 2, 2)]
        self._crop = ops.OPS["crop"].bind(frame, box, cfg.search_factor, cfg.search_size, network.dtype)
        self._decode = ops.OPS["decode"].bind(*maps, self.window)
        found = torch.ones(1, 4, dtype=torch.float32, device=device)
        self._update_box = ops.OPS["update_box"].bind(found, box, (8, 8), cfg.search_factor, CLIP_MARGIN)
        self._crop_patches = network.crop_patches()
        self._tail = network.tail(self.window)
        self._recordings = Recordings()

    def __call__(self, targets: Targets, frame: Tensor, smoothed: bool = True) -> tuple[Tensor, Tensor | None]:
        """Find all targets in a frame.

        Returns (n,5) float64, box xywh in pixels and score; and the cells (n,K) left by elimination, if it is known.
        """
        cfg, box, smoothing = self.cfg, targets.box, self._smoothing if smoothed else None
        size = frame.shape[0], frame.shape[1]
        with stage("crop"):
            search = self._crop_patches(frame, box)[0] if self._crop_patches else self._cropped(frame, box)
        if self._tail is not None:
            features = self.network.features(*self._inputs(targets, search))
            with stage("decode"):
                how = astuple(smoothing) if smoothing else None
                found = self._tail(features, box, size, cfg.search_factor, CLIP_MARGIN, how)
            return found, self.network.candidates

        def moved(score_map: Tensor, size_map: Tensor, offset_map: Tensor, candidates: Any) -> tuple[Any, ...]:
            with stage("decode"):
                inside, score = self._found((score_map, size_map, offset_map), box, smoothing)
            with stage("box update"):
                return self._update_box(inside, box, size, cfg.search_factor, CLIP_MARGIN), score, candidates

        if smoothing is None:
            boxes, score, candidates = self._recorded(lambda x: moved(*self.maps(targets, x)), search, *targets, *size)
        else:  # which PyTorch computes
            boxes, score, candidates = moved(*self._recorded(lambda x: self.maps(targets, x), search, "maps", *targets))
        return torch.cat((boxes, score[:, None].double()), dim=1), candidates

    def maps(self, targets: Targets, search: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Score, size and offset maps of search crops, one for each target, and the cells left, if they are known."""
        return *self.network(*self._inputs(targets, search)), self.network.candidates

    def in_crops(self, targets: Targets, search: Tensor) -> tuple[Tensor, ...]:
        """Boxes (n,4) cxcywh in units of the search crops, and the maps. The next call overwrites them."""

        def located(x: Tensor) -> tuple[Tensor, ...]:
            *maps, _ = self.maps(targets, x)
            return self.decode(*maps), *maps

        return self._recorded(located, search, "crops", *targets)

    def decode(self, score: Tensor, size: Tensor, offset: Tensor) -> Tensor:
        """Boxes (n,4) cxcywh in units of the crop where the score is highest; no place is preferred."""
        return self._decode(score, size, offset, None)[0]

    def each(
        self, targets: Targets, frames: Sequence[Tensor], maps: Callable[[Tensor], Sequence[Any]]
    ) -> tuple[Tensor, Tensor | None]:
        """Find each target in a frame of its own; returns as a call. Behind them there may be rows without a frame.

        `maps` is the method of that name for these targets, as a graph where there are graphs.
        """
        count, device, size = len(frames), targets.box.device, self.cfg.search_size
        search = torch.zeros(len(targets.box), 3, size, size, dtype=self.network.dtype, device=device)
        boxes = targets.box[:count].split(1)
        with stage("crop"):
            for row, (frame, box) in enumerate(zip(frames, boxes, strict=True)):
                search[row] = self._cropped(frame.to(device), box)[0]
        *mapped, candidates = maps(search)
        with stage("decode"):
            found, score = self._found([each[:count] for each in mapped], targets.box[:count], self._smoothing)
        with stage("box update"):
            moved = [
                self._update_box(one, box, (len(frame), frame.shape[1]), self.cfg.search_factor, CLIP_MARGIN)
                for one, box, frame in zip(found.split(1), boxes, frames, strict=True)
            ]
        return torch.cat((torch.cat(moved), score[:, None].double()), dim=1), candidates

    def _inputs(self, targets: Targets, search: Tensor) -> tuple[Template, Tensor, Tensor | None]:
        mask = targets.mask if self.network.eliminates else None
        return Template(targets.tokens, targets.qkv), search, mask

    def _cropped(self, frame: Tensor, box: Tensor) -> Tensor:
        return self._crop(frame, box, self.cfg.search_factor, self.cfg.search_size, self.network.dtype)[0]

    def _found(self, maps: Sequence[Tensor], box: Tensor, smoothing: Smoothing | None) -> tuple[Tensor, Tensor]:
        """Boxes and scores as `ops.decode` gives them, of targets searched around these boxes."""
        if smoothing is None:
            return self._decode(*maps, self.window)
        score, size, offset = maps
        return smoothed_decode(score, size, offset, self.window, box, self.cfg.search_factor, smoothing)

    def _recorded(self, function: Callable[[Tensor], tuple[Any, ...]], search: Tensor, *reads: Any) -> tuple[Any, ...]:
        """`function(search)`, see `Recordings`: on a CPU without the Python between kernels where that counts."""
        # With more targets kernels take so long that it hardly does.
        if not self.network.recordable or len(search) > 1 or torch.autograd._profiler_enabled():
            return function(search)
        return self._recordings(function, search, *reads)


def hann_window(grid: int) -> Tensor:
    """The weight (F,F) of every cell of the score map: 0.5 (1 - cos(2 pi i / (F+1))), i = 1..F, along both sides.

    Source: upstream `hann2d` with `centered=True`. It falls off towards the border and never reaches zero.
    """
    side = 0.5 * (1 - torch.cos(2 * pi / (grid + 1) * torch.arange(1, grid + 1, dtype=torch.float32, device="cpu")))
    return side[:, None] * side[None, :]
