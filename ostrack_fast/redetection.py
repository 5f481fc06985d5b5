"""Is the target still there, and where is it again: a decision about every result of a tracker.

OSTrack as published always answers with a box, and where the target has gone its score often stays high on whatever
stands out. So its colours are compared with those of the first frame as well. When they or the score speak against the
target several frames in a row, it is lost: its box stays as it was last known, in size and place, and a search with the
unchanged template goes through a part of the frame around it that grows with every frame up to the whole of it. What
the search finds counts once score and colours agree with the target's in several frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import sqrt
from numbers import Integral

import numpy as np
from numpy.typing import NDArray

from .appearance import colours, likeness
from .engine import Engine
from .settings import check_ranges

Row = Sequence[float]  # x, y, width, height, score

# About the most windows of a round. Larger areas get larger windows, up to this multiple of a search region's side.
_MOST_WINDOWS, _MOST_ZOOM = 60, 1.7
# Weight of a new frame in what is usual for a target.
_NEW = 0.05


@dataclass(frozen=True)
class Redetection:
    """When a target counts as lost, and when as found again. The defaults were chosen for the weights `small`.

    Likeness is that of colours to the first frame's, as a share of what is usual for the target.

    Args:
        lost_below: a score below this, together with a likeness below `doubtful_likeness`, speaks for a loss.
        doubtful_likeness: see `lost_below`.
        lost_likeness: a likeness below this speaks for a loss whatever the score.
        lost_after: number of frames in a row that must speak for a loss.
        found_from, found_likeness: the least score and likeness of a place that may be the target.
        found_after: number of such frames in a row that count as the target.
        growth: factor by which the side of the searched part of the frame grows with every frame.
        windows: search regions looked at in each frame.
    """

    lost_below: float = 0.25
    doubtful_likeness: float = 0.7
    lost_likeness: float = 0.4
    lost_after: int = 3
    found_from: float = 0.4
    found_likeness: float = 0.75
    found_after: int = 2
    growth: float = 1.2
    windows: int = 4

    def __post_init__(self) -> None:
        check_ranges(
            self, lost_below=(0, 1e6), doubtful_likeness=(0, 1e6), lost_likeness=(0, 1e6), lost_after=(1, 1e9),
            found_from=(0, 1e6), found_likeness=(0, 1e6), found_after=(1, 1e9), growth=(1, 100), windows=(1, 1e6),
        )  # fmt: skip
        if not isinstance(self.windows, Integral):
            raise TypeError(f"windows={self.windows!r} must be a whole number")


@dataclass
class Presence:
    """One target's state between frames; make it with `begin`.

    Args:
        engine: the engine that follows it.
        settings: see `Redetection`.
        known: the box when the target was last seen, xywh in pixels.
        looks: its colours in the first frame.

    Attributes:
        lost: whether it is lost.
    """

    engine: Engine
    settings: Redetection
    known: Row
    looks: NDArray[np.float64]
    lost: bool = False
    _usual: float = 1.0  # likeness in frames in which it is seen
    _doubtful: int = 0  # frames in a row that speak for a loss
    _verified: int = 0  # frames in a row that speak for the target, while lost
    _gone: int = 0  # frames since the loss
    _waiting: list[Row] = field(default_factory=list)  # windows of this round that were not looked at yet

    @classmethod
    def begin(cls, engine: Engine, settings: Redetection, frame: np.ndarray, box: Row) -> Presence:
        """A target that has just been given by its box in a frame (h,w,3) uint8 RGB."""
        return cls(engine, settings, tuple(box), colours(frame, box))

    def move(self, box: Row) -> None:
        """The target is at this box, xywh, as whoever calls it knows: it is not lost."""
        self.known, self.lost, self._doubtful = tuple(box), False, 0
        self._waiting.clear()

    def judge(self, frame: np.ndarray, row: int, found: Row) -> Row:
        """Look at what the engine found in this frame for the target of this row.

        Returns where the target is to be searched in the next frame, and the score that speaks for it.
        """
        return self._while_lost(frame, row, found) if self.lost else self._while_seen(frame, found)

    def _likeness(self, frame: np.ndarray, box: Row) -> float:
        return likeness(self.looks, colours(frame, box[:4])) / self._usual

    def _while_seen(self, frame: np.ndarray, found: Row) -> Row:
        settings, alike = self.settings, self._likeness(frame, found)
        doubtful = alike < settings.lost_likeness or (
            found[4] < settings.lost_below and alike < settings.doubtful_likeness
        )
        if not doubtful:
            self._doubtful, self.known = 0, tuple(found[:4])
            self._usual += _NEW * (alike * self._usual - self._usual)
            return found
        self._doubtful += 1
        if self._doubtful < settings.lost_after:
            return found
        self.lost, self._gone, self._verified = True, 0, 0
        return (*self.known, found[4])

    def _while_lost(self, frame: np.ndarray, row: int, found: Row) -> Row:
        candidate = self._search(frame, row, found)
        if candidate is None:
            self._verified = 0
            return (*self.known, found[4])
        self._verified += 1
        if self._verified >= self.settings.found_after:
            self.move(candidate[:4])
        return candidate

    def _search(self, frame: np.ndarray, row: int, found: Row) -> Row | None:
        """The place of this frame that looks most like the target, if one looks enough like it."""
        self._gone += 1
        places = [found]
        if not self._verified:
            places += self.engine.look(frame, row, self._next_windows(frame.shape[1], frame.shape[0]))
        likely = [(self._likeness(frame, place), place) for place in places if place[4] >= self.settings.found_from]
        if not likely:
            return None
        alike, best = max(likely)
        if alike < self.settings.found_likeness:
            return None
        if self._verified:
            return best
        # Once more from its own middle, at the size that the target had.
        x, y, w, h = best[:4]
        width, height = self.known[2:]
        (closer,) = self.engine.look(frame, row, [(x + 0.5 * (w - width), y + 0.5 * (h - height), width, height)])
        alike = self._likeness(frame, closer)
        return closer if closer[4] >= self.settings.found_from and alike >= self.settings.found_likeness else None

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
        reach = min(0.5 * side * self.settings.growth ** min(self._gone, 100), 2.0 * max(width, height))
        centre = (x + 0.5 * w, y + 0.5 * h)
        # A small target in a large frame: larger windows first find what is then looked at closely.
        area = min(2 * reach, width + side) * min(2 * reach, height + side)
        zoom = min(max(sqrt(area / (_MOST_WINDOWS * 0.25 * side**2)), 1.0), _MOST_ZOOM)
        step = 0.5 * zoom * side
        columns, rows = _steps(centre[0], reach, step, width), _steps(centre[1], reach, step, height)
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
