"""One-pass evaluation metrics on arrays of boxes: what `evaluate` prints of a folder, the protocol "folder".

Boxes are (n,4) float arrays, left, top, width, height in pixels; a row with a side that is not positive, or with a NaN,
means "target absent" in the ground truth and "no answer" in a prediction (overlap 0, infinite centre error).

Conventions, where toolkits differ:

* Frames without ground truth are left out (PyTracking's `exclude_invalid_frames`; OTB has no such frames).
* The success and precision curves count the first frame, whose box is given (OTB, PyTracking). The GOT-10k numbers
  (average overlap, success rates at 0.5 and 0.75) do not.
* Success counts `overlap > threshold`, so that a perfect tracker's area under the curve is 20/21, not 1 (OTB,
  PyTracking, GOT-10k). Both precisions count `error <= threshold`.
* Boxes are not clipped to the image first (the GOT-10k server does).
* Means over videos weigh every video alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ..data.truth import Array, as_boxes, present
from .protocols import PROTOCOLS, Truth
from .protocols.base import PIXELS, SHARES
from .protocols.folder import OVERLAPS, distance_or_inf, overlap_or_0

OVERLAP_THRESHOLDS: Array = OVERLAPS
"""0, 0.05, ... 1 of overlap (OTB)."""
PIXEL_THRESHOLDS: Array = PIXELS
"""0, 1, ... 50 pixels between centres (OTB)."""
NORMALIZED_THRESHOLDS: Array = SHARES
"""0, 0.01, ... 0.5 of the target's size between centres (TrackingNet, LaSOT)."""

_AT_20_PIXELS = _AT_A_FIFTH = 20
"""Where 20 pixels and 0.2 stand in the thresholds above."""


def overlap(predicted: ArrayLike, truth: ArrayLike) -> Array:
    """Intersection over union of predicted[i] and truth[i], (n,); 0 where either is no box.

    Raises:
        ValueError: the arrays are not both (n,4).
    """
    return overlap_or_0(*_pair(predicted, truth))


def centre_error(predicted: ArrayLike, truth: ArrayLike, normalized: bool = False) -> Array:
    """Distance between the centres, (n,): in pixels, or in units of the true width and height.

    Infinite where either is no box. Source of the normalized error: TrackingNet, equation 1.

    Raises:
        ValueError: the arrays are not both (n,4).
    """
    return distance_or_inf(*_pair(predicted, truth), normalized)


def success_curve(overlaps: ArrayLike, thresholds: ArrayLike = OVERLAP_THRESHOLDS) -> Array:
    """Share of the frames whose overlap exceeds each threshold, (len(thresholds),)."""
    return (np.asarray(overlaps)[:, None] > np.asarray(thresholds)).mean(axis=0)


def precision_curve(errors: ArrayLike, thresholds: ArrayLike = PIXEL_THRESHOLDS) -> Array:
    """Share of the frames whose centre error is within each threshold, (len(thresholds),)."""
    return (np.asarray(errors)[:, None] <= np.asarray(thresholds)).mean(axis=0)


@dataclass(frozen=True)
class Scores:
    """A video's curves and numbers, or their mean over videos; all shares in [0, 1].

    Args:
        success: (21,) share of the frames above each of `OVERLAP_THRESHOLDS`.
        precision: (51,) share of the frames within each of `PIXEL_THRESHOLDS`.
        normalized_precision: (51,) share of the frames within each of `NORMALIZED_THRESHOLDS`.
        average_overlap: GOT-10k's AO.
        success_50, success_75: GOT-10k's SR, the share of the frames whose overlap exceeds 0.5 and 0.75.
    """

    success: Array
    precision: Array
    normalized_precision: Array
    average_overlap: float
    success_50: float
    success_75: float

    @property
    def auc(self) -> float:
        """Area under the success curve: the mean of its 21 values. What trackers are ranked by."""
        return float(self.success.mean())

    @property
    def precision_20(self) -> float:
        """Precision at 20 pixels."""
        return float(self.precision[_AT_20_PIXELS])

    @property
    def normalized_precision_auc(self) -> float:
        """Area under the normalized precision curve, 0 to 0.5 (the LaSOT and TrackingNet toolkits' number)."""
        return float(self.normalized_precision.mean())

    @property
    def normalized_precision_20(self) -> float:
        """Normalized precision at 0.2 (the number PyTracking and OSTrack's tables give)."""
        return float(self.normalized_precision[_AT_A_FIFTH])

    def numbers(self) -> dict[str, float]:
        """The scalar results by name."""
        return {name: getattr(self, name) for name in SCALARS}

    @classmethod
    def mean(cls, scores: Sequence[Scores]) -> Scores:
        """Mean over videos, each of the same weight. Raises ValueError without any."""
        if not scores:
            raise ValueError("no scores to average")
        means: dict[str, Any] = {}
        for field in fields(cls):
            value = np.mean([getattr(one, field.name) for one in scores], axis=0)
            means[field.name] = value if value.ndim else float(value)
        return cls(**means)


SCALARS = (
    "auc",
    "precision_20",
    "normalized_precision_20",
    "normalized_precision_auc",
    "average_overlap",
    "success_50",
    "success_75",
)


def score_video(predicted: ArrayLike, truth: ArrayLike) -> Scores:
    """All scores of one video.

    Args:
        predicted: (n,4) boxes, the first being the one the tracker was given.
        truth: (n,4) boxes, NaN where the target is absent.

    Raises:
        ValueError: the arrays are not both (n,4), or no frame after the first has ground truth.
    """
    predicted, truth = _pair(predicted, truth)
    valid = present(truth)
    if not valid[1:].any():
        raise ValueError("no frame after the first has ground truth: there is nothing to score")
    curves = PROTOCOLS["folder"].score(predicted, Truth("video", truth))
    tracked = overlap_or_0(predicted, truth)[1:][valid[1:]]
    return Scores(
        success=curves.success,
        precision=curves.precision,
        normalized_precision=curves.normalized,
        average_overlap=float(tracked.mean()),
        success_50=float((tracked > 0.5).mean()),
        success_75=float((tracked > 0.75).mean()),
    )


def _pair(predicted: ArrayLike, truth: ArrayLike) -> tuple[Array, Array]:
    a, b = as_boxes(predicted), as_boxes(truth)
    if len(a) != len(b):
        raise ValueError(f"{len(a)} predicted boxes for {len(b)} frames of ground truth")
    return a, b
