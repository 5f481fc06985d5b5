"""What all protocols have in common: the truth of a sequence, curves, and the two distances between boxes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...data.truth import LARGEST, Array, as_boxes

OVERLAPS: Array = np.arange(21.0) * 0.05
"""0, 0.05, ... 1 as Python toolkits compute them: rounding puts 0.15 and some others above the decimal number."""
PIXELS: Array = np.arange(51) / 1.0
SHARES: Array = np.arange(51) / 100
AT_20 = 20
"""Where 20 pixels and 0.20 stand in `PIXELS` and `SHARES`."""


@dataclass(frozen=True, eq=False)
class Truth:
    """What a benchmark knows of a sequence.

    Args:
        name: of the sequence.
        boxes: (n,4) xywh in pixels, as the file has them: counted from 0 or 1, NaN or empty where there is no target.
        absent: (n,) bool, where flags beside the boxes say that the target is out of view or hidden; None without.
        cover: (n,) visible share of the target in eighths (GOT-10k); None without.
        size: width and height of the frames, pixels (GOT-10k); None where no protocol asks for it.
        dataset: which data set's special cases apply to it, for protocols that know some: "lasot", "uav" or another.
        group: the class of its target, for class-balanced means.
    """

    name: str
    boxes: Array
    absent: NDArray[np.bool_] | None = None
    cover: NDArray[np.int_] | None = None
    size: tuple[int, int] | None = None
    dataset: str = ""
    group: str = ""

    def __post_init__(self) -> None:
        if (np.abs(self.boxes) > LARGEST).any():  # a comparison with NaN is false
            raise ValueError(f"{self.name}: a box of the truth lies more than {LARGEST:g} pixels away")
        object.__setattr__(self, "boxes", np.asfortranarray(self.boxes))


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
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            # By columns, which the protocols work on: strides cost twice the time.
            return self._score(predicted[: len(truth.boxes)].copy(order="F"), truth)

    @abstractmethod
    def _score(self, predicted: Array, truth: Truth) -> Any: ...

    @abstractmethod
    def merge(self, runs: SequenceOf[Any]) -> Any:
        """One score for several runs of a tracker on the same sequence."""

    @abstractmethod
    def summarize(self, scores: SequenceOf[Any]) -> dict[str, float]:
        """The benchmark's numbers over sequences, or of one, by the names its toolkit prints."""


@dataclass(frozen=True, eq=False)
class Curves:
    """Success (21,), precision and normalized precision curves, shares of frames at each threshold."""

    success: Array
    precision: Array
    normalized: Array

    @classmethod
    def mean(cls, curves: SequenceOf[Curves]) -> Curves:
        """The mean of several, each of the same weight."""
        names = ("success", "precision", "normalized")
        return cls(*(np.mean([getattr(one, name) for one in curves], axis=0) for name in names))


class CurveProtocol(Protocol):
    """Protocols whose numbers come from the curves' means over sequences, in percent."""

    def merge(self, runs: SequenceOf[Curves]) -> Curves:
        """The mean curves."""
        return Curves.mean(runs)

    def summarize(self, scores: SequenceOf[Curves]) -> dict[str, float]:
        """AUC, P (within 20 pixels) and P_norm (within 0.20 of the true size), in percent."""
        mean = Curves.mean(scores)
        return {
            "AUC": 100 * float(mean.success.mean()),
            "P": 100 * float(mean.precision[AT_20]),
            "P_norm": 100 * float(mean.normalized[AT_20]),
        }


def iou(a: Array, b: Array) -> Array:
    """Intersection over union of a[i] and b[i], (n,4) each, (n,); NaN where a box has one or the union is 0.

    At most 1: rounding may carry the ratio of two equal boxes past it, which `> 1` would count.
    """
    return np.minimum(_ratio(a, b, 0), 1)


def inclusive_iou(a: Array, b: Array) -> Array:
    """`iou`, rounded as toolkits round that take x + w - 1 for the last pixel, and like theirs not limited to 1."""
    return _ratio(a, b, 1)


def _ratio(a: Array, b: Array, last: int) -> Array:
    # By columns: a sum or product over the four numbers of each row takes several times as long.
    (ax, ay, aw, ah), (bx, by, bw, bh) = a.T, b.T
    width = np.minimum(ax + aw - last, bx + bw - last) - np.maximum(ax, bx) + last
    height = np.minimum(ay + ah - last, by + bh - last) - np.maximum(ay, by) + last
    inner = np.maximum(width, 0) * np.maximum(height, 0)
    return inner / (aw * ah + bw * bh - inner)


def centre_distance(a: Array, b: Array, unit: Array | None = None) -> Array:
    """Distance between the centres of a[i] and b[i], each axis in units of `unit` (n,2) if there is one, (n,).

    Rounded as the toolkits round, which take the centre of a box of whole pixels, x + (w - 1) / 2.
    """
    total = np.zeros(len(a))
    for axis in (0, 1):
        centres = (one[:, axis] + (one[:, axis + 2] - 1) / 2 for one in (a, b))
        first, second = centres if unit is None else (centre / unit[:, axis] for centre in centres)
        difference = first - second
        total += difference * difference
    return np.sqrt(total)


def has_nan(boxes: Array) -> NDArray[np.bool_]:
    """Which rows of (n,4) hold a NaN, (n,)."""
    missing = np.isnan(boxes)
    return np.asarray(missing.any(axis=1)) if missing.any() else np.zeros(len(boxes), bool)


def all_positive(boxes: Array) -> NDArray[np.bool_]:
    """Which rows of (n,4) are four positive numbers, (n,)."""
    x, y, w, h = (boxes > 0).T
    return np.asarray(x & y & w & h)


def share_above(values: Array, thresholds: Array, frames: int) -> Array:
    """How many of the values exceed each threshold, as a share of `frames`, (len(thresholds),)."""
    ranked = _ranked(values)
    return (len(ranked) - np.searchsorted(ranked, thresholds, side="right")) / frames


def share_within(values: Array, thresholds: Array, frames: int) -> Array:
    """How many of the values do not exceed each threshold, as a share of `frames`, (len(thresholds),)."""
    return np.searchsorted(_ranked(values), thresholds, side="right") / frames


def _ranked(values: Array) -> Array:
    """The values that are numbers, the smallest first: a threshold is then found by bisection."""
    ranked = np.sort(values)
    # NaN, which neither exceeds a threshold nor is within one, comes last.
    return ranked[: len(ranked) - np.count_nonzero(np.isnan(ranked))]


def repeat_last_box(predicted: Array, bad: NDArray[np.bool_]) -> Array:
    """Rows where `bad` replaced by the last row before them that is not; the first row is never replaced."""
    if not bad.any():
        return predicted
    rows = np.where(bad, 0, np.arange(len(bad)))
    return predicted[np.maximum.accumulate(rows)]
