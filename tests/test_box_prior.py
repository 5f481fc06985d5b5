"""The shape of reported boxes: the correction itself, what it leaves alone, and that no search changes."""

from math import exp, log

import numpy as np
import pytest

from ostrack_fast import Tracker
from ostrack_fast.box_prior import BoxPrior, Shape
from ostrack_fast.redetection import Redetection

from .tiny_tracker import BOX, assert_many_as_each_alone, frames, tiny_model

BLANK = np.zeros((200, 300, 3), np.uint8)


class Engine:
    """Sees the target wherever it looks, wider by a factor exp(error) and less high by as much."""

    def __init__(self, *errors):
        self.errors, self.looked = errors, []

    def look(self, frame, row, boxes):
        self.looked += boxes
        x, y, w, h = BOX
        return [[x, y, w * exp(error / 2), h * exp(-error / 2), 0.9] for error in self.errors]


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.mark.parametrize(("calibration", "prior"), [(1.0, 0.0), (0.5, 0.25), (0.0, 1.0), (0.0, 0.0)])
def test_half_of_the_first_frames_error_and_a_quarter_of_the_rest(calibration, prior):
    engine = Engine(0.1, 0.3, 0.2, 0.2)
    shape = Shape.calibrated(engine, BoxPrior(calibration, prior), BLANK, 0, BOX)
    assert (shape.error, shape.aspect) == (pytest.approx(0.2 if calibration else 0), pytest.approx(log(2)))
    x, y, w, h, score = shape.corrected([120.0, 90.0, 30.0, 30.0, 0.7], BLANK)
    aspect = (0 - 0.2 * calibration) * (1 - prior) + log(2) * prior
    assert log(w / h) == pytest.approx(aspect) and w * h == pytest.approx(900) and score == 0.7
    assert (x + w / 2, y + h / 2) == (pytest.approx(135), pytest.approx(105)), "its centre stays"


def test_the_first_frame_is_searched_near_the_box_and_around_it_on_the_mean():
    engine = Engine(0.0)
    Shape.calibrated(engine, BoxPrior(), BLANK, 0, BOX)
    looked = np.array(engine.looked)
    centres = looked[:, :2] + looked[:, 2:] / 2
    assert len(looked) == 4 and (np.abs(centres - (120, 90)).max(0) < 0.2 * 800**0.5).all()
    np.testing.assert_allclose(centres.mean(0), (120, 90))
    np.testing.assert_allclose(looked[:, 2] / looked[:, 3], 2)


def test_what_the_edge_cuts_keeps_its_shape():
    at_edge = (0.0, 80.0, 20.0, 40.0)
    row = [9.0, 9.0, 30.0, 30.0, 1.0]
    assert Shape.calibrated(Engine(0.4), BoxPrior(), BLANK, 0, at_edge).corrected(row, BLANK) == row
    shape = Shape.calibrated(Engine(0.4), BoxPrior(), BLANK, 0, BOX)
    for cut in ([0.0, 9.0, 30.0, 30.0, 1.0], [270.0, 9.0, 30.0, 30.0, 1.0], [50.0, 170.0, 30.0, 30.0, 1.0]):
        assert shape.corrected(cut, BLANK) == cut
    wide = shape.corrected([1.0, 100.0, 40.0, 40.0, 1.0], BLANK)
    assert wide[0] >= 0 and wide[2] != 40, "what is corrected is clipped to the frame"


def test_answers_that_are_no_number_or_cut_calibrate_nothing():
    engine = Engine(0.2)
    engine.look = lambda *_: [[float("nan")] * 5, [0.0, 5.0, 50.0, 5.0, 0.5]]
    assert Shape.calibrated(engine, BoxPrior(), BLANK, 0, BOX).error == 0


@pytest.mark.parametrize("redetect", [False, Redetection(lost_below=0.0, lost_likeness=0.0)])
def test_the_search_is_the_same_and_off_is_bit_identical(model, redetect):
    plain, without, corrected = (
        Tracker(model, "cpu", "float32", redetect=redetect, **kwargs)
        for kwargs in ({}, {"box_prior": False}, {"box_prior": True})
    )
    first, *rest = frames(6)
    for tracker in (plain, without, corrected):
        tracker.initialize(first, BOX)
    changed = 0
    for frame in rest:
        expected = plain.track(frame)
        assert without.track(frame) == expected
        result = corrected.track(frame)
        assert corrected.engine.boxes == plain.engine.boxes, "the same search in the next frame"
        assert result.score == expected.score
        changed += result.box != expected.box
        shape = corrected._shapes[0]
        assert list(result.box) == shape.corrected([*plain.engine.boxes[0], 0.0], frame)[:4]
    assert changed


def test_many_targets_as_each_alone(model):
    assert_many_as_each_alone(model, box_prior=True)


def test_a_failed_calibration_leaves_the_target_there_was(model, monkeypatch):
    tracker = Tracker(model, "cpu", "float32", box_prior=True)
    first, second, third = frames(3)
    tracker.initialize(first, BOX)
    expected = tracker.track(second)
    tracker.initialize(first, BOX)
    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(tracker.engine, "look", lambda *_: (_ for _ in ()).throw(MemoryError))
        tracker.initialize(third, (30.0, 30.0, 50.0, 20.0))
    assert tracker.engine.count == 1 and tracker.track(second) == expected


def test_settings_out_of_range_are_told():
    with pytest.raises(ValueError, match="calibration=2 must lie in"):
        BoxPrior(calibration=2)
    with pytest.raises(ValueError, match="prior=-1 must lie in"):
        BoxPrior(prior=-1)
