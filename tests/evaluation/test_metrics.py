"""Metrics against cases computed by hand and against properties that hold for all boxes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ostrack_fast.data.truth import present
from ostrack_fast.evaluation import Scores, centre_error, overlap, precision_curve, score_video, success_curve
from ostrack_fast.evaluation.metrics import NORMALIZED_THRESHOLDS, OVERLAP_THRESHOLDS, PIXEL_THRESHOLDS

NAN = float("nan")


def boxes(count):
    place = st.floats(-500, 500, allow_nan=False)
    side = st.floats(1, 300, allow_nan=False)
    columns = st.tuples(*(arrays(np.float64, count, elements=e) for e in (place, place, side, side)))
    return columns.map(lambda c: np.stack(c, axis=1))


def test_thresholds_are_those_of_the_benchmarks():
    assert len(OVERLAP_THRESHOLDS) == 21 and OVERLAP_THRESHOLDS[3] == 0.15 and OVERLAP_THRESHOLDS[-1] == 1
    assert len(PIXEL_THRESHOLDS) == 51 and PIXEL_THRESHOLDS[20] == 20 and PIXEL_THRESHOLDS[-1] == 50
    assert len(NORMALIZED_THRESHOLDS) == 51 and NORMALIZED_THRESHOLDS[20] == 0.2 and NORMALIZED_THRESHOLDS[-1] == 0.5


def test_overlap_by_hand():
    predicted = [[0, 0, 10, 10], [5, 0, 10, 10], [5, 5, 10, 10], [10, 0, 10, 10], [2, 2, 5, 4], [0.5, 0.5, 1, 1]]
    truth = [[0, 0, 10, 10]] * 5 + [[0, 0, 1, 1]]
    expected = [1, 50 / 150, 25 / 175, 0, 20 / 100, 0.25 / 1.75]
    np.testing.assert_allclose(overlap(predicted, truth), expected, rtol=1e-12)


def test_centre_error_by_hand():
    predicted, truth = [[3, 4, 10, 10], [0, 0, 20, 10]], [[0, 0, 10, 10], [0, 0, 10, 20]]
    np.testing.assert_allclose(centre_error(predicted, truth), [5, np.hypot(5, 5)])
    # Divided by the true sides, 10 x 10 and 10 x 20, not by the predicted ones.
    np.testing.assert_allclose(centre_error(predicted, truth, normalized=True), [0.5, np.hypot(0.5, 0.25)])


@pytest.mark.parametrize("nothing", [[NAN] * 4, [0, 0, 0, 5], [0, 0, 5, -1], [0, 0, np.inf, 5]])
def test_a_prediction_that_is_no_box_misses(nothing):
    assert not present([nothing])[0]
    assert overlap([nothing], [[0, 0, 5, 5]])[0] == 0
    assert centre_error([nothing], [[0, 0, 5, 5]])[0] == np.inf
    assert precision_curve(centre_error([nothing], [[0, 0, 5, 5]])).max() == 0


def test_success_is_strict_and_precision_is_not():
    assert success_curve([0.5])[OVERLAP_THRESHOLDS.tolist().index(0.5)] == 0
    assert success_curve([0.5])[OVERLAP_THRESHOLDS.tolist().index(0.45)] == 1
    assert precision_curve([20.0])[20] == 1
    assert precision_curve([20.0])[19] == 0


def test_video_scores_by_hand():
    truth = [[0, 0, 10, 10], [0, 0, 10, 10], [NAN] * 4, [0, 0, 10, 10], [0, 0, 0, 0], [0, 0, 10, 10]]
    predicted = [
        [0, 0, 10, 10],  # given: overlap 1
        [0, 0, 10, 8],  # overlap 0.8, centre 1 px off
        [0, 0, 10, 10],  # absent, left out
        [0, 0, 5, 10],  # overlap 0.5, centre 2.5 px off
        [500, 0, 10, 10],  # absent, left out
        [100, 0, 10, 10],  # overlap 0, centre 100 px off
    ]
    scores = score_video(predicted, truth)
    # Thresholds below 1, 0.8, 0.5 and 0: 20, 16, 10, 0 of the 21, over four frames.
    assert scores.auc == pytest.approx((20 + 16 + 10 + 0) / 21 / 4)
    assert scores.precision_20 == 3 / 4
    assert scores.precision[:4].tolist() == [1 / 4, 2 / 4, 2 / 4, 3 / 4]
    assert scores.normalized_precision_20 == 2 / 4
    # Errors 0, 0.1, 0.25, 10: within 51, 41, 26 and 0 of the 51 thresholds.
    assert scores.normalized_precision_auc == pytest.approx((51 + 41 + 26) / 51 / 4)
    # The GOT-10k numbers leave out the first frame; 0.5 does not exceed 0.5.
    assert scores.average_overlap == pytest.approx((0.8 + 0.5 + 0) / 3)
    assert scores.success_50 == pytest.approx(1 / 3)
    assert scores.success_75 == pytest.approx(1 / 3)


@given(boxes(6))
def test_perfect_boxes_score_as_much_as_is_possible(truth):
    scores = score_video(truth, truth)
    numbers = scores.numbers()
    # No overlap exceeds the last threshold, 1.
    assert numbers.pop("auc") == pytest.approx(20 / 21)
    assert numbers == pytest.approx(dict.fromkeys(numbers, 1.0))


@given(boxes(6))
def test_disjoint_boxes_overlap_nowhere(truth):
    beside = truth.copy()
    beside[:, 0] += truth[:, 2] + 1e-6
    scores = score_video(beside, truth)
    assert scores.success.max() == 0 and scores.average_overlap == 0
    # The centres are a whole width apart: beyond every normalized threshold.
    assert scores.normalized_precision.max() == 0


@given(boxes(8), boxes(8))
def test_curves_are_shares_and_monotone(predicted, truth):
    scores = score_video(predicted, truth)
    for curve in (-scores.success, scores.precision, scores.normalized_precision):
        assert (np.diff(curve) >= 0).all()
        assert np.abs(curve).max() <= 1


@given(boxes(8), boxes(8), st.sampled_from([0.25, 0.5, 2.0, 8.0]), st.sampled_from([-64.0, 0.0, 32.0]))
def test_scale_and_shift(predicted, truth, factor, shift):
    """Overlap and normalized error do not depend on resolution or origin; the error in pixels scales."""
    a, b = predicted * factor, truth * factor
    a[:, :2] += shift
    b[:, :2] += shift
    tight = {"rtol": 1e-7, "atol": 1e-7}
    np.testing.assert_allclose(overlap(a, b), overlap(predicted, truth), **tight)
    np.testing.assert_allclose(centre_error(a, b, True), centre_error(predicted, truth, True), **tight)
    np.testing.assert_allclose(centre_error(a, b), factor * centre_error(predicted, truth), **tight)


@given(boxes(8), boxes(8))
def test_overlap_is_symmetric_and_a_share(a, b):
    np.testing.assert_allclose(overlap(a, b), overlap(b, a), rtol=1e-12)
    assert ((overlap(a, b) >= 0) & (overlap(a, b) <= 1)).all()


def test_mean_weighs_videos_alike():
    good, bad = np.tile([0.0, 0, 10, 10], (2, 1)), np.tile([0.0, 0, 10, 10], (40, 1))
    scores = [score_video(good, good), score_video(bad + np.array([100, 0, 0, 0]), bad)]
    mean = Scores.mean(scores)
    assert mean.auc == pytest.approx((20 / 21 + 0) / 2)
    assert mean.success.shape == (21,)
    assert isinstance(mean.average_overlap, float) and mean.average_overlap == 0.5


def test_what_cannot_be_scored_says_so():
    box = [[0, 0, 10, 10]]
    with pytest.raises(ValueError, match="2 predicted boxes for 1 frames"):
        score_video(box * 2, box)
    with pytest.raises(ValueError, match=r"shape \(n, 4\), got \(1, 3\)"):
        overlap([[0, 0, 10]], box)
    with pytest.raises(ValueError, match="no frame after the first"):
        score_video(box * 2, [*box, [NAN] * 4])
    with pytest.raises(ValueError, match="no scores"):
        Scores.mean([])
