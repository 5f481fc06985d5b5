"""How lost targets are counted: the made videos, and the figures over them."""

import numpy as np
import pytest

from ostrack_fast import TrackResult
from ostrack_fast.evaluation.disappearing import ABSENT_BELOW, FRAMES, HEIGHT, KINDS, WIDTH, make_scene
from ostrack_fast.evaluation.redetection import Tally, long_term


@pytest.fixture(scope="module", params=[KINDS[0], *(pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS[1:])])
def scene(request):
    return make_scene(request.param, 7)


@pytest.mark.slow
def test_a_scene_follows_from_its_seed(scene):
    again, other = (make_scene(scene.name.split("-")[0], seed) for seed in (7, 8))
    assert all(np.array_equal(frame, twin) for frame, twin in zip(scene.frames, again.frames, strict=True))
    assert not np.array_equal(scene.frames[0], other.frames[0])


def test_the_target_goes_and_comes_back(scene):
    absent = np.isnan(scene.boxes).any(1)
    assert np.array_equal(absent, scene.seen < ABSENT_BELOW)
    assert not absent[0] and absent.any() and not absent[scene.returned]
    assert absent[: scene.returned].any() and len(scene.frames) == FRAMES
    x, y, w, h = scene.boxes[~absent].T
    assert (x >= 0).all() and (y >= 0).all() and (x + w <= WIDTH).all() and (y + h <= HEIGHT).all()


def answers(scene, lost, boxes):
    return [
        TrackResult(box=tuple(box), score=1.0, lost=bool(gone)) for box, gone in zip(boxes[1:], lost[1:], strict=True)
    ]


def test_a_perfect_tracker_and_one_that_is_never_back(scene):
    absent = np.isnan(scene.boxes).any(1)
    perfect, blind = Tally(), Tally()
    boxes = np.nan_to_num(scene.boxes)
    perfect.add(scene, answers(scene, absent, boxes))
    figures = perfect.figures()
    assert figures["found_again"] == 1 and figures["falsely_found"] == 0
    assert (figures["precision"], figures["recall"], figures["f"]) == pytest.approx((1, 1, 1))
    # It says it has found the target while it is away, and where it is not.
    away = np.tile([0.0, 0.0, 1.0, 1.0], (FRAMES, 1))
    blind.add(scene, answers(scene, np.arange(FRAMES) % 2 == 0, away))
    figures = blind.figures()
    assert figures["found_again"] == 0 and figures["falsely_found"] == 1 and figures["f"] == 0


def test_f_is_taken_at_the_best_confidence():
    # Above 0.5: precision 0.9, recall 0.9 * 2 / 3. With the wrong answer at 0.3 both become 0.6.
    frames = [(0.8, 0.9, True), (0.7, 0.9, True), (0.3, 0.0, True), (0.0, 0.0, False)]
    precision, recall, f = long_term(frames)
    assert (precision, recall) == pytest.approx((0.9, 0.6))
    assert f == pytest.approx(2 * 0.9 * 0.6 / 1.5)
