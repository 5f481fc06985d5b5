"""How a folder of videos is scored that belongs to no benchmark."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...data.truth import Array, present
from .base import PIXELS, SHARES, CurveProtocol, Curves, Truth, iou, share_above, share_within

OVERLAPS: Array = np.arange(21) / 20


class Folder(CurveProtocol):
    """What `ostrack-fast evaluate --data` prints: only frames with a target count, and an answer that is none misses.

    Frames whose truth has a NaN or a side that is not positive, or whose flag says absent, are in no numerator and no
    denominator. The first frame, whose box is given, counts. Success is overlap > t, both precisions error <= t.

    Raises:
        ValueError: no frame has a target.
    """

    def _score(self, predicted: Array, truth: Truth) -> Curves:
        counted = present(truth.boxes)
        if truth.absent is not None:
            counted = counted & ~truth.absent
        if not counted.any():
            raise ValueError(f"{truth.name}: no frame has a target")
        predicted, boxes = predicted[counted], truth.boxes[counted]
        return Curves(
            share_above(overlap_or_0(predicted, boxes), OVERLAPS, len(boxes)),
            share_within(distance_or_inf(predicted, boxes), PIXELS, len(boxes)),
            share_within(distance_or_inf(predicted, boxes, normalized=True), SHARES, len(boxes)),
        )


def overlap_or_0(predicted: Array, truth: Array) -> Array:
    """Intersection over union of predicted[i] and truth[i], (n,4) each, (n,); 0 where either is no box."""
    both = _both(predicted, truth)
    out = np.zeros(len(both))
    out[both] = iou(predicted[both], truth[both])
    return out


def distance_or_inf(predicted: Array, truth: Array, normalized: bool = False) -> Array:
    """Distance between the centres, in pixels or in units of the true size, (n,); infinite where either is no box."""
    both = _both(predicted, truth)
    a, b = predicted[both], truth[both]
    difference = (a[:, :2] + 0.5 * a[:, 2:]) - (b[:, :2] + 0.5 * b[:, 2:])
    if normalized:
        difference /= b[:, 2:]
    out = np.full(len(both), np.inf)
    out[both] = np.hypot(*difference.T)
    return out


def _both(predicted: Array, truth: Array) -> NDArray[np.bool_]:
    return present(predicted) & present(truth)
