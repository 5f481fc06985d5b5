"""Is the target still there, and where is it again: a decision about every result of a tracker.

OSTrack as published always answers with a box. Here low scores in a row mean that the target is lost. From then on its
box stays as it was last known, in size and place, and a search with the unchanged template goes through a part of the
frame around it that grows with every frame up to the whole of it. What the search finds counts once it is verified
against the template from both sides: the network, given the found box as template, must find the original box in the
original frame; and the same must hold in the next frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil, sqrt

import numpy as np
import torch

from .boxes import paired_iou, xywh_to_xyxy
from .engine import Engine

# Windows of a round, about; beyond, each covers more, up to so many times a search region's side.
_MOST_WINDOWS, _MOST_ZOOM = 60, 1.7

Row = Sequence[float]  # x, y, width, height, score


@dataclass(frozen=True)
class Redetection:
    """When a target counts as lost, and when as found again. The defaults were chosen for the weights `small`.

    Args:
        lost_below: a score below this speaks for a loss.
        lost_after: so many such scores in a row are a loss.
        found_from: score from which on a place is looked at closely.
        agreement: overlap (IoU) of the original box with what the found one leads back to.
        found_after: so many verified frames in a row are the target.
        growth: by this factor the side of the part of the frame that is searched grows with every frame.
        windows: search regions looked at in each frame.
    """

    lost_below: float = 0.35
    lost_after: int = 3
    found_from: float = 0.5
    agreement: float = 0.5
    found_after: int = 2
    growth: float = 1.2
    windows: int = 4


@dataclass
class Presence:
    """One target's state between frames.

    Args:
        engine: the engine that follows it.
        settings: see `Redetection`.
        frame, box: the target in its first frame, which is copied as far as the search region around it reaches.
    """

    engine: Engine
    settings: Redetection
    known: Row  # the box when the target was last seen
    original: np.ndarray  # the surroundings of the target in its first frame
    original_box: Row  # the target's box in them
    lost: bool = False
    doubtful: int = 0  # low scores in a row
    verified: int = 0  # verified frames in a row, while lost
    gone: int = 0  # frames since the loss
    _waiting: list[Row] = field(default_factory=list)  # windows of this round that were not looked at yet

    @classmethod
    def begin(cls, engine: Engine, settings: Redetection, frame: np.ndarray, box: Row) -> Presence:
        """A target that has just been given."""
        x, y, w, h = box
        reach = ceil(0.5 * engine.cfg.search_factor * sqrt(w * h)) + 2
        left, top = max(0, int(x + 0.5 * w) - reach), max(0, int(y + 0.5 * h) - reach)
        around = frame[top : int(y + 0.5 * h) + reach + 1, left : int(x + 0.5 * w) + reach + 1].copy()
        return cls(engine, settings, tuple(box), around, (x - left, y - top, w, h))

    def judge(self, frame: np.ndarray, row: int, found: Row) -> Row:
        """Look at what the engine found in this frame for the target of this row.

        Returns where the target is to be searched in the next frame, and the score that speaks for it. `lost` says
        whether it is lost.
        """
        if not self.lost:
            return self._while_seen(found)
        candidate = self._search(frame, row, found)
        if candidate is None:
            self.verified = 0
            return (*self.known, found[4])
        self.verified += 1
        if self.verified >= self.settings.found_after:
            self.lost, self.doubtful, self.known = False, 0, tuple(candidate[:4])
            self._waiting.clear()
        return candidate

    def move(self, box: Row) -> None:
        """The target is at this box, xywh, as whoever calls it knows: it is not lost."""
        self.known, self.lost, self.doubtful = tuple(box), False, 0
        self._waiting.clear()

    def _while_seen(self, found: Row) -> Row:
        self.doubtful = self.doubtful + 1 if found[4] < self.settings.lost_below else 0
        if self.doubtful == 0:
            self.known = tuple(found[:4])
        if self.doubtful < self.settings.lost_after:
            return found
        self.lost, self.gone, self.verified = True, 0, 0
        return (*self.known, found[4])

    def _search(self, frame: np.ndarray, row: int, found: Row) -> Row | None:
        """The best place of this frame that looks like the target from both sides, if there is one."""
        self.gone += 1
        places = [found]
        if not self.verified:
            places += self.engine.look(frame, row, self._next_windows(frame.shape[1], frame.shape[0]))
        best = max(places, key=lambda place: place[4])
        if best[4] < self.settings.found_from:
            return None
        # From its own middle, and at the size that the target had.
        x, y, w, h = best[:4]
        width, height = self.known[2:]
        (closer,) = self.engine.look(frame, row, [(x + 0.5 * (w - width), y + 0.5 * (h - height), width, height)])
        return closer if closer[4] >= self.settings.found_from and self._leads_back(frame, closer) else None

    def _leads_back(self, frame: np.ndarray, found: Row) -> bool:
        """Whether the network, with the found box as template, finds the original box in the original frame."""
        row = self.engine.add(frame, tuple(found[:4]))  # type: ignore[arg-type]
        try:
            (back,) = self.engine.look(self.original, row, [self.original_box])
        finally:
            self.engine.drop(row)
        return overlap(back[:4], self.original_box) >= self.settings.agreement

    def _next_windows(self, width: int, height: int) -> list[Row]:
        """The boxes around which to search now: those nearest to the last known place first, then the next round."""
        if not self._waiting:
            self._waiting = self._round(width, height)
        now, self._waiting = self._waiting[: self.settings.windows], self._waiting[self.settings.windows :]
        return now

    def _round(self, width: int, height: int) -> list[Row]:
        """Windows half a search region apart that cover the part of the frame that is searched by now."""
        x, y, w, h = self.known
        side = self.engine.cfg.search_factor * sqrt(w * h)
        reach = min(0.5 * side * self.settings.growth ** min(self.gone, 100), 2.0 * max(width, height))
        centre = (x + 0.5 * w, y + 0.5 * h)
        # A small target in a large frame: larger windows first find what is then looked at closely.
        area = min(2 * reach, width + side) * min(2 * reach, height + side)
        zoom = min(max(sqrt(area / (_MOST_WINDOWS * 0.25 * side**2)), 1.0), _MOST_ZOOM)
        columns, rows = (
            _steps(middle, reach, 0.5 * zoom * side, end) for middle, end in zip(centre, (width, height), strict=True)
        )
        places = sorted(
            ((column, row) for column in columns for row in rows),
            key=lambda place: (place[0] - centre[0]) ** 2 + (place[1] - centre[1]) ** 2,
        )
        # The engine itself looks at the last known place.
        others = [place for place in places if place != centre] or [centre]
        return [(cx - 0.5 * zoom * w, cy - 0.5 * zoom * h, zoom * w, zoom * h) for cx, cy in others]


def _steps(centre: float, reach: float, step: float, end: int) -> list[float]:
    """Places from the centre outwards in both directions, `step` apart, as far as `reach` and the frame go."""
    count = int(reach / step)
    places = [centre + step * index for index in range(-count, count + 1)]
    return [place for place in places if -0.25 * step < place < end + 0.25 * step] or [centre]


def overlap(a: Row, b: Row) -> float:
    """IoU of two xywh boxes."""
    first, second = (xywh_to_xyxy(torch.tensor(list(box), dtype=torch.float64, device="cpu")) for box in (a, b))
    return float(paired_iou(first, second)[0])
