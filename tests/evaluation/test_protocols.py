"""Protocols against the toolkit of GOT-10k, against cases computed by hand, and against what each must never give."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ostrack_fast.evaluation.protocols import PROTOCOLS, PyTracking, Truth

NAN = [np.nan] * 4
BOX = [11.0, 11.0, 20.0, 10.0]


def score(protocol, predicted, truth, **flags):
    one = PROTOCOLS[protocol] if isinstance(protocol, str) else protocol
    flags = {name: value if name in ("size", "dataset") else np.array(value) for name, value in flags.items()}
    return one.summarize([one.score(np.array(predicted, float), Truth("s", np.array(truth, float), **flags))])


# The toolkit of GOT-10k.


@pytest.fixture(scope="module")
def toolkit():
    """The real package, with the aliases that numpy has dropped for as long as it is imported."""
    with pytest.MonkeyPatch.context() as patch:
        for name, kind in (("float", float), ("int", int), ("bool", bool)):
            if name not in vars(np):
                patch.setattr(np, name, kind, raising=False)
        metrics = pytest.importorskip("got10k.utils.metrics", reason="the package got10k is not installed")
        experiments = pytest.importorskip("got10k.experiments", reason="the package got10k is not installed")
        yield metrics, experiments


def random_boxes(rng, count, adversarial):
    boxes = np.column_stack((rng.uniform(-60, 340, (count, 2)), rng.uniform(1, 200, (count, 2)))).round(3)
    if adversarial:
        kinds = np.array([[0, 0, 0, 0], [5, 5, -3, 8], [-500, -500, 20, 20], [400, 300, 50, 50], [0, 0, 5000, 5000]])
        where = rng.random(count) < 0.4
        boxes[where] = kinds[rng.integers(len(kinds), size=where.sum())]
    return boxes


@pytest.mark.parametrize("adversarial", [False, True])
def test_got10k_equals_the_toolkit(tmp_path, toolkit, adversarial):
    """Its own report over a miniature of the validation set, results read from files."""
    rng = np.random.default_rng(int(adversarial))
    names = [f"GOT-10k_Val_{i:06}" for i in range(1, 6)]
    (tmp_path / "val").mkdir()
    (tmp_path / "val" / "list.txt").write_text("\n".join(names) + "\n")
    scores = []
    for name in names:
        count = int(rng.integers(5, 60))
        truth = random_boxes(rng, count, False)
        predicted = truth + rng.normal(0, 15, truth.shape).round(3)
        predicted[:, 2:] = np.maximum(predicted[:, 2:], 1)
        if adversarial:
            where = rng.random(count) < 0.5
            predicted[where] = random_boxes(rng, count, True)[where]
        cover = rng.integers(0, 9, count)
        folder, results = tmp_path / "val" / name, tmp_path / "results" / "GOT-10k" / "mine" / name
        folder.mkdir()
        results.mkdir(parents=True)
        for i in range(count):
            (folder / f"{i + 1:08}.jpg").write_bytes(b"")
        np.savetxt(folder / "groundtruth.txt", truth, fmt="%.4f", delimiter=",")
        np.savetxt(folder / "cover.label", cover, fmt="%d")
        for other in ("absence", "cut_by_image"):
            np.savetxt(folder / f"{other}.label", np.zeros(count), fmt="%d")
        (folder / "meta_info.ini").write_text("[METAINFO]\nresolution: (320, 240)\n")
        np.savetxt(results / f"{name}_001.txt", predicted, fmt="%.3f", delimiter=",")
        np.savetxt(results / f"{name}_time.txt", np.full(count, 0.01))
        scores.append(PROTOCOLS["got10k"].score(predicted, Truth(name, truth, None, cover, (320, 240))))
    experiment = toolkit[1].ExperimentGOT10k(
        str(tmp_path), subset="val", result_dir=str(tmp_path / "results"), report_dir=str(tmp_path / "reports")
    )
    experiment.plot_curves = lambda *args: None
    report = experiment.report(["mine"])["mine"]
    ours = PROTOCOLS["got10k"].summarize(scores)
    assert ours["AO"] == pytest.approx(report["overall"]["ao"], abs=1e-9)
    assert ours["SR_0.50"] == pytest.approx(report["overall"]["sr"], abs=1e-12)
    assert ours["SR_0.75"] == pytest.approx(report["overall"]["succ_curve"][75], abs=1e-12)
    for name, one in zip(names, scores, strict=True):
        assert PROTOCOLS["got10k"].summarize([one])["AO"] == pytest.approx(report["seq_wise"][name]["ao"], abs=1e-9)


def test_otb_equals_the_toolkits_on_boxes_without_special_cases(toolkit):
    """Its OTB experiment, whose metrics know neither missing answers nor missing truth."""
    experiment = toolkit[1].ExperimentOTB.__new__(toolkit[1].ExperimentOTB)
    experiment.nbins_iou, experiment.nbins_ce = 21, 51
    rng = np.random.default_rng(0)
    truth = np.abs(random_boxes(rng, 500, False)) + 1
    predicted = truth + rng.normal(0, 10, truth.shape)
    predicted[:, 2:] = np.maximum(predicted[:, 2:], 1)
    predicted[0] = truth[0]
    success, precision = experiment._calc_curves(*experiment._calc_metrics(predicted, truth))
    ours = PROTOCOLS["otb"].score(predicted, Truth("s", truth))
    np.testing.assert_allclose(ours.success, success, atol=1e-12)
    np.testing.assert_allclose(ours.precision, precision, atol=1e-12)


# By hand.


def test_a_perfect_tracker():
    truth = [BOX] * 4
    assert score("got10k", truth, truth, size=(100, 100)) == {"AO": pytest.approx(1), "SR_0.50": 1, "SR_0.75": 1}
    curved = {"AUC": pytest.approx(100 * 20 / 21), "P": 100, "P_norm": 100}
    assert score("lasot", truth, truth) == score("pytracking", truth, truth) == curved
    assert score("otb", truth, truth) == score("pysot", truth, truth) == score("stark", truth, truth) == curved
    assert score("folder", truth, truth) == curved
    # An overlap of 1 reaches the threshold 1.
    assert score("trackingnet", truth, truth) == {"AUC": pytest.approx(100), "P": 100, "P_norm": 100}


def test_an_overlap_of_a_half_by_hand():
    """Twice as wide: overlap 1/2, which is above 10 of 21 thresholds; centres 10 pixels and half a width apart."""
    wide = [11.0, 11.0, 40.0, 10.0]
    predicted, truth = [BOX, wide, wide], [BOX] * 3
    assert score("got10k", predicted, truth, size=(100, 100)) == {"AO": pytest.approx(0.5), "SR_0.50": 0, "SR_0.75": 0}
    third = 100 / 3
    expected = {"AUC": pytest.approx(third * (20 + 10 + 10) / 21), "P": 100, "P_norm": pytest.approx(third)}
    assert score("lasot", predicted, truth) == score("pytracking", predicted, truth) == expected
    # Of 20 intervals: of success 10.5 (the overlap 0.5 reaches the threshold 0.5), of precision those from 10 of 50
    # pixels on and half of the one before, of the normalized precision half of the last one.
    net = score("trackingnet", predicted, truth)
    assert net["AUC"] == pytest.approx(third * (20 + 2 * 10.5) / 20)
    assert net["P"] == pytest.approx(third * (20 + 2 * 16.5) / 20)
    assert net["P_norm"] == pytest.approx(third * (20 + 2 * 0.5) / 20)


def test_frames_without_target():
    """Two of four frames are flagged; the answers are right everywhere."""
    truth, absent = [BOX] * 4, [False, False, True, True]
    half = pytest.approx(50 * 20 / 21)
    assert score("lasot", truth, truth, absent=absent) == {"AUC": half, "P": 50, "P_norm": 50}
    assert score("pytracking_lasot", truth, truth, absent=absent) == {"AUC": half, "P": 50, "P_norm": 50}
    # Elsewhere the normalized error's marks make hits of the frames without target: LaSOT_ext's P_norm.
    for protocol in ("pytracking", "stark"):
        assert score(protocol, truth, truth, absent=absent) == {"AUC": half, "P": 50, "P_norm": 100}
        on_lasot = score(protocol, truth, truth, absent=absent, dataset="lasot")
        assert on_lasot == {"AUC": half, "P": 50, "P_norm": 50}
    assert score("pysot", truth, truth, absent=absent) == {"AUC": half, "P": 50, "P_norm": 50}
    assert score("folder", truth, truth, absent=absent) == {"AUC": pytest.approx(2000 / 21), "P": 100, "P_norm": 100}
    assert score("otb", truth, truth, absent=absent)["P"] == 100
    assert score("got10k", truth, truth, cover=[8, 3, 0, 0], size=(100, 100))["AO"] == pytest.approx(1)
    # Wrong where the target is hidden: GOT-10k does not look there.
    away = [BOX, BOX, [1, 1, 2, 2], [1, 1, 2, 2]]
    assert score("got10k", away, truth, cover=[8, 3, 0, 0], size=(100, 100))["AO"] == pytest.approx(1)
    assert score("got10k", away, truth, cover=[8, 3, 0, 1], size=(100, 100))["AO"] == pytest.approx(0.5)


def test_truth_that_is_nan_as_in_uav123():
    truth = [BOX, BOX, NAN, NAN]
    answers = [BOX] * 4
    assert score("pytracking_uav", answers, truth) == {"AUC": pytest.approx(50 * 20 / 21), "P": 100, "P_norm": 100}
    assert score("stark", answers, truth, dataset="uav") == score("pytracking_uav", answers, truth)
    assert score("pytracking", answers, truth) == {"AUC": pytest.approx(50 * 20 / 21), "P": 50, "P_norm": 100}
    assert score("folder", answers, truth) == {"AUC": pytest.approx(2000 / 21), "P": 100, "P_norm": 100}
    assert score("lasot", answers, truth) == {"AUC": pytest.approx(50 * 20 / 21), "P": 100, "P_norm": 100}


def test_a_true_box_left_of_a_one_based_image_is_marked_as_the_toolkit_marks_it():
    truth = [BOX, [-3.0, 11.0, 20.0, 10.0]]
    marked = {"AUC": pytest.approx(50 * 20 / 21), "P": 100, "P_norm": 100}
    answers = [BOX, [90, 90, 5, 5]]
    assert score("lasot", answers, truth) == marked
    assert score("pytracking", answers, truth) == {**marked, "P": 50}
    # STARK asks for the sides alone, PySOT for the centre.
    assert score("stark", answers, truth) == score("pysot", answers, truth) == {**marked, "P": 50, "P_norm": 50}
    left = [BOX, [-30.0, 11.0, 20.0, 10.0]]
    assert score("pysot", answers, left) == marked
    assert score("stark", left, left)["AUC"] == pytest.approx(100 * 20 / 21)


@pytest.mark.parametrize("missing", [NAN, [0, 0, 0, 0], [11, 11, -5, 10], [11, 11, 20, 0]])
def test_an_answer_that_is_no_box_is_the_one_before_it(missing):
    truth, near = [BOX] * 4, [12.0, 11.0, 20.0, 10.0]
    repeated = score("lasot", [BOX, near, near, near], truth)
    assert score("lasot", [BOX, near, missing, missing], truth) == repeated
    assert score("otb", [BOX, near, missing, missing], truth)["AUC"] == repeated["AUC"]
    if not np.isnan(missing).any() and min(missing) >= 0:
        assert score("pytracking", [BOX, near, missing, missing], truth) == repeated
    else:
        with pytest.raises(ValueError, match="s: pytracking refuses results with NaN or negative sides"):
            score("pytracking", [BOX, near, missing, missing], truth)
    # The others count a miss.
    assert score("got10k", [BOX, BOX, BOX, missing], truth, size=(99, 99))["AO"] == pytest.approx(2 / 3)
    assert score("pysot", [BOX, BOX, BOX, missing], truth)["AUC"] == pytest.approx(75 * 20 / 21)
    # TrackingNet's threshold 0 is reached by every answer whose overlap is a number.
    at_0 = 0 if np.isnan(missing).any() else 0.25 * 2.5
    assert score("trackingnet", [BOX, BOX, BOX, missing], truth)["AUC"] == pytest.approx(75 + at_0)


def test_the_first_answer_is_the_truth_but_what_follows_a_bad_one_repeats_what_was_answered():
    truth, wrong = [BOX] * 3, [90.0, 90.0, 5.0, 5.0]
    assert score("lasot", [wrong, BOX, BOX], truth)["P"] == 100
    assert score("lasot", [wrong, NAN, BOX], truth)["P"] == pytest.approx(200 / 3)
    assert score("got10k", [wrong, BOX, BOX], truth, size=(99, 99))["AO"] == pytest.approx(1)


def test_got10k_clips_to_the_frame_as_its_toolkit_does():
    """An answer that reaches out on the left moves in with its size; on the right it is cut."""
    truth = [BOX, [0, 0, 20, 10], [90, 0, 10, 10]]
    answers = [BOX, [-10, 0, 20, 10], [90, 0, 30, 10]]
    assert score("got10k", answers, truth, size=(100, 100))["AO"] == pytest.approx(1)
    with pytest.raises(ValueError, match="size is not known"):
        score("got10k", answers, truth)


def test_trackingnet_rounds_half_to_even():
    truth = [BOX, [10.5, 11.5, 20.0, 10.0]]
    assert score("trackingnet", [BOX, [10.0, 12.0, 20.0, 10.0]], truth)["AUC"] == pytest.approx(100)
    assert score("trackingnet", [BOX, [11.0, 12.0, 20.0, 10.0]], truth)["AUC"] < 99


def test_sequences_weigh_alike_in_curves_and_by_frames_in_got10k():
    wrong = [90.0, 90.0, 5.0, 5.0]
    long, short = Truth("a", np.array([BOX] * 9), size=(99, 99)), Truth("b", np.array([BOX] * 2), size=(99, 99))
    for name, key, expected in (("got10k", "AO", 8 / 9), ("lasot", "P", 75.0)):
        protocol = PROTOCOLS[name]
        scores = [protocol.score(long.boxes, long), protocol.score(np.array([BOX, wrong]), short)]
        assert protocol.summarize(scores)[key] == pytest.approx(expected)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_too_few_answers_are_named_and_more_are_ignored(name):
    truth = Truth("dog-7", np.array([BOX] * 3), size=(99, 99))
    with pytest.raises(ValueError, match="dog-7: 2 boxes for 3 frames"):
        PROTOCOLS[name].score(np.array([BOX] * 2), truth)
    with pytest.raises(ValueError, match="shape"):
        PROTOCOLS[name].score(np.zeros((3, 5)), truth)
    more = PROTOCOLS[name].score(np.array([BOX] * 5), truth)
    assert PROTOCOLS[name].summarize([more]) == PROTOCOLS[name].summarize([PROTOCOLS[name].score(truth.boxes, truth)])


def test_a_sequence_without_any_target_is_named():
    with pytest.raises(ValueError, match="s: no frame has a target"):
        score(PyTracking(), [BOX], [[0, 0, 0, 0]])


@given(st.integers(0, 2**32 - 1), st.integers(2, 30))
def test_no_protocol_gives_nan_and_none_writes_into_its_arguments(seed, count):
    rng = np.random.default_rng(seed)
    truth, answers = random_boxes(rng, count, True), np.abs(random_boxes(rng, count, True))
    truth[0] = BOX
    flags = Truth("s", truth, rng.random(count) < 0.3, rng.integers(0, 9, count) | (np.arange(count) == 1), (320, 240))
    flags.absent[0] = False
    before = truth.copy(), answers.copy()
    for name, protocol in PROTOCOLS.items():
        numbers = protocol.summarize([protocol.score(answers, flags)])
        assert all(np.isfinite(value) and value >= 0 for value in numbers.values()), (name, numbers)
    np.testing.assert_array_equal(truth, before[0])
    np.testing.assert_array_equal(answers, before[1])
