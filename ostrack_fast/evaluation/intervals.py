"""How much of a figure is chance: bootstrap intervals over videos, with all their starts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..data.truth import Array
from .protocols.got10k import Overlaps
from .scoring import TrackerScore
from .starts import video_of

_RESAMPLES = 2000


@dataclass(frozen=True)
class Interval:
    """A figure and the bounds of its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def may_be_nothing(self) -> bool:
        """Of a difference: whether its interval holds 0."""
        return self.low <= 0 <= self.high


def interval(tracker: TrackerScore, figure: str) -> Interval:
    """A summary's figure with the interval that other choices of as many sequences of the same kind would give.

    Sequences are drawn with replacement, 2000 times, always the same ones; the starts of one video (see `starts`) are
    drawn together, since they are no independent samples. Bounds are the 2.5th and 97.5th percentile
    (Efron 1979). Of a class-balanced figure they are those of the plain mean over sequences, about the figure.
    """
    means = _resampled(tracker, figure)
    value = tracker.summary[figure]
    low, high = np.percentile(means - _plain_mean(tracker, figure), (2.5, 97.5))
    return Interval(value, value + float(low), value + float(high))


def difference(one: TrackerScore, other: TrackerScore, figure: str) -> Interval:
    """How far the figure of `one` lies above that of `other`, both on the same drawn sequences.

    An interval that holds 0 says that the order of the two may be chance.
    """
    means = _resampled(one, figure) - _resampled(other, figure)
    value = one.summary[figure] - other.summary[figure]
    shift = value - (_plain_mean(one, figure) - _plain_mean(other, figure))
    low, high = np.percentile(means + shift, (2.5, 97.5))
    return Interval(value, float(low), float(high))


def _resampled(tracker: TrackerScore, figure: str) -> Array:
    """(2000,) the figure of as many draws of videos."""
    values, weights = _per_video(tracker, figure)
    draws = np.random.default_rng(0).integers(0, len(values), (_RESAMPLES, len(values)))
    return values[draws].sum(axis=1) / weights[draws].sum(axis=1)


def _plain_mean(tracker: TrackerScore, figure: str) -> float:
    values, weights = _per_video(tracker, figure)
    return float(values.sum() / weights.sum())


def _per_video(tracker: TrackerScore, figure: str) -> tuple[Array, Array]:
    """Each video's sums over its starts: figure times weight, and weight, which is frames in GOT-10k, else 1."""
    sums: dict[str, Array] = {}
    for name, numbers in tracker.sequences.items():
        score = tracker.scores[name]
        weight = len(score.frames) if isinstance(score, Overlaps) else 1
        if np.isfinite(numbers[figure]):
            sums.setdefault(video_of(name), np.zeros(2))
            sums[video_of(name)] += (weight * numbers[figure], weight)
    values, weights = np.array(list(sums.values())).T
    return values, weights
