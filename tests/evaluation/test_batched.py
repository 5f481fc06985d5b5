"""Several sequences at once through one network: the results of one after the other."""

import json

import cv2
import numpy as np
import pytest
import torch

from ostrack_fast import MultiTracker, Tracker
from ostrack_fast.cli import main
from ostrack_fast.cli._benchmark import MakeTracker
from ostrack_fast.config import ModelConfig
from ostrack_fast.evaluation.batched import run_tasks_batched
from ostrack_fast.evaluation.benchmark_run import Task, is_finished, run_tasks
from ostrack_fast.evaluation.workers import run_in_processes
from ostrack_fast.model import OSTrack
from ostrack_fast.model.checkpoint import save_weights

TINY = ModelConfig(
    template_size=64, search_size=128, embed_dim=24, depth=2, num_heads=2, head_channels=16,
    ce_layers=(1,), ce_keep_ratio=(0.7,),
)  # fmt: skip
LENGTHS = {"a": 9, "b": 7, "c": 7, "d": 4, "e": 1, "f": 3}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(3)
    return OSTrack(TINY)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder of frames for each name in `LENGTHS`, each of a size of its own."""
    root = tmp_path_factory.mktemp("images")
    noise = np.random.default_rng(0)
    for number, (name, length) in enumerate(LENGTHS.items()):
        (root / name).mkdir()
        for index in range(length):
            image = noise.integers(0, 256, (60 + 7 * number, 90 + 5 * number, 3), dtype=np.uint8)
            cv2.imwrite(str(root / name / f"{index}.png"), image)
    return root


def tasks_of(images, results):
    def task(name, length):
        frames = tuple(images / name / f"{index}.png" for index in range(length))
        return Task(name, frames, (20.0, 18.0, 22.0, 17.0), 1, results / f"{name}.txt", results / f"{name}_time.txt")

    return [task(*each) for each in LENGTHS.items()]


def boxes_of(results):
    return {name: (results / f"{name}.txt").read_bytes() for name in LENGTHS if (results / f"{name}.txt").exists()}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("size", [2, 3, 8])
def test_the_files_are_those_of_one_sequence_after_the_other(model, images, tmp_path, dtype, size):
    one, many, frames = tmp_path / "one", tmp_path / "many", []
    run_tasks(tasks_of(images, one), Tracker(model, "cpu", dtype))
    outcome = run_tasks_batched(
        tasks_of(images, many), MultiTracker(model, "cpu", dtype), size, lambda: frames.append(1)
    )
    assert boxes_of(many) == boxes_of(one) and len(boxes_of(one)) == len(LENGTHS)
    assert {name: timing.frames for name, timing in outcome.finished.items()} == {
        name: length - 1 for name, length in LENGTHS.items()
    }
    assert len(frames) == sum(LENGTHS.values())
    assert all(timing.track_seconds <= timing.seconds for timing in outcome.finished.values())


def test_a_bad_frame_costs_its_sequence_alone(model, images, tmp_path):
    tasks = tasks_of(images, tmp_path)
    (tmp_path / "bad.png").write_bytes(b"no image")
    bad = Task("bad", (*tasks[0].frames[:3], tmp_path / "bad.png"), *list(vars(tasks[0]).values())[2:4],
               tmp_path / "bad.txt", tmp_path / "bad_time.txt")  # fmt: skip
    outside = Task("outside", tasks[0].frames, (900.0, 1.0, 5.0, 5.0), 0, tmp_path / "o.txt", tmp_path / "o_time.txt")
    outcome = run_tasks_batched([bad, outside, *tasks], MultiTracker(model, "cpu", "float32"), 3)
    assert set(outcome.finished) == set(LENGTHS) and "bad.png" in outcome.failed["bad"]
    assert "outside the frame" in outcome.failed["outside"] and set(outcome.failed) == {"bad", "outside"}
    assert not (tmp_path / "bad.txt").exists()


def test_a_sequence_without_finite_results_costs_no_other_of_its_batch(model, images, tmp_path, monkeypatch):
    tracker, tasks = MultiTracker(model, "cpu", "float32"), tasks_of(images, tmp_path)
    step, step_each = tracker.engine.step, tracker.engine.step_each

    def fail_on_b(frames):
        if any(frame.shape[0] == 67 for frame in frames):
            raise FloatingPointError("not finite")

    monkeypatch.setattr(tracker.engine, "step", lambda frame: (fail_on_b([frame]), step(frame))[1])
    monkeypatch.setattr(tracker.engine, "step_each", lambda frames: (fail_on_b(frames), step_each(frames))[1])
    outcome = run_tasks_batched(tasks, tracker, 3)
    assert outcome.failed == {"b": "not finite"} and set(outcome.finished) == set(LENGTHS) - {"b"}


def test_a_stop_leaves_whole_files_alone(model, images, tmp_path):
    asked = iter([False] * 8 + [True] * 9)
    tasks = tasks_of(images, tmp_path)
    outcome = run_tasks_batched(tasks, MultiTracker(model, "cpu", "float32"), 3, stop=lambda: next(asked))
    assert outcome.finished and outcome.unfinished
    assert set(outcome.finished) | set(outcome.unfinished) == set(LENGTHS)
    assert [task.name for task in tasks if is_finished(task)] == [name for name in LENGTHS if name in outcome.finished]


@pytest.mark.slow
def test_processes_with_batches_give_what_one_gives(model, images, tmp_path):
    save_weights(model.state_dict(), TINY, tmp_path / "tiny.safetensors")
    make = MakeTracker(str(tmp_path / "tiny.safetensors"), None, "cpu", "float32", 1, batch=3)
    run_tasks(tasks_of(images, tmp_path / "one"), Tracker(model, "cpu", "float32"))
    outcome = run_in_processes(tasks_of(images, tmp_path / "many"), make, 2, batch=3)
    assert set(outcome.finished) == set(LENGTHS) and boxes_of(tmp_path / "many") == boxes_of(tmp_path / "one")


def test_targets_in_videos_of_their_own(model):
    many, noise = MultiTracker(model, "cpu", "float32"), np.random.default_rng(0)
    frames = [noise.integers(0, 256, (80 + i, 90, 3), dtype=np.uint8) for i in range(3)]
    targets = [many.add(frame, (20, 20, 20, 20)) for frame in frames]
    with pytest.raises(ValueError, match=r"frames for the targets \[0, 1\], but those followed are \[0, 1, 2\]"):
        many.track_each(dict(zip(targets[:2], frames[:2], strict=True)))
    with pytest.raises(TypeError, match="uint8"):
        many.track_each(dict(zip(targets, [*frames[:2], frames[2] / 255], strict=True)))
    with pytest.raises(ValueError, match="1 frames for 3 targets"):
        many.engine.step_each(frames[:1])
    many.drop(targets[0])
    found = many.track_each({targets[1]: frames[1], targets[2]: frames[2]})
    for index in (1, 2):
        alone = Tracker(model, "cpu", "float32")
        alone.initialize(frames[index], (20, 20, 20, 20))
        assert alone.track(frames[index]) == found[targets[index]]
    for target in targets[1:]:
        many.drop(target)
    assert many.track_each({}) == {}
    with pytest.raises(RuntimeError, match="no target"):
        many.engine.step_each([])


def test_the_command(model, images, tmp_path, monkeypatch, capsys):
    def run(*more):
        monkeypatch.setattr("sys.argv", ["ostrack-fast", "evaluate", *common, *more])
        with pytest.raises(SystemExit) as stop:
            main()
        return stop.value.code

    save_weights(model.state_dict(), TINY, tmp_path / "tiny.safetensors")
    for name in "ab":
        (tmp_path / "data" / name).mkdir(parents=True)
        (tmp_path / "data" / name / "img").symlink_to(images / name)
        (tmp_path / "data" / name / "groundtruth_rect.txt").write_text("20,18,22,17\n" * LENGTHS[name])
    common = ["--benchmark", "folder", "--data", "data", "--weights", "tiny.safetensors", "--device", "cpu"]
    monkeypatch.chdir(tmp_path)
    assert not run("--results", "one") and not run("--results", "many", "--batch", "2")
    assert boxes_of(tmp_path / "one") == boxes_of(tmp_path / "many")
    assert json.loads((tmp_path / "many" / "run.json").read_text())["tracker"]["batch"] == 2
    capsys.readouterr()
    assert run("--batch", "2", "--tracker", "mil") == 2 and "--batch is for our tracker" in capsys.readouterr().err
    assert run("--batch", "2", "--realtime", "9") == 2 and "would disturb" in capsys.readouterr().err
