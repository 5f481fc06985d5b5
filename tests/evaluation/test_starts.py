"""Several starts in every sequence, and what they change in scores, intervals and reports."""

import json

import numpy as np
import pytest

from ostrack_fast.cli import main
from ostrack_fast.evaluation import score_results
from ostrack_fast.evaluation.benchmarks import Loaded
from ostrack_fast.evaluation.benchmarks.base import Sequence
from ostrack_fast.evaluation.intervals import difference, interval
from ostrack_fast.evaluation.protocols import Curves, Truth
from ostrack_fast.evaluation.report import make_report, to_html, to_markdown
from ostrack_fast.evaluation.scoring import TrackerScore
from ostrack_fast.evaluation.starts import by_start, several_starts, video_of
from tests.evaluation import layouts
from tests.evaluation.layouts import BOXES


def loaded_with(boxes, absent=None):
    truth = Truth("s", np.asarray(boxes, float), absent, cover=np.arange(len(boxes)))
    return Loaded((Sequence(truth, lambda: list(range(len(boxes))), ("alias",), 1, ("blur",)),), "test")


def test_parts_begin_where_there_is_a_target():
    boxes = np.tile([1.0, 2, 3, 4], (9, 1))
    boxes[3] = np.nan
    parts = several_starts(loaded_with(boxes, np.arange(9) == 4), 3).sequences
    assert [part.name for part in parts] == ["s", "s@5", "s@6"]
    assert [part.frames() for part in parts] == [list(range(start, 9)) for start in (0, 5, 6)]
    for part, start in zip(parts, (0, 5, 6), strict=True):
        assert part.truth.cover.tolist() == list(range(start, 9)) and part.origin == 1 and part.attributes == ("blur",)
        assert len(part.truth.boxes) == len(part.truth.absent) == 9 - start
    assert parts[0].aliases == ("alias",) and not parts[1].aliases and video_of("s@5") == "s" == video_of("s")
    assert several_starts(loaded_with(boxes), 1).sequences[0].name == "s"
    # No frame is left to track: no start. The same frame twice: once.
    boxes[1:] = np.nan
    assert len(several_starts(loaded_with(boxes), 4).sequences) == 1
    boxes[7] = 1
    assert [part.name for part in several_starts(loaded_with(boxes), 4).sequences] == ["s", "s@7"]


def test_starts_by_their_order():
    assert by_start(["a", "b", "b@10", "b@9", "a@3"]) == [["a", "b"], ["a@3", "b@9"], ["b@10"]]


def test_starts_of_a_video_are_no_independent_samples():
    """Ten copies of each video narrow no interval."""
    rng = np.random.default_rng(0)
    values = dict(zip("abcdefghijkl", rng.uniform(0, 1, 12), strict=True))

    def tracker(copies, more=0.0):
        names = [name + ("" if copy == 0 else f"@{copy}") for name in values for copy in range(copies)]
        numbers = {name: {"AUC": values[name[0]] + more} for name in names}
        curve = Curves(np.zeros(21), np.zeros(51), np.zeros(51))
        mean = float(np.mean(list(values.values()))) + more
        return TrackerScore("t", {"AUC": mean}, numbers, dict.fromkeys(names, curve))

    one, ten = interval(tracker(1), "AUC"), interval(tracker(10), "AUC")
    assert (ten.low, ten.high) == pytest.approx((one.low, one.high))
    assert not difference(tracker(10, 0.1), tracker(10), "AUC").may_be_nothing
    assert difference(tracker(10), tracker(10), "AUC").may_be_nothing


def test_the_commands(tmp_path, monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["ostrack-fast", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
        return stop.value.code, capsys.readouterr()

    names = layouts.folder(tmp_path / "data")
    mine = tmp_path / "mine"
    arguments = [
        "evaluate",
        "--benchmark",
        "folder",
        "--data",
        tmp_path / "data",
        "--results",
        mine,
        "--tracker",
        "mil",
    ]
    assert not run(*arguments)[0]
    code, _ = run(*arguments, "--starts", "2", "--resume")
    assert not code and json.loads((mine / "run.json").read_text())["starts"] == 2
    files = {path.stem for path in mine.glob("*.txt") if not path.stem.endswith("_time")}
    assert files == {*names, *(f"{name}@{len(BOXES) // 2}" for name in names)}
    scored = score_results("folder", tmp_path / "data", [mine], starts=2)
    assert len(scored.trackers[0].sequences) == 2 * len(names)
    assert not run("score", "folder", tmp_path / "data", mine, "--starts", "2", "--json", tmp_path / "s.json")[0]
    assert json.loads((tmp_path / "s.json").read_text()) == scored.to_dict()
    report = make_report([mine])
    whole = score_results("folder", tmp_path / "data", [mine]).trackers[0].summary["AUC"]
    assert report.starts["mine"][0] == pytest.approx(whole) and len(report.starts["mine"]) == 2
    assert f"| mine | {whole:.2f} | " in to_markdown(report) and '<table id="starts">' in to_html(report)
    assert run("evaluate", "--data", tmp_path / "data", "--starts", "2")[0] == 2
