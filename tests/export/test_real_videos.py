"""An exported file tracks real videos as the engine does; OpenCV's own tracker does with it what it should."""

import os
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from ostrack_fast import OSTrack, Tracker
from ostrack_fast.boxes import paired_iou, xywh_to_xyxy
from ostrack_fast.export import export_model
from ostrack_fast.export.opencv import trackervit_params
from ostrack_fast.model.vit import box_embedding

SEQUENCES = ("DAVIS_libby", "OTB_Crossing", "VOT_bag")


@pytest.fixture
def folder():
    data = os.environ.get("OSTRACK_FAST_DATA")
    if not data:
        pytest.skip("OSTRACK_FAST_DATA names no folder with real videos")
    return Path(data) / "sequences"


def read(folder, name, most):
    paths = sorted((folder / name / "img").iterdir())[:most]
    text = (folder / name / "groundtruth_rect.txt").read_text().split("\n", 1)[0]
    return [cv2.imread(str(path))[..., ::-1].copy() for path in paths], tuple(map(float, text.split(",")))


def follow(tracker, frames, box):
    tracker.initialize(frames[0], box)
    return np.array([tracker.track(frame).box for frame in frames[1:]])


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    pytest.importorskip("onnxscript", reason="needs the packages of the extra export")
    path = tmp_path_factory.mktemp("small") / "small.onnx"
    export_model(OSTrack.from_pretrained("small"), path)
    return path


@pytest.fixture(scope="module")
def enlarged(tmp_path_factory):
    """The shipped weights at the crop sizes of cv2.TrackerVit, which tells no box: its file, and the model."""
    pytest.importorskip("onnxscript", reason="needs the packages of the extra export")
    small = OSTrack.from_pretrained("small")
    model = OSTrack(replace(small.cfg, template_size=128, search_size=256, template_box=False)).eval()
    state = small.state_dict()
    vectors = state.pop("backbone.box_embed")
    for name in ("backbone.pos_embed_z", "backbone.pos_embed_x"):
        old, side = state[name], round(model.state_dict()[name].shape[1] ** 0.5)
        grid = old.transpose(1, 2).unflatten(2, (round(old.shape[1] ** 0.5), -1))
        state[name] = interpolate(grid, (side, side), mode="bicubic").flatten(2).transpose(1, 2)
    # As a square target has it.
    state["backbone.pos_embed_z"] = state["backbone.pos_embed_z"] + box_embedding(vectors, None, model.cfg)
    model.load_state_dict(state)
    path = tmp_path_factory.mktemp("enlarged") / "opencv.onnx"
    export_model(model, path, layout="opencv")
    return path, model


@pytest.mark.slow
@pytest.mark.parametrize("name", SEQUENCES)
def test_an_onnx_file_tracks_within_half_a_pixel(small, folder, name):
    frames, box = read(folder, name, 80)
    ours = follow(Tracker("small", "cpu", "float32"), frames, box)
    theirs = follow(Tracker.from_onnx(small), frames, box)
    assert np.abs(ours - theirs).max() < 0.5


@pytest.mark.slow
@pytest.mark.parametrize("name", SEQUENCES)
def test_opencv_tracks_real_videos_with_an_exported_file(enlarged, folder, name):
    path, model = enlarged
    frames, box = read(folder, name, 60)
    box = tuple(map(round, box))
    ours = follow(Tracker(model, "cpu", "float32"), frames, box)
    tracker = cv2.TrackerVit_create(trackervit_params(path))
    tracker.init(frames[0], box)
    theirs = []
    for frame in frames[1:]:
        found, rectangle = tracker.update(frame)
        assert found
        theirs.append(rectangle)
    # Its crops start from boxes of whole pixels, so that it drifts by a few.
    assert mean_iou(ours, np.array(theirs)) > 0.7


def mean_iou(a, b):
    pairs = (xywh_to_xyxy(torch.as_tensor(boxes, dtype=torch.float64)) for boxes in (a, b))
    return float(paired_iou(*pairs)[0].mean())
