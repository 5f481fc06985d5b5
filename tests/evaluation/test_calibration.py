"""Scores made into probabilities: the fit on outcomes whose probability is known."""

import hashlib
from importlib import resources

import numpy as np
import pytest

from ostrack_fast.calibration import CALIBRATED, Calibration, logit
from ostrack_fast.evaluation.calibration import fit, held_out, reliability

TRUE = Calibration(1.5, -0.75)
FITTED_TO = {"small": "a64a0ad1c7b1b0cc24b6cdcb0b453bde43820642752f315b96e74e74ef7762f4"}


def made(seed=0, lengths=(4000, 2000, 1000)):
    random = np.random.default_rng(seed)
    scores = [random.uniform(0.05, 0.95, length) for length in lengths]
    return {f"video{n}": (each, random.uniform(size=len(each)) < TRUE(each)) for n, each in enumerate(scores)}


def test_the_fit_finds_what_the_outcomes_were_drawn_from():
    found = fit(made())
    assert (found.slope, found.offset) == (pytest.approx(TRUE.slope, abs=0.15), pytest.approx(TRUE.offset, abs=0.1))
    alike = {"all": (np.full(50, 0.5), np.ones(50, bool))}
    assert 0.9 < fit(alike)(0.5) < 1


def test_every_video_weighs_the_same():
    """A long video whose scores are always wrong moves the fit no more than a short one does."""
    pairs = made(lengths=(1000, 1000))
    short = fit(pairs | {"wrong": (np.full(100, 0.9), np.zeros(100, bool))})
    long = fit(pairs | {"wrong": (np.full(5000, 0.9), np.zeros(5000, bool))})
    assert long(0.9) == pytest.approx(short(0.9), abs=1e-6) and short(0.9) < fit(pairs)(0.9) - 0.05


def test_what_a_calibration_is_worth_is_measured_on_other_videos():
    pairs = made()
    before, after = reliability(pairs)[0], reliability(held_out(pairs))[0]
    assert before > 0.1 and after < 0.03
    odd = pairs | {"odd": (np.full(100, 0.8), np.zeros(100, bool))}
    np.testing.assert_array_equal(held_out(odd)["odd"][0], fit(pairs)(odd["odd"][0]))


def test_reliability_by_hand():
    error, rows = reliability(
        {"a": (np.array([0.25, 0.25]), np.array([True, False])), "b": (np.array([1.0]), np.array([True]))}
    )
    assert rows == [[0.25, 0.5, 0.5], [1.0, 1.0, 0.5]] and error == pytest.approx(0.125)


@pytest.mark.parametrize("name", sorted(CALIBRATED))
def test_those_that_ship(name):
    """Monotonic probabilities, fitted to the very weights that ship: fit anew where this fails."""
    weights = resources.files("ostrack_fast") / "weights" / f"{name}.safetensors"
    assert hashlib.sha256(weights.read_bytes()).hexdigest() == FITTED_TO[name]
    likely = CALIBRATED[name](np.array([0.0, 0.2, 0.4, 0.6, 0.8, 1.0]))
    assert (np.diff(likely) > 0).all() and likely[0] >= 0 and likely[-1] <= 1
    assert isinstance(CALIBRATED[name](0.5), float) and logit(0.5) == 0
