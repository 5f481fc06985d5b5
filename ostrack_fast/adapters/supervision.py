"""Results as `supervision.Detections`, for its annotators, zones and sinks.

>>> detections = to_detections(multi_tracker.track(frame))
>>> supervision.BoxAnnotator().annotate(frame, detections)
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from supervision import Detections

from ..tracker import TrackResult


def to_detections(results: TrackResult | Mapping[int, TrackResult]) -> Detections:
    """One frame's results, those of a `Tracker` (its target is number 0) or a `MultiTracker`.

    `xyxy` (n,4) in pixels, `confidence` (n,) the scores, `tracker_id` (n,) the targets' numbers, `class_id` (n,) zeros,
    and `data["lost"]` (n,) bool.
    """
    named = {0: results} if isinstance(results, TrackResult) else results
    boxes = np.array([each.box for each in named.values()], np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return Detections(
        xyxy=boxes,
        confidence=np.array([each.score for each in named.values()], np.float64),
        class_id=np.zeros(len(named), np.int64),
        tracker_id=np.array(list(named), np.int64),
        data={"lost": np.array([each.lost for each in named.values()], bool)},
    )
