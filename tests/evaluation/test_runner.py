"""One-pass evaluation with trackers whose every box is known."""

import json
import shutil

import numpy as np
import pytest

from ostrack_fast.evaluation import evaluate_folder, evaluate_video, load_videos, read_boxes
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


def write_truth(folder, text):
    (folder / "groundtruth_rect.txt").write_text(text)


BAD = {
    "first box only": ("20,30,16,12\n" + "nan\n" * 4, "nothing to score"),
    "one line": ("20,30,16,12\n", "nothing to score"),
    "first box outside": ("500,500,9,9\n" + "20,30,16,12\n" * 4, "outside the frame of 128 x 96"),
    "first box beyond the left": ("-50,30,16,12\n" + "20,30,16,12\n" * 4, "outside the frame"),
    "first box absent": ("nan\n" + "20,30,16,12\n" * 4, "no box to start"),
    "too few lines": ("20,30,16,12\n" * 3, "3 lines for 5 frames"),
    "no numbers": ("20,30,16,twelve\n" * 5, "line 1"),
}


@pytest.mark.parametrize(("truth", "message"), BAD.values(), ids=BAD)
def test_a_bad_video_is_skipped_and_said_before_anything_is_tracked(videos, truth, message):
    """It is the first by name: the others run all the same, and the result says what is missing."""
    (videos / "zero_B").rename(videos / "a_bad")
    write_truth(videos / "a_bad", truth)
    tracker = BrightSquare()
    result = evaluate_folder(videos, tracker, one_based=["one_*"])
    assert [video.name for video in result.videos] == ["one_A"] and len(tracker.started) == 1
    assert list(result.skipped) == ["a_bad"] and message in result.skipped["a_bad"]
    assert result.to_dict()["skipped"] == result.skipped
    assert result.mean.auc == pytest.approx(20 / 21)


@pytest.mark.parametrize(("truth", "message"), BAD.values(), ids=BAD)
def test_a_bad_video_alone_is_an_error_that_names_it(videos, truth, message):
    for name in ("one_A", "zero_B"):
        write_truth(videos / name, truth)
    shutil.rmtree(videos / "one_A")
    tracker = BrightSquare()
    with pytest.raises(ValueError, match=message) as error:
        evaluate_folder(videos, tracker)
    assert "zero_B" in str(error.value) and not tracker.started


def test_a_damaged_first_frame_is_found_before_tracking_and_a_later_one_costs_its_video_only(videos, tmp_path):
    (videos / "one_A" / "img" / "11.png").write_bytes(b"no picture")
    result = evaluate_folder(videos, BrightSquare(), results=tmp_path / "boxes")
    assert [video.name for video in result.videos] == ["zero_B"] and "11.png" in result.skipped["one_A"]
    assert [path.name for path in (tmp_path / "boxes").iterdir()] == ["zero_B.txt"]
    (videos / "zero_B" / "img" / "8.png").write_bytes(b"no picture")
    tracker = BrightSquare()
    with pytest.raises(ValueError, match=r"2 videos cannot be used:(.|\n)*8\.png") as error:
        evaluate_folder(videos, tracker)
    assert "11.png" in str(error.value) and len(tracker.started) == 1


def test_a_tracker_that_fails_on_one_video_is_scored_on_the_others(videos):
    class Picky(BrightSquare):
        def initialize(self, frame, box):
            super().initialize(frame, box)
            if len(self.started) == 1:
                raise FloatingPointError("the network's output is not finite")

    result = evaluate_folder(videos, Picky())
    assert [video.name for video in result.videos] == ["zero_B"]
    assert result.skipped == {"one_A": "the network's output is not finite"}


def test_a_fault_of_the_program_is_not_taken_for_one_of_the_video(videos):
    class Broken(BrightSquare):
        def track(self, frame):
            raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        evaluate_folder(videos, Broken())


def test_a_video_with_nothing_to_score_is_not_tracked(videos):
    video = load_videos(videos)[1]
    video.boxes[1:] = np.nan
    tracker = BrightSquare()
    with pytest.raises(ValueError, match="zero_B: no frame after the first has ground truth"):
        evaluate_video(video, tracker)
    assert not tracker.started


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
    assert list(read) == ["tracker", "format", "thresholds", "mean", "videos", "skipped", "unfinished"]
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
    (named,) = plot_curves(result, "_x").axes[0].get_legend().get_texts()
    assert named.get_text().startswith("_x: AUC ")
    save_plot(result, tmp_path / "curves.png", "standing")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("asked, finished", [(0, 0), (3, 0), (6, 1), (8, 1), (11, 2)])
def test_a_stop_keeps_the_videos_that_are_finished(videos, tmp_path, asked, finished):
    """The videos have 6 and 5 frames; the stop comes after this number of frames."""
    answers = iter([False] * asked + [True] * 20)
    result = evaluate_folder(videos, BrightSquare(), results=tmp_path / "boxes", stop=lambda: next(answers))
    names = ("one_A", "zero_B")
    assert tuple(video.name for video in result.videos) == names[:finished] and result.unfinished == names[finished:]
    assert len(list(tmp_path.glob("boxes/*"))) == finished
    if finished:
        assert result.to_dict()["unfinished"] == list(names[finished:])
        assert len(result.to_dict()["videos"]) == finished
