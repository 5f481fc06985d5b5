"""From a score to the probability that the box overlaps the target by half."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

# The head clamps its scores to this range.
_LEAST = 1e-4


def logit(score: Any) -> NDArray[np.float64]:
    """log(score / (1 - score)) of scores of any shape, 0 to 1, kept within [1e-4, 1 - 1e-4]."""
    clamped = np.clip(np.asarray(score, np.float64), _LEAST, 1 - _LEAST)
    return np.log(clamped / (1 - clamped))


@dataclass(frozen=True)
class Calibration:
    """Probability = sigmoid(slope logit(score) + offset); found by `python -m ostrack_fast.evaluation.calibration`.

    Called with a score, or an array of scores, 0 to 1, it answers the probability that the box overlaps the target by
    at least half. `CALIBRATED` holds that of each network that ships.
    """

    slope: float
    offset: float

    @overload
    def __call__(self, score: float) -> float: ...
    @overload
    def __call__(self, score: NDArray[np.float64]) -> NDArray[np.float64]: ...
    def __call__(self, score: Any) -> Any:
        likely = 1 / (1 + np.exp(-(self.slope * logit(score) + self.offset)))
        return likely if isinstance(score, np.ndarray) else float(likely)


CALIBRATED = {"small": Calibration(1.722, 1.586)}
"""By the name of weights that ship, fitted in float32 to the first 100 frames of each of the nine validation videos."""
