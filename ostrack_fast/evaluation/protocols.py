"""The benchmarks' ways to score result files, by name: one set of boxes gives another number under each.

Every function takes boxes as the files hold them: (n,4) xywh in pixels, counted as the ground truth counts, NaN and
empty boxes included. Formulas and edge cases are those of the benchmarks' own code, which differ in what they do with
frames without target and with answers that are no box:

| protocol | frames without target | no box answered | first frame | numbers |
|---|---|---|---|---|
| got10k | left out (`cover` 0) | overlap 0 | left out | AO, SR over all frames of all sequences |
| otb | overlap a miss, error a hit | previous box | truth | AUC, P: means over sequences |
| lasot | a miss, in the denominator | previous box | truth | AUC, P, P_norm |
| pytracking | see `PyTracking` | previous box | truth | AUC, P, P_norm |
| trackingnet | a miss | a miss | truth | AUC, P, P_norm: areas by trapezoids |
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data.truth import Array, as_boxes

_OVERLAPS: Array = np.arange(21) / 20
_PIXELS: Array = np.arange(51) / 1.0
_SHARES: Array = np.arange(51) / 100
_AT_20 = 20


@dataclass(frozen=True, eq=False)
class Truth:
    """What a benchmark knows of a sequence.

    Args:
        name: of the sequence.
        boxes: (n,4) xywh in pixels, as the file has them: counted from 0 or 1, NaN or empty where there is no target.
        absent: (n,) bool, where flags beside the boxes say that the target is out of view or hidden; None without.
        cover: (n,) visible share of the target in eighths (GOT-10k); None without.
        size: width and height of the frames, pixels (GOT-10k); None where no protocol asks for it.
    """

    name: str
    boxes: Array
    absent: NDArray[np.bool_] | None = None
    cover: NDArray[np.int_] | None = None
    size: tuple[int, int] | None = None


class Protocol(ABC):
    """Scores result files as one benchmark does."""

    def score(self, predicted: Array, truth: Truth) -> Any:
        """What `summarize` needs of one sequence.

        Args:
            predicted: (m,4) boxes of a result file; those beyond the truth's n are ignored, as the benchmarks do.

        Raises:
            ValueError: fewer boxes than frames, or another shape; the message names the sequence.
        """
        predicted = as_boxes(predicted)
        if len(predicted) < len(truth.boxes):
            raise ValueError(f"{truth.name}: {len(predicted)} boxes for {len(truth.boxes)} frames")
        with np.errstate(invalid="ignore", divide="ignore"):
            return self._score(predicted[: len(truth.boxes)].copy(), truth)

    @abstractmethod
    def _score(self, predicted: Array, truth: Truth) -> Any: ...

    @abstractmethod
    def summarize(self, scores: SequenceOf[Any]) -> dict[str, float]:
        """The benchmark's numbers over sequences, or of one, by the names its toolkit prints."""


def iou(a: Array, b: Array) -> Array:
    """Intersection over union of a[i] and b[i], (n,4) each, (n,); NaN where a box has one or the union is 0."""
    low, high = np.maximum(a[:, :2], b[:, :2]), np.minimum(a[:, :2] + a[:, 2:], b[:, :2] + b[:, 2:])
    inner = np.clip(high - low, 0, None).prod(axis=1)
    # Rounding may carry the ratio of two equal boxes past 1, which `> 1` would count.
    return np.minimum(inner / (a[:, 2:].prod(axis=1) + b[:, 2:].prod(axis=1) - inner), 1)


def centre_distance(a: Array, b: Array, unit: Array | float = 1.0) -> Array:
    """Distance between the centres of a[i] and b[i], each axis in units of `unit`, (n,).

    Rounded as the toolkits round, which take the centre of a box of whole pixels, x + (w - 1) / 2.
    """
    centre_a, centre_b = ((one[:, :2] + (one[:, 2:] - 1) / 2) / unit for one in (a, b))
    return np.sqrt(((centre_a - centre_b) ** 2).sum(axis=1))


def _share_above(values: Array, thresholds: Array, frames: int) -> Array:
    return (values[:, None] > thresholds).sum(axis=0) / frames


def _share_within(values: Array, thresholds: Array, frames: int) -> Array:
    return (values[:, None] <= thresholds).sum(axis=0) / frames


def _repeat_last_box(predicted: Array, bad: NDArray[np.bool_]) -> Array:
    """Rows where `bad` replaced by the last row before them that is not; the first row is never replaced."""
    rows = np.where(bad, 0, np.arange(len(bad)))
    return predicted[np.maximum.accumulate(rows)]


class Got10k(Protocol):
    """GOT-10k (Huang et al. 2019), as its toolkit evaluates the validation set: AO and SR as fractions.

    The first frame and frames whose `cover` is 0 are left out. Both boxes are clipped to the frame (a left or top edge
    beyond it moves to it, the size staying what it was, then cut at the right and bottom). AO is the mean overlap and
    SR_t the share of frames with overlap > t, over the frames of all sequences together. A box with a NaN counts 0; the
    toolkit's own means would be NaN.

    Raises:
        ValueError: a sequence without the frames' size.
    """

    def _score(self, predicted: Array, truth: Truth) -> Array:
        if truth.size is None:
            raise ValueError(f"{truth.name}: got10k clips boxes to the frame, whose size is not known")
        overlaps = np.nan_to_num(iou(_clipped(predicted[1:], truth.size), _clipped(truth.boxes[1:], truth.size)))
        return overlaps if truth.cover is None else overlaps[truth.cover[1:] > 0]

    def summarize(self, scores: SequenceOf[Array]) -> dict[str, float]:
        overlaps = np.concatenate(scores)
        return {
            "AO": float(overlaps.mean()),
            "SR_0.50": float((overlaps > 0.5).mean()),
            "SR_0.75": float((overlaps > 0.75).mean()),
        }


def _clipped(boxes: Array, size: tuple[int, int]) -> Array:
    corner = np.clip(boxes[:, :2], 0, size)
    return np.concatenate((corner, np.clip(boxes[:, 2:], 0, np.subtract(size, corner))), axis=1)


@dataclass(frozen=True, eq=False)
class Curves:
    """A sequence's success (21,), precision and normalized precision (51,) curves, shares of frames."""

    success: Array
    precision: Array
    normalized: Array


class _Curved(Protocol):
    """Protocols whose numbers come from the curves' means over sequences, in percent."""

    def summarize(self, scores: SequenceOf[Curves]) -> dict[str, float]:
        success, precision, normalized = (
            np.mean([getattr(one, name) for one in scores], axis=0) for name in ("success", "precision", "normalized")
        )
        return {
            "AUC": 100 * float(success.mean()),
            "P": 100 * float(precision[_AT_20]),
            "P_norm": 100 * float(normalized[_AT_20]),
        }


class Lasot(_Curved):
    """LaSOT's toolkit (Fan et al. 2019), for LaSOT and LaSOT_ext; OTB's, which it descends from, has no flags.

    Frames with the absent flag are taken out before the comparison, but the shares are of all frames: they count as
    misses in every curve. An answer with a NaN or a side that is not positive is replaced by the one before it, unless
    the truth has a NaN there. The first answer is replaced by the truth. Success is overlap > t at 0, 0.05, ... 1, AUC
    the mean of these; P is the share within 20 pixels, P_norm within 0.20 of the true width and height.

    Where a number of a true box is not positive (left of a 1-based image too, x <= 0) and no flag says absent, the
    overlap is a miss but both errors are hits, as the toolkit marks them with -1.
    """

    def _score(self, predicted: Array, truth: Truth) -> Curves:
        boxes, frames = truth.boxes, len(truth.boxes)
        bad = np.isnan(predicted).any(axis=1) | (predicted[:, 2:] <= 0).any(axis=1)
        predicted = _repeat_last_box(predicted, np.asarray(bad & ~np.isnan(boxes).any(axis=1)))
        predicted[0] = boxes[0]
        if truth.absent is not None:
            predicted, boxes = predicted[~truth.absent], boxes[~truth.absent]
        valid = (boxes > 0).all(axis=1)
        overlaps = np.where(valid, iou(predicted, boxes), -1)
        errors = np.where(valid, centre_distance(predicted, boxes), -1)
        normalized = np.where(valid, centre_distance(predicted, boxes, boxes[:, 2:]), -1)
        return Curves(
            _share_above(overlaps, _OVERLAPS, frames),
            _share_within(errors, _PIXELS, frames),
            _share_within(normalized, _SHARES, frames),
        )


class Otb(Lasot):
    """OTB's toolkit (Wu et al. 2015): as `Lasot` without flags, AUC and precision at 20 pixels."""

    def _score(self, predicted: Array, truth: Truth) -> Curves:
        return super()._score(predicted, Truth(truth.name, truth.boxes))

    def summarize(self, scores: SequenceOf[Curves]) -> dict[str, float]:
        numbers = super().summarize(scores)
        return {"AUC": numbers["AUC"], "P": numbers["P"]}


class PyTracking(_Curved):
    """PyTracking's analysis, the source of most papers' tables (07a34e8).

    A frame is valid when the true sides are positive and no flag says absent. Elsewhere the overlap is a miss, the
    error too (for UAV123 a hit), and the normalized error a hit (for LaSOT a miss where the flag says absent). Shares
    are of the valid frames, for LaSOT and UAV123 of all. So on LaSOT_ext, NFS and the others P_norm counts frames
    without target as hits that are not in the denominator, and can exceed 100 %; that is what this code prints.

    An answer with a side of 0 is replaced by the one before it, unless the truth has a NaN there. The first answer is
    replaced by the truth.

    Args:
        dataset: "lasot", "uav", or any other name.

    Raises:
        ValueError: a NaN or a negative side in the answers, which PyTracking refuses; no valid frame.
    """

    def __init__(self, dataset: str = "") -> None:
        self.dataset = dataset

    def _score(self, predicted: Array, truth: Truth) -> Curves:
        boxes = truth.boxes
        if np.isnan(predicted).any() or (predicted[:, 2:] < 0).any():
            raise ValueError(f"{truth.name}: pytracking refuses results with NaN or negative sides: write 0,0,0,0")
        bad = (predicted[:, 2:] == 0).any(axis=1) & ~np.isnan(boxes).any(axis=1)
        predicted = _repeat_last_box(predicted, np.asarray(bad))
        predicted[0] = boxes[0]
        absent = np.zeros(len(boxes), dtype=bool) if truth.absent is None else truth.absent
        valid = (boxes[:, 2:] > 0).all(axis=1) & ~absent
        frames = len(boxes) if self.dataset in ("lasot", "uav") else int(valid.sum())
        if not frames:
            raise ValueError(f"{truth.name}: no frame has a target")
        overlaps = np.where(valid, iou(predicted, boxes), -1)
        errors = np.where(valid, centre_distance(predicted, boxes), -1 if self.dataset == "uav" else np.inf)
        normalized = np.where(valid, centre_distance(predicted, boxes, boxes[:, 2:]), -1)
        if self.dataset == "lasot":
            normalized[absent] = np.inf
        return Curves(
            _share_above(overlaps, _OVERLAPS, frames),
            _share_within(errors, _PIXELS, frames),
            _share_within(normalized, _SHARES, frames),
        )


class TrackingNet(_Curved):
    """TrackingNet's evaluation server (Mueller et al. 2018), in percent.

    Coordinates and sides are rounded to whole pixels first, half to even. The first answer is replaced by the truth;
    NaN and empty answers miss. All three curves have 21 thresholds (0 to 1 of overlap, 0 to 50 pixels, 0 to 0.5 of the
    true size), and all three numbers are their areas by the trapezoidal rule over the unit interval.
    """

    def _score(self, predicted: Array, truth: Truth) -> Curves:
        predicted, boxes = np.round(predicted), np.round(truth.boxes)
        predicted[0] = boxes[0]
        frames, steps = len(boxes), np.linspace(0, 1, 21)
        return Curves(
            _share_above(iou(predicted, boxes), steps, frames),
            _share_within(centre_distance(predicted, boxes), 50 * steps, frames),
            _share_within(centre_distance(predicted, boxes, boxes[:, 2:]), 0.5 * steps, frames),
        )

    def summarize(self, scores: SequenceOf[Curves]) -> dict[str, float]:
        names = {"AUC": "success", "P": "precision", "P_norm": "normalized"}
        means = {key: np.mean([getattr(one, name) for one in scores], axis=0) for key, name in names.items()}
        return {key: 100 * float((curve[1:] + curve[:-1]).mean() / 2) for key, curve in means.items()}


PROTOCOLS: dict[str, Protocol] = {
    "got10k": Got10k(),
    "lasot": Lasot(),
    "otb": Otb(),
    "pytracking": PyTracking(),
    "pytracking_lasot": PyTracking("lasot"),
    "pytracking_uav": PyTracking("uav"),
    "trackingnet": TrackingNet(),
}
"""By name; PyTracking's under the kinds of data sets it treats unlike."""
