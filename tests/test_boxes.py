"""Box conversions, overlap, and the way between image and crop."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ostrack_fast import boxes
from ostrack_fast.bench.upstream import crop_to_image

GOLDEN = np.load(Path(__file__).parent / "golden" / "processing.npz")

finite = st.floats(-1000, 1000)
side = st.floats(0.5, 1000)
box = st.tuples(finite, finite, side, side)


@given(box)
def test_corners(one):
    left, top, width, height = one
    corners = boxes.xywh_to_xyxy(torch.tensor(one, dtype=torch.float64))
    np.testing.assert_allclose(corners, (left, top, left + width, top + height))
    centred = torch.tensor([left + width / 2, top + height / 2, width, height], dtype=torch.float64)
    torch.testing.assert_close(boxes.cxcywh_to_xyxy(centred), corners)


@given(box, box)
def test_overlap_is_symmetric_bounded_and_one_on_itself(a, b):
    a, b = (boxes.xywh_to_xyxy(torch.tensor([x], dtype=torch.float64)) for x in (a, b))
    iou, giou = boxes.paired_iou(a, b)
    assert 0 <= iou <= 1 + 1e-9 and -1 - 1e-9 <= giou <= iou + 1e-9
    torch.testing.assert_close(boxes.paired_iou(b, a)[1], giou)
    torch.testing.assert_close(boxes.paired_iou(a, a)[1], torch.ones(1, dtype=torch.float64))


def test_overlap_equals_the_published_code():
    a = boxes.cxcywh_to_xyxy(torch.from_numpy(GOLDEN["giou_pred_cxcywh"]).double())
    b = boxes.xywh_to_xyxy(torch.from_numpy(GOLDEN["heatmap_boxes"]).double()).clamp(0, 1)
    iou, giou = boxes.paired_iou(a, b)
    np.testing.assert_allclose(iou.numpy(), GOLDEN["iou"], rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose((1 - giou).mean().item(), GOLDEN["giou_loss"], rtol=1e-6)


def test_degenerate_boxes_give_no_nan():
    empty = torch.tensor([[0.5, 0.5, 0.5, 0.5]])
    iou, giou = boxes.paired_iou(empty, empty)
    assert torch.isfinite(iou).all() and torch.isfinite(giou).all()


def test_clip_equals_the_published_code():
    for given_box, expected in zip(GOLDEN["clip_in"], GOLDEN["clip_out"], strict=True):
        np.testing.assert_allclose(boxes.clip_xywh(given_box, 240, 320, 10), expected)


@given(box, st.integers(20, 2000), st.integers(20, 2000))
def test_a_clipped_box_touches_the_frame(one, height, width):
    x, y, w, h = boxes.clip_xywh(one, height, width, 10)
    assert w >= 10 and h >= 10 and 0 <= x <= width - 10 and 0 <= y <= height - 10


def test_image_to_crop_equals_the_published_code():
    # Each stored box is the next one, in a crop around this one.
    around = torch.from_numpy(GOLDEN["boxes"])
    made = boxes.image_to_crop(around.roll(-1, 0), around, torch.full((6,), 1.7, dtype=torch.float64), 256)
    np.testing.assert_allclose(made.numpy(), [GOLDEN[f"box_in_crop_{i}"] for i in range(6)], rtol=1e-6, atol=1e-6)


@settings(max_examples=50)
@given(box, st.sampled_from([2.0, 4.0, 5.0]), st.sampled_from([128, 256, 384]))
def test_a_box_predicted_at_the_crops_centre_is_the_box_itself(one, factor, size):
    *_, crop_side = boxes.crop_window(one, factor)
    assert crop_side == math.ceil(math.sqrt(one[2] * one[3]) * factor)
    scale = size / crop_side
    predicted = (0.5, 0.5, one[2] * scale / size, one[3] * scale / size)
    np.testing.assert_allclose(crop_to_image(predicted, one, scale, size), one, rtol=1e-9, atol=1e-6)


@pytest.mark.parametrize(("centre", "left"), [(10.5, 8), (11.5, 10)])
def test_the_crops_corner_rounds_half_to_even(centre, left):
    # side 4, so left = round(centre - 2): 8.5 -> 8, 9.5 -> 10
    assert boxes.crop_window((centre - 0.5, centre - 0.5, 1, 1), 4)[0] == left
