"""The GOT-10k toolkit's tracker interface.

>>> from got10k.experiments import ExperimentGOT10k
>>> ExperimentGOT10k("GOT-10k", subset="val").run(Got10kTracker(Tracker("small")))
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from got10k.trackers import Tracker as _Toolkit
from PIL.Image import Image

from ..tracker import Tracker


class Got10kTracker(_Toolkit):
    """A tracker that the toolkit's experiments can run.

    Args:
        tracker: is started again by every `init`.
        name: of the folder that the toolkit writes results to.
    """

    def __init__(self, tracker: Tracker, name: str = "OSTrack"):
        super().__init__(name=name, is_deterministic=True)
        self.tracker = tracker

    def init(self, image: Image, box: Sequence[float]) -> None:
        """Take the target from an image; the box is left, top, width, height, in the toolkit's pixels from 0."""
        self.tracker.initialize(np.asarray(image.convert("RGB")), box)

    def update(self, image: Image) -> np.ndarray:
        """The target's box in the next image: (4,) float64, left, top, width, height."""
        return np.array(self.tracker.track(np.asarray(image.convert("RGB"))).box)
