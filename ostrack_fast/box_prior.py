"""The shape of the boxes that a tracker reports, drawn towards that of the box it was given.

A network whose template is a square around the target, as OSTrack's, is never told how wide and high that target is. A
small one trained on few videos then errs by a factor that hardly changes from frame to frame of one target, and that
shows in the first frame already, where the true box is known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, isfinite, log, sqrt
from typing import Any

import numpy as np

from .boxes import clip_xywh
from .engine import Engine
from .locator import CLIP_MARGIN
from .settings import check_ranges

Row = Sequence[float]  # x, y, width, height and what follows

# Where the first frame is searched: shifts over sqrt(w*h) of the box, and the factor of its size.
_LOOKS = ((-0.15, -0.15, 0.9), (0.15, -0.15, 1.1), (-0.15, 0.15, 1.1), (0.15, 0.15, 0.9))


@dataclass(frozen=True)
class BoxPrior:
    """How much is corrected. All is about the logarithm of width over height.

    Args:
        calibration: share of the mean error in the first frame that is taken off every box, 0 to 1.
        prior: weight of the first box against the box found, 0 to 1.
    """

    calibration: float = 0.5
    prior: float = 0.25

    def __post_init__(self) -> None:
        check_ranges(self, calibration=(0, 1), prior=(0, 1))


@dataclass(frozen=True)
class Shape:
    """What is known of one target's shape; make it with `calibrated`. Only what is reported changes, no search.

    Args:
        aspect: of the first box, log(width / height).
        error: the mean by which the network's boxes in the first frame are wider than high beyond that.
        settings: see `BoxPrior`; None for a target whose boxes stay as they are found.
    """

    aspect: float
    error: float
    settings: BoxPrior | None

    @classmethod
    def calibrated(cls, engine: Engine, settings: BoxPrior, frame: np.ndarray, row: int, box: Row) -> Shape:
        """A target just added as this row of the engine, by its box xywh in a frame (h,w,3) uint8 RGB.

        The frame is searched around four boxes near the true one. A target cut by the frame's edge, whose shape changes
        as it comes in, is left alone.
        """
        x, y, w, h = box
        size = frame.shape[:2]
        if _is_cut(box, *size):
            return cls(0.0, 0.0, None)
        aspect, side = log(w) - log(h), sqrt(w * h)
        near = [
            (x + dx * side + 0.5 * w * (1 - zoom), y + dy * side + 0.5 * h * (1 - zoom), zoom * w, zoom * h)
            for dx, dy, zoom in _LOOKS
        ]
        looks = engine.look(frame, row, near) if settings.calibration else []
        # A network that gives no number says so at the first frame that is tracked.
        seen = [each for each in looks if all(map(isfinite, each)) and not _is_cut(each, *size)]
        errors = [log(each[2]) - log(each[3]) - aspect for each in seen]
        return cls(aspect, sum(errors) / len(errors) if errors else 0.0, settings)

    def corrected(self, row: Row, frame: np.ndarray) -> list[Any]:
        """A result of the engine with its box in this shape: same centre and area, clipped as every box.

        A box that the frame's edge cuts stays as it is.
        """
        height, width = frame.shape[:2]
        if self.settings is None or _is_cut(row, height, width):
            return list(row)
        x, y, w, h, *rest = row
        found = log(w) - log(h) - self.settings.calibration * self.error
        aspect = found + self.settings.prior * (self.aspect - found)
        wide, high = sqrt(w * h) * exp(0.5 * aspect), sqrt(w * h) * exp(-0.5 * aspect)
        box = (x + 0.5 * (w - wide), y + 0.5 * (h - high), wide, high)
        return [*clip_xywh(box, height, width, CLIP_MARGIN), *rest]


def _is_cut(box: Row, height: int, width: int) -> bool:
    x, y, w, h = box[:4]
    return x <= 0 or y <= 0 or x + w >= width or y + h >= height
