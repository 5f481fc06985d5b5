"""The whole measurement against a published tracker whose score on these videos is known from elsewhere."""

import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from ostrack_fast.evaluation import evaluate_folder, load_videos

DATA = os.environ.get("OSTRACK_FAST_DATA")
needs_videos = pytest.mark.skipif(not DATA, reason="OSTRACK_FAST_DATA does not name the folder that holds sequences/")
needs_nanotrack = pytest.mark.skipif(
    not (DATA and Path(DATA, "peers", "nanotrack_head_sim.onnx").is_file()),
    reason="OSTRACK_FAST_DATA does not name a folder that holds peers/nanotrack_head_sim.onnx",
)
ONE_BASED = ("OTB_*", "VOT_*")


class NanoTrack:
    """NanoTrack v2 through OpenCV, which can start a tracker only once and wants whole pixels and BGR."""

    def __init__(self):
        settings = cv2.TrackerNano_Params()
        settings.backbone = str(Path(DATA, "peers", "nanotrack_backbone_sim.onnx"))
        settings.neckhead = str(Path(DATA, "peers", "nanotrack_head_sim.onnx"))
        self.tracker = cv2.TrackerNano_create(settings)

    def initialize(self, frame, box):
        self.tracker.init(np.ascontiguousarray(frame[..., ::-1]), tuple(map(round, box)))

    def track(self, frame):
        found, box = self.tracker.update(np.ascontiguousarray(frame[..., ::-1]))
        return box if found else None


@needs_videos
def test_every_video_is_read():
    videos = load_videos(Path(DATA, "sequences"), ONE_BASED)
    assert len(videos) == 17
    assert sum(map(len, videos)) == 2396
    absent = {video.name: int(np.isnan(video.boxes[:, 0]).sum()) for video in videos}
    assert {name: count for name, count in absent.items() if count} == {"TLD_pedestrian3": 28}


@needs_videos
@needs_nanotrack
@pytest.mark.slow
def test_nanotrack_scores_what_it_is_known_to_score():
    result = evaluate_folder(Path(DATA, "sequences"), NanoTrack, one_based=ONE_BASED)
    assert result.mean.auc == pytest.approx(0.698, abs=0.005)
