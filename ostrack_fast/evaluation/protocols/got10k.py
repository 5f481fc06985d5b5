"""GOT-10k's evaluation (Huang et al. 2019)."""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from typing import NamedTuple

import numpy as np

from ...data.truth import Array
from .base import Protocol, Truth

_EPSILON = float(np.finfo(float).eps)


class Overlaps(NamedTuple):
    """The overlaps of a sequence's frames that count, and the class of its target."""

    frames: Array
    group: str


class Got10k(Protocol):
    """GOT-10k (Huang et al. 2019), as its toolkit evaluates the validation set: AO and SR as fractions.

    The first frame and frames whose `cover` is 0 are left out. Both boxes are clipped to the frame (a left or top edge
    beyond it moves to it, the size staying what it was, then cut at the right and bottom; a negative side becomes 0).
    Two boxes without area overlap by 0. AO is the mean overlap and SR_t the share of frames with overlap > t, over the
    frames of all sequences, and of all repetitions, together. A box with a NaN counts 0; the toolkit's own means would
    be NaN. A sequence without any frame that counts has NaN for numbers of its own.

    Raises:
        ValueError: a sequence without the frames' size.
    """

    def _score(self, predicted: Array, truth: Truth) -> Overlaps:
        if truth.size is None:
            raise ValueError(f"{truth.name}: got10k clips boxes to the frame, whose size is not known")
        overlaps = np.nan_to_num(_iou(_clipped(predicted[1:], truth.size), _clipped(truth.boxes[1:], truth.size)))
        return Overlaps(overlaps if truth.cover is None else overlaps[truth.cover[1:] > 0], truth.group)

    def merge(self, runs: SequenceOf[Overlaps]) -> Overlaps:
        """The frames of all runs."""
        return Overlaps(np.concatenate([run.frames for run in runs]), runs[0].group)

    def summarize(self, scores: SequenceOf[Overlaps]) -> dict[str, float]:
        """AO, SR_0.50 and SR_0.75 over all frames."""
        return _numbers(np.concatenate([score.frames for score in scores]))


class BalancedGot10k(Got10k):
    """GOT-10k's class-balanced numbers (mAO and mSR of its paper, section 4.2).

    The numbers of a sequence are those of `Got10k`; their means over the sequences of each object class are averaged
    over classes, so that the many persons and cars do not decide. Sequences without any frame that counts are left out.
    """

    def summarize(self, scores: SequenceOf[Overlaps]) -> dict[str, float]:
        """AO, SR_0.50 and SR_0.75, each class of the same weight."""
        groups: dict[str, list[dict[str, float]]] = {}
        for score in scores:
            if len(score.frames):
                groups.setdefault(score.group, []).append(_numbers(score.frames))
        if not groups:
            return _numbers(np.empty(0))
        return {
            name: float(np.mean([np.mean([one[name] for one in group]) for group in groups.values()]))
            for name in ("AO", "SR_0.50", "SR_0.75")
        }


def _numbers(overlaps: Array) -> dict[str, float]:
    if not len(overlaps):
        return dict.fromkeys(("AO", "SR_0.50", "SR_0.75"), float("nan"))
    return {
        "AO": float(overlaps.mean()),
        "SR_0.50": float((overlaps > 0.5).mean()),
        "SR_0.75": float((overlaps > 0.75).mean()),
    }


def _iou(a: Array, b: Array) -> Array:
    """Intersection over union, the toolkit's epsilon in the denominator: 0 for two boxes without area."""
    low, high = np.maximum(a[:, :2], b[:, :2]), np.minimum(a[:, :2] + a[:, 2:], b[:, :2] + b[:, 2:])
    inner = np.maximum(high - low, 0).prod(axis=1)
    union = a[:, 2:].prod(axis=1) + b[:, 2:].prod(axis=1) - inner
    return np.clip(inner / (union + _EPSILON), 0.0, 1.0)


def _clipped(boxes: Array, size: tuple[int, int]) -> Array:
    corner = np.clip(boxes[:, :2], 0, size)
    return np.concatenate((corner, np.clip(boxes[:, 2:], 0, np.subtract(size, corner))), axis=1)
