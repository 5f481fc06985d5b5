"""The analysis code of PyTracking, the source of most papers' tables, and of STARK, which OSTrack's is a copy of."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...data.truth import Array
from .base import (
    OVERLAPS,
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


class PyTracking(CurveProtocol):
    """PyTracking's analysis (its `extract_results` since August 2022, `exclude_invalid_frames` left at False).

    A frame is valid when all four numbers of the true box are positive and no flag says absent. Elsewhere the overlap
    is a miss, the error a miss (for UAV123 a hit), and the normalized error a hit, but for LaSOT a miss where the flag
    says absent. Shares are of all frames. So on LaSOT_ext, whose name is not "lasot", frames with the absent flag are
    misses in AUC and P and hits in P_norm: that is what this code prints, and its P_norm there exceeds the LaSOT
    toolkit's by the share of absent frames.

    An answer with a side of 0 is replaced by the one before it, unless the truth has a NaN there. The first answer is
    replaced by the truth.

    Args:
        dataset: "lasot", "uav", or any other name, for all sequences; None goes by that of each sequence.

    Raises:
        ValueError: a NaN or a negative side in the answers, which PyTracking refuses; no frame has a target.
    """

    def __init__(self, dataset: str | None = None) -> None:
        self.dataset = dataset

    def _valid(self, boxes: Array) -> NDArray[np.bool_]:
        return all_positive(boxes)

    def _score(self, predicted: Array, truth: Truth) -> Curves:
        boxes, frames = truth.boxes, len(truth.boxes)
        dataset = truth.dataset if self.dataset is None else self.dataset
        if np.isnan(predicted).any() or (predicted[:, 2:] < 0).any():
            raise ValueError(f"{truth.name}: pytracking refuses results with NaN or negative sides: write 0,0,0,0")
        bad = ((predicted[:, 2] == 0) | (predicted[:, 3] == 0)) & ~has_nan(boxes)
        predicted = repeat_last_box(predicted, np.asarray(bad))
        predicted[0] = boxes[0]
        absent = np.zeros(frames, dtype=bool) if truth.absent is None else truth.absent
        valid = self._valid(boxes) & ~absent
        if not valid.any():
            raise ValueError(f"{truth.name}: no frame has a target")
        overlaps = np.where(valid, inclusive_iou(predicted, boxes), -1)
        errors = np.where(valid, centre_distance(predicted, boxes), -1 if dataset == "uav" else np.inf)
        normalized = np.where(valid, centre_distance(predicted, boxes, boxes[:, 2:]), -1)
        if dataset == "lasot":
            normalized[absent] = np.inf
        return Curves(
            share_above(overlaps, OVERLAPS, frames),
            share_within(errors, PIXELS, frames),
            share_within(normalized, SHARES, frames),
        )


class Stark(PyTracking):
    """The analysis of STARK and of the published OSTrack: as `PyTracking`, but true boxes may lie left of the image.

    A frame is valid when the true width and height are positive, whatever x and y are (PyTracking from April 2020 to
    August 2022). OSTrack's tables of LaSOT_ext, TNL2K, NFS and UAV123 come from it.
    """

    def _valid(self, boxes: Array) -> NDArray[np.bool_]:
        return np.asarray((boxes[:, 2:] > 0).all(axis=1))
