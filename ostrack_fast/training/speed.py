"""How fast a run's pairs are made and how fast it trains on them, and which of the two binds."""

from __future__ import annotations

import time
from collections import deque
from typing import NamedTuple

_STEPS = 100


class _Step(NamedTuple):
    waited: float
    taken: float
    making: float
    terms: dict[str, float]


class Speed:
    """Times and terms of the loss of the last steps.

    Args:
        batch: pairs in a step of all processes.
        makers: processes that make the pairs of one training process at the same time.
    """

    def __init__(self, batch: int, makers: int) -> None:
        self._batch, self._makers = batch, makers
        self._steps: deque[_Step] = deque(maxlen=_STEPS)
        self.wait()

    def wait(self) -> None:
        """The wait for a batch begins."""
        self._clock = time.monotonic()
        self._loaded = self._clock

    def loaded(self) -> None:
        """The batch is here."""
        self._loaded = time.monotonic()

    def stepped(self, terms: dict[str, float], making: float) -> None:
        """The step is done: the terms of its loss, and the seconds it took to make its pairs, one after the other."""
        self._steps.append(_Step(self._loaded - self._clock, time.monotonic() - self._loaded, making, terms))

    def summary(self) -> dict[str, float]:
        """The mean terms of the last steps, and pairs a second: of all together, of the loader and of the step alone.

        The loader's rate follows from the time its processes spend on a pair, whether or not they wait afterwards.
        """
        steps = self._steps
        found = {key: sum(step.terms[key] for step in steps) / len(steps) for key in steps[0].terms}
        pairs = self._batch * len(steps)
        taken = sum(step.taken for step in steps)
        making = sum(step.making for step in steps) / self._makers
        return found | {
            "pairs_per_second": pairs / max(taken + sum(step.waited for step in steps), 1e-9),
            "loader_pairs_per_second": pairs / max(making, 1e-9),
            "step_pairs_per_second": pairs / max(taken, 1e-9),
        }


def status(summary: dict[str, float]) -> str:
    """A summary in a line, for the progress bar."""
    loader, step = summary["loader_pairs_per_second"], summary["step_pairs_per_second"]
    binds = "the loader binds" if loader < step else "the step binds"
    return (
        f"{summary['pairs_per_second']:.0f}/s (loader {loader:.0f}, step {step:.0f}: {binds})  "
        f"loss {summary['loss']:.3f}  IoU {summary['iou']:.3f}"
    )
