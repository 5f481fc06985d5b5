"""How much of a figure is chance: bootstrap intervals over sequences."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..data.truth import Array
from .protocols.got10k import Overlaps
from .scoring import TrackerScore

_RESAMPLES = 2000


@dataclass(frozen=True)
class Interval:
    """A figure and the bounds of its 95 % interval."""

    value: float
    low: float
    high: float


def interval(tracker: TrackerScore, figure: str) -> Interval:
    """A summary's figure with the interval that other choices of as many sequences of the same kind would give.

    Sequences are drawn with replacement, 2000 times, always the same ones. Bounds are the 2.5th and 97.5th percentile
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
    """(2000,) the figure of as many draws of sequences."""
    values, weights = _per_sequence(tracker, figure)
    draws = np.random.default_rng(0).integers(0, len(values), (_RESAMPLES, len(values)))
    return (values[draws] * weights[draws]).sum(axis=1) / weights[draws].sum(axis=1)


def _plain_mean(tracker: TrackerScore, figure: str) -> float:
    values, weights = _per_sequence(tracker, figure)
    return float((values * weights).sum() / weights.sum())


def _per_sequence(tracker: TrackerScore, figure: str) -> tuple[Array, Array]:
    """Each sequence's figure, and its weight in the summary: its frames in GOT-10k, else 1."""
    values = np.array([numbers[figure] for numbers in tracker.sequences.values()])
    weights = np.array([len(one.frames) if isinstance(one, Overlaps) else 1 for one in tracker.scores.values()])
    kept = np.isfinite(values)
    return values[kept], weights[kept].astype(np.float64)
