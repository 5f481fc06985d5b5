"""What a run shows: its folder, TensorBoard, Weights & Biases, pictures and validation."""

import json
import os
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from ostrack_fast.data.videos import load_videos
from ostrack_fast.model import OSTrack
from ostrack_fast.training.augment import AugmentConfig
from ostrack_fast.training.building import build_dataset
from ostrack_fast.training.collections import UNMOVED
from ostrack_fast.training.config import ValidationConfig, read_train_config
from ostrack_fast.training.dataset import DataConfig, PairDataset, make_loader
from ostrack_fast.training.distributed import ALONE
from ostrack_fast.training.log import LOG
from ostrack_fast.training.pictures import TRUTH_COLOUR
from ostrack_fast.training.record import CONFIG, RUN, git_state
from ostrack_fast.training.runs import find_runs, plot_runs
from ostrack_fast.training.speed import Speed, status
from ostrack_fast.training.trainer import Trainer
from ostrack_fast.training.validation import Validation, first_frames, track_all
from ostrack_fast.training.videos import VideoFolder
from ostrack_fast.training.writers import PICTURES, TENSORBOARD
from ostrack_fast.visualization.draw import TARGET_COLOUR

from .tiny_run import run, same


@pytest.fixture
def watched(config, tmp_path):
    """Two epochs of twelve pairs, judged after each by the video they come from, in float32."""
    return replace(
        config, pairs_per_epoch=12, precision="float32", pictures=2, log_to=("tensorboard",),
        validation=ValidationConfig(videos=".", pairs=6, starts=2),
    )  # fmt: skip


def test_a_stopped_run_is_judged_and_shown_as_one_that_was_not(watched, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    whole = run(watched, tmp_path / "whole")
    run(watched, tmp_path / "parts", stop_after=8)
    parts = run(watched, tmp_path / "parts")
    assert same(whole.model.state_dict(), parts.model.state_dict())
    seen = {}
    for name in ("whole", "parts"):
        lines = [json.loads(line) for line in (tmp_path / name / LOG).read_text().splitlines()]
        seen[name] = [line for line in lines if "validation_iou" in line]
        events = EventAccumulator(str(tmp_path / name / TENSORBOARD), size_guidance={"images": 0}).Reload()
        for number in ("loss", "iou", "ao", "auc"):
            shown = [(event.step, event.value) for event in events.Scalars(f"validation/{number}")]
            logged = [(line["pairs"], line[f"validation_{number}"]) for line in seen[name]]
            assert [step for step, _ in shown] == [12, 24]
            np.testing.assert_allclose(shown, logged, atol=2e-5)
        pictures = sorted((tmp_path / name / PICTURES).iterdir())
        assert [path.stem for path in pictures] == ["0000000012", "0000000024"]
        tagged = events.Images("pairs")
        assert [image.step for image in tagged] == [12, 24] and tagged[0].width == 4 * 260
    assert seen["whole"] == seen["parts"] and len(seen["whole"]) == 2
    assert len(json.loads((tmp_path / "parts" / RUN).read_text())["starts"]) == 2


def test_validation_is_that_of_the_weights_written(watched, tmp_path):
    """The numbers follow from the exported file alone."""
    cfg = replace(watched, epochs=1, log_to=())
    run(cfg, tmp_path / "run")
    line = json.loads((tmp_path / "run" / LOG).read_text().splitlines()[-1])
    model = OSTrack.from_pretrained(tmp_path / "run" / "weights.safetensors")
    scores = track_all(model, load_videos(cfg.data_root), torch.device("cpu"), 2)["square"]
    assert line["validation_ao"] == pytest.approx(scores.average_overlap, abs=1e-5)
    assert line["validation_auc"] == pytest.approx(scores.auc, abs=1e-5)
    assert line["pairs"] == 12


def test_the_validations_pairs_tell_the_box_of_their_template(watched, tmp_path):
    """A network that reads it gets the pair's own, whose shape the square that stands for none has not."""
    cfg = replace(watched, model=replace(watched.model, template_box=True), output=str(tmp_path / "run"))
    trainer, asked = Trainer(cfg), []
    model = trainer.exported()
    plain = model.forward
    model.forward = lambda *images, template_box, **rest: (
        asked.append(template_box) or plain(*images, template_box=template_box, **rest)
    )
    Validation(replace(cfg, validation=replace(cfg.validation, starts=0)), torch.device("cpu"), ALONE)(
        model, lambda: False
    )
    pairs = PairDataset(
        [(VideoFolder(cfg.data_root, camera=UNMOVED), 1.0)],
        DataConfig(cfg.crops, AugmentConfig(gray=0, flip=0, brightness=0), cfg.seed, 8),
    )
    assert torch.equal(torch.cat(asked), torch.stack([pairs[i]["template_box"] for i in range(8)]))


def test_validation_leaves_videos_out(watched, tmp_path):
    for name in ("a", "b"):
        shutil.copytree(Path(watched.data_root) / "square", tmp_path / "videos" / name)
    judged = replace(watched.validation, videos=str(tmp_path / "videos"), without=("a",))
    validation = Validation(replace(watched, validation=judged), torch.device("cpu"), ALONE)
    assert validation._pairs.sources[0].names == [video.name for video in validation._videos] == ["b"]


@pytest.mark.slow
def test_an_interrupted_validation_is_made_up_for(watched, tmp_path, monkeypatch):
    """A signal while the first validation goes on ends it, and the run that continues begins with it."""
    from ostrack_fast.training import validation

    whole = run(watched, tmp_path / "whole")
    plain = validation.evaluate_video

    def interrupted(*arguments, **named):
        import signal

        signal.raise_signal(signal.SIGTERM)
        return plain(*arguments, **named)

    monkeypatch.setattr(validation, "evaluate_video", interrupted)
    stopped = run(watched, tmp_path / "parts")
    assert stopped.seen == 12 and "validation" not in (tmp_path / "parts" / LOG).read_text()
    monkeypatch.undo()
    resumed = run(watched, tmp_path / "parts")
    assert same(whole.model.state_dict(), resumed.model.state_dict())
    kept = [
        [line for line in (tmp_path / name / LOG).read_text().splitlines() if "validation" in line]
        for name in ("whole", "parts")
    ]
    assert kept[0] == kept[1] and len(kept[0]) == 2


def test_the_recorded_settings_start_the_same_run_again(watched, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cfg = replace(watched, epochs=0.5, output="here", weights=None)
    first = run(cfg, "here")
    again = read_train_config(tmp_path / "here" / CONFIG)
    assert again == replace(cfg, output=str(tmp_path / "here"))
    second = run(again, tmp_path / "there")
    assert same(first.model.state_dict(), second.model.state_dict())


def test_git_state(tmp_path):
    def git(*arguments):
        named = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
        done = subprocess.run(
            ["git", "-C", str(tmp_path), *named, *arguments], capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    assert git_state(tmp_path) is None, "no checkout"
    git("init", "-q")
    (tmp_path / "code.py").write_text("1\n")
    git("add", "code.py")
    git("commit", "-q", "-m", "c")
    assert git_state(tmp_path) == {"commit": git("rev-parse", "HEAD"), "changed": []}
    (tmp_path / "code.py").write_text("2\n")
    assert git_state(tmp_path, tmp_path / "code.py")["changed"] == ["code.py"]
    (tmp_path / "installed.py").write_text("")
    assert git_state(tmp_path, tmp_path / "installed.py") is None, "the checkout around it is another project's"


def test_pictures_show_boxes_scores_and_what_was_eliminated(config, tmp_path):
    trainer = Trainer(replace(config, output=str(tmp_path), ce_start_epoch=0, ce_warmup_epochs=0))
    gray = {
        name: torch.full((4, side, side, 3), 200, dtype=torch.uint8)
        for name, side in (("template", 32), ("search", 64))
    }
    box = torch.tensor([[0.25, 0.25, 0.5, 0.5]]).expand(4, 4)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    picture = trainer._draw(gray | {"template_box": box, "search_box": box})
    assert picture.shape == (4 * 284, 4 * 260, 3) and picture.dtype == np.uint8
    assert same(before, trainer.model.state_dict()) and trainer.model.training
    for row in range(4):
        template, search, _, candidates = (
            picture[row * 284 + 26 : row * 284 + 282, 260 * i + 2 : 260 * i + 258].astype(int) for i in range(4)
        )
        green = np.abs(template - TRUTH_COLOUR).sum(-1) < 60
        assert np.abs(np.nonzero(green.any(0))[0][[0, -1]] - (64, 192)).max() < 3
        assert (np.abs(search - TARGET_COLOUR).sum(-1) < 60).any(), "the predicted box"
        # Of 16 cells, of 64 by 64 pixels each, ceil(0.7 * 16) = 12 stay.
        cells = candidates.reshape(4, 64, 4, 64, 3).mean((1, 3, 4)).round()
        assert sorted(np.unique(cells)) == [50, 200] and (cells == 200).sum() == 12


def test_first_frames(square):
    (video,) = load_videos(square)
    assert first_frames(video, 1) == [0]
    assert first_frames(video, 3) == [0, 6, 11] and first_frames(video, 100) == list(range(12))
    boxes = video.boxes.copy()
    boxes[4:8] = np.nan
    assert first_frames(replace(video, boxes=boxes), 100) == [0, 1, 2, 3, 8, 9, 10, 11]


def test_which_binds(monkeypatch):
    """Two makers that need 0.1 s a pair make 20 a second; 8 pairs a step of 0.2 s are 40."""
    clock = [0.0]
    monkeypatch.setattr("ostrack_fast.training.speed.time.monotonic", lambda: clock[0])
    speed = Speed(8, 2)
    for _ in range(3):
        speed.wait()
        clock[0] += 0.3
        speed.loaded()
        clock[0] += 0.2
        speed.stepped({"loss": 2.0, "iou": 0.5}, 0.8)
    summary = speed.summary()
    assert summary == pytest.approx(
        {"loss": 2, "iou": 0.5, "pairs_per_second": 16, "loader_pairs_per_second": 20, "step_pairs_per_second": 40}
    )
    assert "16/s (loader 20, step 40: the loader binds)" in status(summary)
    assert "the step binds" in status(summary | {"loader_pairs_per_second": 41})


@pytest.mark.parametrize("workers", [0, 1])
def test_the_loader_says_how_long_its_pairs_took(config, workers, monkeypatch):
    dataset = build_dataset(config)
    plain = type(dataset).__getitem__
    slow = type("Slow", (type(dataset),), {})

    def getitem(self, index):
        import time

        time.sleep(0.02)
        return plain(self, index)

    slow.__getitem__ = getitem
    dataset.__class__ = slow
    loader = make_loader(dataset, 4, workers)
    batches = iter(loader)
    batch = next(batches)
    assert loader.seconds >= 0.08 and "seconds" not in batch
    batches.close()


def test_runs_are_found_listed_and_drawn(watched, tmp_path, monkeypatch, capsys):
    from ostrack_fast import cli

    run(replace(watched, log_to=(), epochs=1), tmp_path / "runs" / "one")
    (tmp_path / "runs" / "old").mkdir()
    (tmp_path / "runs" / "old" / LOG).write_text('{"pairs": 800, "loss": 2.5, "iou": 0.4}\n{"pairs": 1600, "lo')
    old, one = find_runs([tmp_path / "runs", tmp_path / "runs" / "one"])
    assert (old.path.name, one.path.name, old.pairs, old.total, one.pairs, one.total) == (
        "old",
        "one",
        800,
        None,
        12,
        12,
    )
    assert one.curve("validation_iou")[0] == [12.0] and old.last("loss") == 2.5
    plot_runs([replace(old, path=old.path.with_name("_old")), one], tmp_path / "named.svg")
    assert "<!-- _old: loss -->" in (tmp_path / "named.svg").read_text()
    plot_runs([old, one], tmp_path / "curves.png")
    assert cv2.imread(str(tmp_path / "curves.png")).std() > 5
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["ostrack-fast", "runs", "--plot", "all.svg"])
    with pytest.raises(SystemExit) as left:
        cli.main()
    out = capsys.readouterr().out
    assert not left.value.code and (tmp_path / "all.svg").stat().st_size > 1000
    assert "runs/old" in out and "12 of 12" in out and "2.500" in out
    with pytest.raises(FileNotFoundError, match=r"no training run in .*data"):
        find_runs([_empty(tmp_path / "data")])


def _empty(path):
    path.mkdir()
    return path


def records(data):
    """The records of W&B's file: a head of 7 bytes, then the blocks of a LevelDB log."""
    assert data[:4] == b":W&B"
    at, whole = 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or a last part
            yield whole
            whole = b""


def test_runs_whose_files_were_changed_or_damaged(tmp_path, monkeypatch, capsys):
    from ostrack_fast import cli

    logs = ['{"pairs": 4, "loss": 2.5}\n' + line for line in ("[" * 100_000, '{"pairs": 1e400}', "[1]", "4", "x")]
    logs.append('{"pairs": 4, "loss": 2.5, "iou": 1' + "0" * 400 + "}\n" + logs[0])
    settings = ["epochs: abc", "epochs: .inf", "epochs: .nan", "epochs: {a: 1}", "epochs: [1]", "a: ["]
    starts = [
        [1],
        [{"git": [1]}],
        [{"git": {"package": "x"}}],
        [{"git": {"package": {"commit": 5}}}],
        [{"time": "[/b]"}],
    ]
    records = [json.dumps({"id": "a", "starts": each}) for each in starts] + ["[" * 100_000]
    # A tag that nothing opened would end the listing, and [bold] would be taken away.
    folders = [tmp_path / f"[bold]run{index}[" / "b]" for index in range(6)]
    for folder, log, setting, record in zip(folders, logs, settings, records, strict=True):
        folder.mkdir(parents=True)
        (folder / LOG).write_text(log)
        (folder / CONFIG).write_text(f"{setting}\npairs_per_epoch: 3\n")
        (folder / RUN).write_text(record)
    (tmp_path / "waits").mkdir()
    os.mkfifo(tmp_path / "waits" / LOG)
    # Whoever waits for a pipe goes on once it has been opened for writing.
    opened = threading.Timer(5, lambda: os.close(os.open(tmp_path / "waits" / LOG, os.O_RDWR)))
    opened.start()
    found = find_runs([tmp_path])
    opened.cancel()
    assert [run.path for run in found] == folders and [run.total for run in found] == [None] * 6
    assert [run.pairs for run in found] == [4] * 6 and [run.commit for run in found] == [""] * 6
    monkeypatch.setenv("COLUMNS", "500")  # where a name is not folded
    monkeypatch.setattr(sys, "argv", ["ostrack-fast", "runs", str(tmp_path)])
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert not left.value.code and "[bold]run5[/b]" in capsys.readouterr().out.replace("\n", "")


@pytest.mark.slow
def test_weights_and_biases_offline(config, tmp_path, monkeypatch):
    """The real package, which writes what it would send to a file."""
    pytest.importorskip("wandb", reason="needs the extra wandb")
    from wandb.proto import wandb_internal_pb2

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    cfg = replace(
        config, epochs=1, log_to=("wandb",), pictures=1, validation=ValidationConfig(videos=".", pairs=4, starts=0)
    )
    run(cfg, tmp_path / "run")
    (path,) = (tmp_path / "run").glob("wandb/offline-run-*/run-*.wandb")
    history, config_seen = {}, {}
    for data in records(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        for item in record.history.item:
            history.setdefault(item.key or "/".join(item.nested_key), []).append(json.loads(item.value_json))
        for item in record.run.config.update:
            config_seen[item.key] = json.loads(item.value_json)
    line = json.loads((tmp_path / "run" / LOG).read_text().splitlines()[-1])
    assert history["validation/iou"] == pytest.approx([line["validation_iou"]], abs=1e-5)
    assert 24 in history["pairs"] and config_seen["pairs_per_epoch"] == 24
    assert list((tmp_path / "run").glob("wandb/offline-run-*/files/media/images/*.png"))


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_missing_package_is_named(config, tmp_path, monkeypatch, name):
    for module in ("wandb", "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf"pip install 'ostrack_fast\[{name}\]'"):
        run(replace(config, log_to=(name,)), tmp_path / "run")


@pytest.mark.slow
def test_two_processes_share_the_validation(square, tmp_path):
    """Of two videos each tracks one; the numbers are those of one process."""
    import shutil

    from .test_distributed import environment, free_port, write

    for name in ("a", "b"):
        shutil.copytree(square / "square", tmp_path / "videos" / name)
    changes = {"pairs_per_epoch": 8, "validation": {"videos": ".", "pairs": 8}, "pictures": 1}
    path = write(tmp_path, tmp_path / "videos", **changes)
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port", free_port(),
        "-m", "ostrack_fast.cli", "train", str(path), "--device", "cpu",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    cfg = read_train_config(path)
    run(replace(cfg, batch_size=8), tmp_path / "one")
    lines = [
        json.loads((folder / LOG).read_text().splitlines()[-1]) for folder in (tmp_path / "pair", tmp_path / "one")
    ]
    assert lines[0]["pairs"] == lines[1]["pairs"] == 8
    for name in ("iou", "ao", "auc"):
        assert lines[0][f"validation_{name}"] == pytest.approx(lines[1][f"validation_{name}"], abs=5e-3)
    assert lines[0]["validation_loss"] == pytest.approx(lines[1]["validation_loss"], rel=0.1), "normalized by batch"
    assert os.listdir(tmp_path / "pair" / PICTURES) == ["0000000008.jpg"]
