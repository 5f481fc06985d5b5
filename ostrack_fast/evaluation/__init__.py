"""One-pass evaluation of trackers on videos with ground truth.

>>> result = evaluate_folder("OTB100", tracker, one_based=["*"])
>>> result.mean.auc

`ostrack_fast.evaluation.plots` draws the curves.
"""

from .datasets import Video, load_video, load_videos, read_boxes
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
