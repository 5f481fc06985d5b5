"""OpenCV's own tracker on an exported file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2

from ..ops.reference import IMAGE_MEAN, IMAGE_STD


def trackervit_params(path: str | Path) -> Any:
    """Parameters for `cv2.TrackerVit_create`, with which it runs a file of `export_model(..., layout="opencv")`.

    The tracker takes RGB frames. `tracking_score_threshold`, below which it reports no box, keeps OpenCV's default.

    OpenCV multiplies the pixels by `1.0 / stdvalue`, and divides by a `cv::Scalar` as by a quaternion: of the default
    standard deviations it makes (1.49, -1.46, -1.47) instead of (4.37, 4.46, 4.44). The `stdvalue` set here is the
    quaternion whose inverse is right. Source: OpenCV 4.x and 5.0, `tracker_vit.cpp` and `cv::Scalar_::operator/`.

    Raises:
        ImportError: an OpenCV older than `TrackerVit`.
    """
    params: Any = getattr(cv2, "TrackerVit_Params", None)  # not in the stubs of every OpenCV
    if params is None:
        raise ImportError(f"OpenCV {cv2.__version__} has no TrackerVit: install 4.9 or later")
    params = params()
    params.net = str(path)
    params.meanvalue = (*IMAGE_MEAN, 0.0)
    wanted = [1 / deviation for deviation in IMAGE_STD]
    norm = sum(value * value for value in wanted)
    params.stdvalue = (wanted[0] / norm, -wanted[1] / norm, -wanted[2] / norm, 0.0)
    return params
