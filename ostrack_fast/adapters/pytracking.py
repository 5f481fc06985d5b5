"""The tracker interface of pytracking, which the published code and its forks use too.

pytracking finds a tracker as a folder `pytracking/tracker/NAME` with a parameter file `pytracking/parameter/NAME/*.py`.
The folder's `__init__.py` for OSTrack is one function:

>>> def get_tracker_class():
...     from ostrack_fast.adapters.pytracking import PytrackingTracker
...     return PytrackingTracker
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..tracker import Tracker


class PytrackingTracker:
    """What pytracking's evaluation calls; see its `BaseTracker`.

    Args:
        params: of pytracking's parameter file. Its attributes `weights`, `device` and `dtype`, where it has them, are
            those of `Tracker`.
    """

    multiobj_mode = "parallel"  # pytracking makes one tracker for each target

    def __init__(self, params: Any):
        self.params = params
        chosen = {key: getattr(params, key) for key in ("device", "dtype") if hasattr(params, key)}
        self.tracker = Tracker(getattr(params, "weights", "small"), **chosen)

    def initialize(self, image: np.ndarray, info: Mapping[str, Any]) -> dict[str, Any]:
        """Take the target `info["init_bbox"]` (x, y, w, h) from an RGB image (h,w,3) uint8."""
        self.tracker.initialize(image, info)
        return {"target_bbox": list(info["init_bbox"])}

    def track(self, image: np.ndarray, info: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The target's box in the next image, and the score under pytracking's name for it."""
        result = self.tracker.track(image)
        return {"target_bbox": list(result.box), "object_presence_score": result.score}
