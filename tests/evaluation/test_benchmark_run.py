"""`ostrack-fast evaluate --benchmark`: result files, resumed and killed runs, sequences that cannot be tracked."""

import json
import os
import signal
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest
import torch
import typer

from ostrack_fast.cli._benchmark import MakeTracker, evaluate_benchmark
from ostrack_fast.config import ModelConfig
from ostrack_fast.data.truth import read_raw_boxes
from ostrack_fast.evaluation.ahead import decoded_ahead
from ostrack_fast.evaluation.benchmark_run import (
    Task,
    count_from_one,
    is_finished,
    make_tasks,
    own_share,
    run_task,
    run_tasks,
)
from ostrack_fast.evaluation.benchmarks import find_benchmark
from ostrack_fast.evaluation.peers import make_peer
from ostrack_fast.evaluation.workers import run_in_processes
from ostrack_fast.model import OSTrack
from ostrack_fast.model.checkpoint import save_weights
from tests.evaluation import layouts
from tests.evaluation.layouts import BOXES

TINY = ModelConfig(
    template_size=64, search_size=128, embed_dim=24, depth=2, num_heads=2, head_channels=16,
    ce_layers=(1,), ce_keep_ratio=(0.7,),
)  # fmt: skip


class Still:
    """Answers with the box it was given."""

    def initialize(self, frame, box):
        self.box = box

    def track(self, frame):
        return self.box


class Dying(Still):
    """Kills its process in its second sequence."""

    count = 0

    def initialize(self, frame, box):
        super().initialize(frame, box)
        self.count += 1
        if self.count == 2:
            os.kill(os.getpid(), signal.SIGKILL)


def make_still(number):
    return Still()


def make_dying(number):
    return Dying()


def make_nothing(number):
    raise ValueError("no such weights")


def tasks_of(name, root, results):
    layouts.ALL[name](root)
    benchmark = find_benchmark(name)
    return make_tasks(benchmark, benchmark.load(root), results)


@pytest.fixture
def weights(tmp_path):
    torch.manual_seed(0)
    save_weights(OSTrack(TINY).state_dict(), TINY, tmp_path / "tiny.safetensors")
    return tmp_path / "tiny.safetensors"


def test_frames_come_in_order_and_errors_where_they_are_due():
    def read(index):
        if index == 7:
            raise ValueError("broken")
        return index

    assert list(decoded_ahead(read, 7)) == list(range(7))
    seen = []
    with pytest.raises(ValueError, match="broken"):
        for frame in decoded_ahead(read, 9):
            seen.append(frame)
    assert seen == list(range(7))
    # A consumer that ends early waits for no more than what is being read.
    started = []
    frames = decoded_ahead(lambda index: started.append(index), 1000)
    next(frames)
    frames.close()
    assert len(started) <= 6


@pytest.mark.parametrize(("name", "file"), [("got10k", "{0}/{0}_001.txt"), ("lasot", "{0}.txt"), ("uav123", "{0}.txt")])
def test_files_are_in_the_toolkits_layout_and_count(tmp_path, name, file):
    tasks, failed = tasks_of(name, tmp_path / "data", tmp_path / "r")
    outcome = run_tasks(tasks, Still())
    assert not failed and not outcome.failed and len(outcome.finished) == 2
    for task in tasks:
        assert task.boxes_file == tmp_path / "r" / file.format(task.name) and is_finished(task)
        # The origin is taken away for the tracker, and added again for the file.
        np.testing.assert_array_equal(read_raw_boxes(task.boxes_file), np.repeat(BOXES[:1], 4, axis=0))
        assert task.box[0] == BOXES[0, 0] - task.origin
        assert len(task.times_file.read_text().split()) == 4
    assert {task.origin for task in tasks} == {0 if name == "got10k" else 1}


def test_the_longest_comes_first_and_a_bad_sequence_costs_no_other(tmp_path):
    layouts.folder(tmp_path / "data")
    layouts.images(tmp_path / "data" / "two" / "img", ["0005.jpg"])
    layouts.write(tmp_path / "data" / "two" / "groundtruth_rect.txt", layouts.rows(BOXES[[0, 1, 2, 3, 3]]))
    benchmark = find_benchmark("folder")
    tasks, _ = make_tasks(benchmark, benchmark.load(tmp_path / "data"), tmp_path / "r")
    assert [task.name for task in tasks] == ["two", "one"]
    (tmp_path / "data" / "two" / "img" / "0003.jpg").write_bytes(b"no image")
    outcome = run_tasks(tasks, Still())
    assert list(outcome.finished) == ["one"] and "0003.jpg" in outcome.failed["two"]
    assert not (tmp_path / "r" / "two.txt").exists()


def test_a_stop_leaves_whole_files_alone(tmp_path):
    tasks, _ = tasks_of("lasot", tmp_path / "data", tmp_path / "r")
    asked = iter([False] * 6 + [True])
    outcome = run_tasks(tasks, Still(), stop=lambda: next(asked))
    assert list(outcome.finished) == [tasks[0].name] and outcome.unfinished == (tasks[1].name,)
    assert is_finished(tasks[0]) and not is_finished(tasks[1])


def test_processes_give_what_one_gives(tmp_path):
    tasks, _ = tasks_of("lasot", tmp_path / "data", tmp_path / "r")
    frames = []
    outcome = run_in_processes(tasks, make_still, 2, lambda: frames.append(1))
    assert set(outcome.finished) == {task.name for task in tasks} and len(frames) == 8 and not outcome.failed


@pytest.mark.slow
def test_a_process_that_dies_costs_one_sequence(tmp_path):
    tasks, _ = tasks_of("davis", tmp_path / "data", tmp_path / "r")
    with pytest.raises(RuntimeError, match="all 1 processes have died; 1 sequences"):
        run_in_processes(tasks, make_dying, 1)
    assert [is_finished(task) for task in tasks] == [True, False, False]


@pytest.mark.slow
def test_a_tracker_that_cannot_be_made_is_told(tmp_path):
    tasks, _ = tasks_of("lasot", tmp_path / "data", tmp_path / "r")
    with pytest.raises(RuntimeError, match="ValueError: no such weights"):
        run_in_processes(tasks, make_nothing, 1)


def test_shares_of_several_machines(monkeypatch):
    tasks = [Task(str(i), (), (0, 0, 1, 1), 0, None, None) for i in range(5)]
    assert own_share(tasks) == tasks
    monkeypatch.setenv("WORLD_SIZE", "2")
    shares = []
    for rank in "01":
        monkeypatch.setenv("RANK", rank)
        shares += own_share(tasks)
    assert sorted(task.name for task in shares) == list("01234")


def run(data, weights, results, resume=False, dtype="float32"):
    """The figures that a run in this process writes."""
    file = results.with_suffix(".json")
    make = MakeTracker(str(weights), None, "cpu", dtype, 1)
    evaluate_benchmark("lasot", data, make, split=None, protocol=None, results=results, resume=resume, json=file)
    (tracker,) = json.loads(file.read_text())["trackers"]
    return tracker["summary"], tracker["sequences"]


def test_a_killed_run_is_resumed_to_the_same_numbers(tmp_path, weights, capsys):
    names = [f"airplane-{number}" for number in (1, 9, 13, 15)]
    layouts.lasot(tmp_path / "data", names)
    whole = run(tmp_path / "data", weights, tmp_path / "whole")
    out = capsys.readouterr().out
    assert "4 sequences tracked" in out and "in track()" in out and f"{whole[0]['AUC']:.2f}" in out
    arguments = ["--data", tmp_path / "data", "--weights", weights, "--results", tmp_path / "cut", "--device", "cpu"]
    arguments += ["--dtype", "float32"]  # as in this process, whatever is fastest on this machine
    process = subprocess.Popen(
        [sys.executable, "-m", "ostrack_fast.cli", "evaluate", "--benchmark", "lasot", *map(str, arguments)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    finished = lambda: list((tmp_path / "cut").glob("airplane-*[0-9].txt"))  # noqa: E731
    while process.poll() is None and not finished():
        time.sleep(0.005)
    process.kill()
    process.wait()
    with pytest.raises(ValueError, match=f"holds results of {len(finished())} sequences: go on with --resume"):
        run(tmp_path / "data", weights, tmp_path / "cut")
    with pytest.raises(
        ValueError, match="holds results with dtype float32, this run has bfloat16: resume with the same"
    ):
        run(tmp_path / "data", weights, tmp_path / "cut", resume=True, dtype="bfloat16")
    assert run(tmp_path / "data", weights, tmp_path / "cut", resume=True) == whole
    for name in names:
        assert (tmp_path / "whole" / f"{name}.txt").read_bytes() == (tmp_path / "cut" / f"{name}.txt").read_bytes()
    assert json.loads((tmp_path / "cut" / "run.json").read_text())["benchmark"] == "lasot"


@pytest.mark.parametrize("resume", [False, True])
def test_boxes_that_are_no_results_of_ours_stay(tmp_path, weights, resume):
    layouts.lasot(tmp_path / "data")
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "airplane-1.txt").write_text("1,2,3,4\n")
    with pytest.raises(ValueError, match="r holds results of 1 sequences: another program's, or a ground truth"):
        run(tmp_path / "data", weights, tmp_path / "r", resume=resume)
    assert [path.name for path in (tmp_path / "r").iterdir()] == ["airplane-1.txt"]


def test_a_sequence_that_fails_leaves_figures_that_are_called_unofficial(tmp_path, weights, capsys):
    layouts.lasot(tmp_path / "data")
    (tmp_path / "data" / "airplane" / "airplane-9" / "img" / "00000002.jpg").write_bytes(b"")
    with pytest.raises(typer.Exit) as leave:
        run(tmp_path / "data", weights, tmp_path / "r")
    assert leave.value.exit_code == 3
    (tracker,) = json.loads((tmp_path / "r.json").read_text())["trackers"]
    assert list(tracker["sequences"]) == ["airplane-1"]
    said = capsys.readouterr().err
    assert "failed, and left out: airplane-9" in said and "figures of 1 of 2 sequences are no official ones" in said


def test_sequences_that_count_from_one(tmp_path):
    layouts.folder(tmp_path)
    loaded = count_from_one(find_benchmark("folder").load(tmp_path), ["t*"])
    assert [each.origin for each in loaded.sequences] == [0, 1]
    with pytest.raises(ValueError, match="no sequence is called 'x'"):
        count_from_one(loaded, ["x"])


def test_opencvs_trackers(tmp_path):
    tasks, _ = tasks_of("folder", tmp_path / "data", tmp_path / "r")
    assert not run_tasks(tasks, make_peer("mil")).failed and is_finished(tasks[0])
    with pytest.raises(ValueError, match="no tracker 'x': choose ostrack or one of mil"):
        make_peer("x")
    with pytest.raises(ValueError, match="TrackerNano needs its model files"):
        make_peer("nano")
    with pytest.raises(FileNotFoundError, match="holds no vittrack"):
        make_peer("vit", tmp_path)
    if not hasattr(cv2, "TrackerKCF_create"):
        with pytest.raises(ImportError, match="opencv-contrib-python"):
            make_peer("kcf")


class Timed(Still):
    """Takes as long as its clock says; answers with how many frames it has seen."""

    def __init__(self, clock, seconds):
        self.clock, self.seconds, self.seen = clock, seconds, 0

    def initialize(self, frame, box):
        self.clock[0] += self.seconds

    def track(self, frame):
        self.clock[0] += self.seconds
        self.seen += 1
        return (self.seen, 1, 5, 5)


@pytest.mark.parametrize(
    ("seconds", "answers"),
    [
        (0.09, [1, 2, 3, 4, 5, 6, 7]),  # in time for every frame
        (0.15, [0, 1, 1, 2, 2, 3, 3]),  # busy at every second frame
        (0.25, [0, 0, 1, 1, 1, 2, 2]),
        (9, [0] * 7),
    ],
)
def test_frames_that_arrive_while_the_tracker_is_busy_get_the_last_box(tmp_path, monkeypatch, seconds, answers):
    layouts.images(tmp_path, [f"{i}.jpg" for i in range(8)])
    frames = tuple(tmp_path / f"{i}.jpg" for i in range(8))
    task = Task("s", frames, (0.0, 1.0, 5.0, 5.0), 0, tmp_path / "s.txt", tmp_path / "s_time.txt")
    clock = [0.0]
    monkeypatch.setattr("ostrack_fast.evaluation.benchmark_run.perf_counter", lambda: clock[0])
    timing = run_task(task, Timed(clock, seconds), realtime=10)
    assert read_raw_boxes(tmp_path / "s.txt")[:, 0].tolist() == [0, *answers]
    assert timing.frames == max(answers) and timing.track_seconds == pytest.approx(seconds * max(answers))
    # Without a clock every frame is shown.
    run_task(task, Timed(clock, seconds))
    assert read_raw_boxes(tmp_path / "s.txt")[:, 0].tolist() == list(range(8))
