"""A random choice by given ratios."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

import numpy as np
from numpy.random import Generator


class Choice:
    """Draws an index with probability ratio over the sum of the ratios.

    Raises:
        ValueError: for a negative ratio, or when none is positive.
    """

    def __init__(self, ratios: Sequence[float]) -> None:
        values = np.array(ratios, dtype=np.float64)
        if not (values >= 0).all() or not 0 < values.sum() < np.inf:
            raise ValueError(f"ratios must not be negative, and one must be positive: got {values.tolist()}")
        self._edges: list[float] = np.cumsum(values / values.sum()).tolist()

    def __call__(self, rng: Generator) -> int:
        return min(bisect_right(self._edges, rng.random()), len(self._edges) - 1)
