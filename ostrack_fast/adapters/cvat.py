"""A tracking function for CVAT's automatic annotation, of rectangles.

CVAT's command line makes it with `create` and runs it as an agent, which then is a tracker in CVAT's AI tools:

    cvat-cli function create-native "OSTrack" --function-module ostrack_fast.adapters.cvat -p weights=str:small
    cvat-cli function run-agent ID --function-module ostrack_fast.adapters.cvat -p weights=str:small
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from cvat_sdk.auto_annotation import (
    TrackableShape,
    TrackingFunctionContext,
    TrackingFunctionShapeContext,
    TrackingFunctionSpec,
)
from PIL.Image import Image

from ..inputs import Box
from ..model import OSTrack
from ..tracker import Tracker


@dataclass
class _State:
    """Where a shape was first seen, and where it was last."""

    first_frame: np.ndarray
    first_box: Box
    box: Box


class OSTrackFunction:
    """CVAT's `TrackingFunction`: every shape is followed by itself, on any frames in any order.

    Args:
        weights, device, dtype: as `Tracker`.
        lost_below: below this score a shape counts as not found on an image.
    """

    spec = TrackingFunctionSpec(supported_shape_types=["rectangle"])

    def __init__(self, weights: str = "small", device: str = "auto", dtype: str = "auto", lost_below: float = 0.4):
        self._tracker = Tracker(OSTrack.from_pretrained(weights), device, dtype, lost_below)

    def preprocess_image(self, context: TrackingFunctionContext, image: Image) -> np.ndarray:
        """The image as (h,w,3) uint8 RGB."""
        return np.asarray(image.convert("RGB"))

    def init_tracking_state(
        self, context: TrackingFunctionShapeContext, pp_image: np.ndarray, shape: TrackableShape
    ) -> _State:
        """Take a shape, whose points are left, top, right, bottom."""
        left, top, right, bottom = shape.points
        box = (left, top, right - left, bottom - top)
        return _State(pp_image, box, box)

    def track(
        self, context: TrackingFunctionShapeContext, pp_image: np.ndarray, state: _State
    ) -> TrackableShape | None:
        """Where the shape is on another image, or None where the score is low."""
        # One tracker serves all shapes: it takes each one's template anew, which costs little beside a frame.
        self._tracker.initialize(state.first_frame, state.first_box)
        self._tracker.engine.place([state.box])
        result = self._tracker.track(pp_image)
        if result.lost:
            return None
        state.box = result.box
        x, y, w, h = result.box
        return TrackableShape(type="rectangle", points=[x, y, x + w, y + h])


def create(
    weights: str = "small", device: str = "auto", dtype: str = "auto", lost_below: float = 0.4
) -> OSTrackFunction:
    """What CVAT's command line calls with its `-p` parameters."""
    return OSTrackFunction(weights, device, dtype, lost_below)
