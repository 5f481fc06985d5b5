"""One-pass evaluation of trackers on videos with ground truth.

>>> result = evaluate_folder("OTB100", tracker, one_based=["*"])  # as it is downloaded and unpacked
>>> result.mean.auc, result.skipped
>>> score_results("got10k", "GOT-10k", ["results/OSTrack"]).trackers[0].summary

`ostrack_fast.evaluation.plots` draws the curves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..data.truth import read_boxes
from ..data.videos import Video, load_video, load_videos
from .metrics import Scores, centre_error, overlap, precision_curve, score_video, success_curve
from .scoring import score_results

if TYPE_CHECKING:
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
    "score_results",
    "score_video",
    "success_curve",
]

_RUNNER = {"EvaluationResult", "SingleObjectTracker", "VideoResult", "evaluate_folder", "evaluate_video"}


def __getattr__(name: str) -> Any:
    # Imported when first used: scoring files needs no PyTorch, whose import takes longer than most scoring.
    if name not in _RUNNER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import runner

    return getattr(runner, name)
