"""TrackingNet's evaluation."""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf

import numpy as np

from ...data.truth import Array
from .base import CurveProtocol, Curves, Truth, share_within

_STEPS: Array = np.linspace(0, 1, 21)


class TrackingNet(CurveProtocol):
    """TrackingNet's evaluation (Mueller et al. 2018; `metrics.py` of its devkit), in percent.

    Coordinates and sides are rounded to whole pixels first, half to even. The first answer is replaced by the truth. A
    NaN misses; an empty answer overlaps by 0. All three curves have 21 thresholds (0 to 1 of overlap, 0 to 50 pixels, 0
    to 0.5 of the true size), and all three numbers are their areas by the trapezoidal rule over the unit interval.

    Success counts overlap >= t, not > t as the others do: a perfect tracker has an AUC of 100, and answers that overlap
    with nothing still count at the threshold 0, which is worth 2.5.
    """

    def _score(self, predicted: Array, truth: Truth) -> Curves:
        predicted, boxes = np.round(predicted), np.round(truth.boxes)
        predicted[0] = boxes[0]
        frames = len(boxes)
        centre, true_centre = ((one[:, :2] + (one[:, 2:] + 1) / 2) for one in (predicted, boxes))
        difference, size = true_centre - centre, boxes[:, 2:]
        # In the devkit's order of multiplication, which decides on which side of a threshold rounding falls.
        errors = np.sqrt((difference * difference).sum(axis=1))
        normalized = np.sqrt((difference / size * difference / size).sum(axis=1))
        return Curves(
            # No overlap is negative: those that reach a threshold are those that do not fall below it.
            share_within(-_overlap(predicted, boxes), -_STEPS, frames),
            share_within(errors, np.linspace(0, 50, 21), frames),
            share_within(normalized, np.linspace(0, 0.5, 21), frames),
        )

    def summarize(self, scores: SequenceOf[Curves]) -> dict[str, float]:
        """AUC, P and P_norm, in percent."""
        mean = Curves.mean(scores)
        curves = {"AUC": mean.success, "P": mean.precision, "P_norm": mean.normalized}
        return {key: 100 * float((curve[1:] + curve[:-1]).mean() / 2) for key, curve in curves.items()}


def _overlap(a: Array, b: Array) -> Array:
    low, high = np.maximum(a[:, :2], b[:, :2]), np.minimum(a[:, :2] + a[:, 2:], b[:, :2] + b[:, 2:])
    inner = np.clip(high - low, 0, None).prod(axis=1)
    return inner / (b[:, 2:].prod(axis=1) + a[:, 2:].prod(axis=1) - inner)
