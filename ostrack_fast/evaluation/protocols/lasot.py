"""The MATLAB toolkits of OTB and of LaSOT, which descends from it, as do those of TNL2K, VastTrack and UAV123."""

from __future__ import annotations

import numpy as np

from ...data.truth import Array
from .base import (
    PIXELS,
    SHARES,
    CurveProtocol,
    Curves,
    Truth,
    all_positive,
    centre_distance,
    has_nan,
    inclusive_iou,
    repeat_last_box,
    share_above,
    share_within,
)

_COUNT = np.arange(21)
OVERLAPS: Array = np.where(_COUNT <= 10, _COUNT * 0.05, 1 - (20 - _COUNT) * 0.05)
"""MATLAB's 0:0.05:1, which counts from both ends: its 0.65 lies below the decimal number, so that 13/20 exceeds it."""


class Lasot(CurveProtocol):
    """LaSOT's toolkit (Fan et al. 2019), for LaSOT, LaSOT_ext, TNL2K and VastTrack; OTB's has no flags.

    Frames with the absent flag are taken out before the comparison, but the shares are of all frames: they count as
    misses in every curve. An answer with a NaN or a side that is not positive is replaced by the one before it, unless
    the truth has a NaN there. The first answer is replaced by the truth. Success is overlap > t at 0, 0.05, ... 1, AUC
    the mean of these; P is the share within 20 pixels, P_norm within 0.20 of the true width and height.

    Where a number of a true box is not positive (left of a 1-based image too, x <= 0) and no flag says absent, the
    overlap is a miss but both errors are hits, as the toolkit marks them with -1.
    """

    def _score(self, predicted: Array, truth: Truth) -> Curves:
        boxes, frames = truth.boxes, len(truth.boxes)
        bad = has_nan(predicted) | (predicted[:, 2] <= 0) | (predicted[:, 3] <= 0)
        predicted = repeat_last_box(predicted, np.asarray(bad & ~has_nan(boxes)))
        predicted[0] = boxes[0]
        valid = all_positive(boxes)
        counted = np.ones(frames, bool) if truth.absent is None else ~truth.absent
        overlaps = np.where(valid, inclusive_iou(predicted, boxes), -1)
        errors = np.where(valid, centre_distance(predicted, boxes), -1)
        normalized = np.where(valid, centre_distance(predicted, boxes, boxes[:, 2:]), -1)
        return Curves(
            share_above(overlaps[counted], OVERLAPS, frames),
            share_within(errors[counted], PIXELS, frames),
            share_within(normalized[counted], SHARES, frames),
        )


class Otb(Lasot):
    """OTB's toolkit (Wu et al. 2015), for OTB, UAV123 and NFS: as `Lasot` without flags.

    It prints AUC and P; P_norm is what its P becomes in units of the true size, as in LaSOT's toolkit.
    """

    def _score(self, predicted: Array, truth: Truth) -> Curves:
        return super()._score(predicted, Truth(truth.name, truth.boxes))
