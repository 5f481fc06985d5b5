"""One-pass evaluation with trackers whose every box is known."""

import json

import numpy as np
import pytest

from ostrack_fast.evaluation import evaluate_folder, load_videos, read_boxes
from ostrack_fast.evaluation.metrics import SCALARS
from ostrack_fast.evaluation.plots import plot_curves, save_plot


class BrightSquare:
    """Finds the bright square of the test videos exactly, and remembers how it was called."""

    def __init__(self):
        self.started = []

    def initialize(self, frame, box):
        self.started.append(box)

    def track(self, frame):
        y, x = np.nonzero(frame[..., 0] > 200)
        return x.min(), y.min(), x.max() - x.min() + 1, y.max() - y.min() + 1


class Standing(BrightSquare):
    """Says that nothing ever moves; answers with an object that has a box."""

    class Answer:
        def __init__(self, box):
            self.box = box

    def track(self, frame):
        return self.Answer(self.started[-1])


def test_perfect_tracker(videos):
    tracker = BrightSquare()
    result = evaluate_folder(videos, tracker, one_based=["one_*"])
    assert tracker.started == [(20.0, 30.0, 16.0, 12.0)] * 2
    assert [(v.name, len(v.boxes), v.scored_frames) for v in result.videos] == [("one_A", 6, 6), ("zero_B", 5, 3)]
    assert result.mean.auc == pytest.approx(20 / 21)
    assert result.mean.average_overlap == pytest.approx(1)
    assert result.fps > 0


def test_the_origin_of_the_ground_truth_matters(videos):
    """Read as counting from 0, one_A's boxes are off by a pixel along both sides: 15 x 11 of 16 x 12 overlap."""
    result = evaluate_folder(videos, BrightSquare())
    assert result.videos[0].scores.average_overlap == pytest.approx(165 / (2 * 192 - 165))
    assert result.videos[1].scores.average_overlap == pytest.approx(1)


def test_standing_tracker_by_hand(videos):
    scores = evaluate_folder(videos, Standing(), one_based=["one_A"]).videos[0].scores
    moved = np.arange(1, 6)
    inner = (16 - 2 * moved) * (12 - moved)
    assert scores.average_overlap == pytest.approx((inner / (2 * 192 - inner)).mean())


@pytest.mark.parametrize("factory", [BrightSquare, lambda: BrightSquare()], ids=["class", "function"])
def test_factory_makes_one_tracker_a_video(videos, factory):
    made = []

    def counted():
        made.append(factory())
        return made[-1]

    evaluate_folder(videos, counted)
    assert [len(tracker.started) for tracker in made] == [1, 1]
    assert evaluate_folder(videos, factory).mean.auc > 0.5


def test_not_found_is_a_miss(videos):
    class Blind(BrightSquare):
        def track(self, frame):
            return None

    result = evaluate_folder(videos, Blind())
    assert np.isnan(result.videos[0].boxes[1:]).all()
    assert result.mean.average_overlap == 0
    # The first frame alone, the one that is given.
    assert result.videos[0].scores.precision_20 == 1 / 6


@pytest.mark.parametrize("answer", [(1, 2, 3), (True, (1, 2, 3, 4)), "here", 5.0])
def test_an_answer_that_is_no_box(videos, answer):
    class Wrong(BrightSquare):
        def track(self, frame):
            return answer

    with pytest.raises(ValueError, match=r"one_A.img.9\.png: the tracker's box must be four numbers"):
        evaluate_folder(videos, Wrong())


def test_result_files_are_in_the_format_of_the_ground_truth(videos, tmp_path):
    evaluate_folder(videos, BrightSquare(), one_based=["one_*"], results=tmp_path / "new" / "boxes")
    assert sorted(path.name for path in (tmp_path / "new" / "boxes").iterdir()) == ["one_A.txt", "zero_B.txt"]
    for video in load_videos(videos):
        written = read_boxes(tmp_path / "new" / "boxes" / f"{video.name}.txt")
        scored = np.isfinite(video.boxes[:, 0])
        # Loaded without --one-based: the file's own count, 1 for one_A.
        np.testing.assert_allclose(written[scored], video.boxes[scored])


def test_json_layout(videos, tmp_path):
    result = evaluate_folder(videos, Standing())
    result.save(tmp_path / "out.json", tracker={"name": "standing"})
    read = json.loads((tmp_path / "out.json").read_text())
    assert list(read) == ["tracker", "format", "thresholds", "mean", "videos"]
    assert read["format"] == 1
    numbers = {*SCALARS, "fps"}
    assert set(read["mean"]) == {*numbers, "curves"}
    lengths = {"success": 21, "precision": 51, "normalized_precision": 51}
    assert {name: len(values) for name, values in read["thresholds"].items()} == lengths
    for entry in (read["mean"], *read["videos"]):
        assert all(isinstance(entry[name], float) for name in numbers)
        assert {name: len(values) for name, values in entry["curves"].items()} == lengths
        assert entry["auc"] == pytest.approx(np.mean(entry["curves"]["success"]))
    assert [set(video) for video in read["videos"]] == [{*numbers, "curves", "name", "frames", "scored_frames"}] * 2
    assert read["mean"]["auc"] == pytest.approx(np.mean([video["auc"] for video in read["videos"]]))


def test_a_failed_save_leaves_the_old_file(videos, tmp_path):
    result = evaluate_folder(videos, Standing())
    (tmp_path / "out.json").write_text("old")
    with pytest.raises(TypeError):
        result.save(tmp_path / "out.json", tracker=object())
    assert (tmp_path / "out.json").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["out.json"]


def test_plot(videos, tmp_path):
    result = evaluate_folder(videos, Standing())
    axes = plot_curves(result, "standing").axes
    assert [len(panel.lines) for panel in axes] == [3, 3, 3]
    np.testing.assert_allclose(axes[0].lines[-1].get_ydata(), result.mean.success)
    assert f"standing: AUC {result.mean.auc:.3f}" in axes[0].get_legend().get_texts()[0].get_text()
    save_plot(result, tmp_path / "curves.png", "standing")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
