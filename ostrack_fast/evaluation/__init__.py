"""One-pass evaluation of trackers on videos with ground truth.

>>> result = evaluate_folder("OTB100", tracker, one_based=["*"])  # as it is downloaded and unpacked
>>> result.mean.auc, result.skipped

`ostrack_fast.evaluation.plots` draws the curves.
"""

from ..data.truth import read_boxes
from ..data.videos import Video, load_video, load_videos
from .metrics import Scores, centre_error, overlap, precision_curve, score_video, success_curve
from .runner import EvaluationResult, SingleObjectTracker, VideoResult, evaluate_folder, evaluate_video

__all__ = [
    "EvaluationResult",
    "Scores",
    "SingleObjectTracker",
    "Video",
    "VideoResult",
    "centre_error",
    "evaluate_folder",
    "evaluate_video",
    "load_video",
    "load_videos",
    "overlap",
    "precision_curve",
    "read_boxes",
    "score_video",
    "success_curve",
]
