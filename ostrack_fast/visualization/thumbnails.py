"""A few small frames of a long run."""

from __future__ import annotations

import cv2
import numpy as np

from ..tracker import TrackResult
from .draw import LOST_COLOUR, TARGET_COLOUR, draw_box

COLUMNS = 4
_WIDTH = 480


class Thumbnails:
    """Evenly spaced frames of a run of unknown length, reduced: never more than `2 * count - 1` in memory."""

    def __init__(self, count: int = 2 * COLUMNS):
        self.count = count
        self._every = 1
        self._kept: list[tuple[int, np.ndarray]] = []

    def add(self, index: int, frame: np.ndarray, result: TrackResult) -> None:
        """Take note of frame number `index`, counted from 0 without gaps."""
        if index % self._every:
            return
        reduce = min(1.0, _WIDTH / frame.shape[1])
        size = (round(frame.shape[1] * reduce), max(1, round(frame.shape[0] * reduce)))
        small = cv2.resize(np.ascontiguousarray(frame), size, interpolation=cv2.INTER_AREA)
        box = [value * reduce for value in result.box]
        self._kept.append((index, draw_box(small, box, LOST_COLOUR if result.lost else TARGET_COLOUR)))
        if len(self._kept) == 2 * self.count:
            self._every *= 2
            self._kept = self._kept[::2]

    def chosen(self) -> list[tuple[int, np.ndarray]]:
        """At most `count` (index, frame with box), evenly spread, the first among them."""
        places = np.linspace(0, len(self._kept) - 1, min(self.count, len(self._kept)))
        return [self._kept[round(place)] for place in places]
