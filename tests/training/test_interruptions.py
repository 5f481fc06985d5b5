"""Runs that are stopped by damage, by bad data, by a full disk or by the end: what is left, and what is said."""

import json
import multiprocessing
import resource
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ostrack_fast import files
from ostrack_fast.cli import main
from ostrack_fast.model import OSTrack
from ostrack_fast.training.checkpoint import CHECKPOINT, PREVIOUS
from ostrack_fast.training.log import trim_log
from ostrack_fast.training.trainer import WEIGHTS, Trainer

from .tiny_run import run, same

YAML = """
model: {{preset: small, template_size: 32, search_size: 64, embed_dim: 32, depth: 2, num_heads: 2, head_channels: 16,
        ce_layers: [], ce_keep_ratio: []}}
output: run
data: {{videos: {{path: {videos}{source}}}}}
pairs_per_epoch: {pairs}
epochs: 1
batch_size: 4
precision: float32
workers: {workers}
"""


@pytest.fixture
def command(square, tmp_path, monkeypatch, capsys):
    """Runs `ostrack-fast train` on a tiny configuration: exit status, standard output and error."""

    def call(pairs=8, workers=0, source="", videos=square):
        path = tmp_path / "t.yaml"
        path.write_text(YAML.format(videos=videos, source=source, pairs=pairs, workers=workers))
        monkeypatch.setattr("sys.argv", ["ostrack-fast", "train", str(path), "--device", "cpu"])
        with pytest.raises(SystemExit) as stop:
            main()
        out, err = capsys.readouterr()
        return stop.value.code or 0, out, err

    return call


def test_a_run_whose_pairs_are_no_multiple_of_the_batch_ends(command, tmp_path):
    code, out, _ = command(pairs=10)
    assert code == 0 and "done: 8 of 10 pairs (the last 2 fill no batch of 4)" in " ".join(out.split())
    files = {name: (tmp_path / "run" / name).read_bytes() for name in (CHECKPOINT, WEIGHTS)}
    code, out, _ = command(pairs=10)
    assert code == 0 and "done: 8 of 10 pairs" in " ".join(out.split())
    # Run again, a finished run changes nothing; and its only checkpoint does not become its own predecessor.
    assert files[CHECKPOINT] == (tmp_path / "run" / CHECKPOINT).read_bytes()
    assert not (tmp_path / "run" / PREVIOUS).exists()


def test_a_finished_run_gives_its_weights_again(config, tmp_path):
    trained = run(config, tmp_path / "run")
    (tmp_path / "run" / WEIGHTS).unlink()
    run(config, tmp_path / "run")
    exported = OSTrack.from_pretrained(tmp_path / "run" / WEIGHTS).state_dict()
    assert same(dict(exported), {name: trained.average.state[name] for name in exported})


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_second_interrupt_loses_nothing(config, tmp_path, monkeypatch, number):
    """Two while a step is computed, and more while each file is written."""
    whole = run(config, tmp_path / "whole")
    before, written = signal.getsignal(number), []
    config = replace(config, output=str(tmp_path / "parts"))
    trainer = Trainer(config)
    plain, publish = trainer.step, files.AtomicFile.publish

    def step(batch):
        signal.raise_signal(number)
        signal.raise_signal(number)
        return plain(batch)

    def interrupted(file):
        signal.raise_signal(number)
        publish(file)
        written.append(file.name)

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "step", step)
        patch.setattr(files.AtomicFile, "publish", interrupted)
        trainer.run(progress=False)
    assert trainer.seen == config.batch_size and signal.getsignal(number) is before
    # What the run is, when it starts; the checkpoint and the weights when it stops.
    assert [Path(name).suffix for name in written] == [".yaml", ".json", ".pt", ".safetensors"]
    assert torch.load(tmp_path / "parts" / CHECKPOINT, weights_only=True)["seen"] == trainer.seen
    OSTrack.from_pretrained(tmp_path / "parts" / WEIGHTS)
    assert same(dict(run(config, tmp_path / "parts").average.state), dict(whole.average.state))


def test_an_interrupted_run_says_so_and_ends_with_130(command, monkeypatch):
    plain = Trainer.step

    def step(self, batch):
        signal.raise_signal(signal.SIGINT)
        return plain(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", step)
        code, out, _ = command(pairs=12)
    assert code == 130 and "stopped; the same command continues: 4 of 12 pairs" in " ".join(out.split())
    code, out, _ = command(pairs=12)
    assert code == 0 and "done: 12 of 12 pairs" in " ".join(out.split())


def test_a_shorter_run_is_finished_too(config, tmp_path):
    run(config, tmp_path / "run")
    assert run(replace(config, epochs=0.5), tmp_path / "run").seen == 48


def spoil(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x40
    path.write_bytes(data)


def test_a_damaged_checkpoint_alone_is_refused(command, tmp_path):
    assert command(pairs=4)[0] == 0
    spoil(tmp_path / "run" / CHECKPOINT)
    before = (tmp_path / "run" / CHECKPOINT).read_bytes()
    code, _, err = command(pairs=8)
    assert code == 2 and "last.pt is damaged (its checksum does not fit)" in err and "Traceback" not in err
    assert (tmp_path / "run" / CHECKPOINT).read_bytes() == before


def test_after_damage_a_run_continues_from_the_checkpoint_before_it_exactly(config, tmp_path, capsys):
    whole = run(config, tmp_path / "whole")
    run(config, tmp_path / "parts", stop_after=20)
    run(config, tmp_path / "parts", stop_after=32)
    spoil(tmp_path / "parts" / CHECKPOINT)
    resumed = run(config, tmp_path / "parts")
    assert "the run continues from" in capsys.readouterr().err
    assert whole.seen == resumed.seen == 48
    assert same(whole.model.state_dict(), resumed.model.state_dict())
    assert same(whole.optimizer.state_dict(), resumed.optimizer.state_dict())


@pytest.mark.parametrize("change", ["no keys", "a list", "optimizer empty", "weights missing", "config"])
def test_a_foreign_checkpoint_is_named(config, tmp_path, change):
    run(replace(config, epochs=0.5), tmp_path / "run")
    path = tmp_path / "run" / CHECKPOINT
    state = torch.load(path, weights_only=True)
    changed = {
        "no keys": {},
        "a list": [1],
        "optimizer empty": state | {"optimizer": {}},
        "weights missing": state | {"model": {}},
        "config": state | {"config": "3"},
    }
    torch.save(changed[change], path)
    with pytest.raises(ValueError, match=r"last\.pt does not fit this run \(.*choose another output folder") as error:
        run(config, tmp_path / "run")
    assert "\n" not in str(error.value)


def test_an_output_that_is_a_file_is_found_before_the_work(config, tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(ValueError, match="is a file: output must name the folder"):
        Trainer(replace(config, output=str(tmp_path / "run")))


def test_the_log_has_each_line_once_whenever_the_run_was_killed(config, tmp_path):
    config = replace(config, epochs=1, pairs_per_epoch=600)
    run(config, tmp_path / "whole")
    whole = (tmp_path / "whole" / "log.jsonl").read_text().splitlines()
    run(config, tmp_path / "parts", stop_after=240)
    # What a kill leaves that came after the checkpoint at 240 pairs: whole lines and half of one.
    with open(tmp_path / "parts" / "log.jsonl", "a") as log:
        log.write('{"pairs": 400, "loss": 9}\n{"pairs": 6')
    run(config, tmp_path / "parts")
    parts = (tmp_path / "parts" / "log.jsonl").read_text().splitlines()
    pairs = [[json.loads(line)["pairs"] for line in lines] for lines in (whole, parts)]
    assert pairs == [[200, 400, 600]] * 2
    assert json.loads(parts[1])["loss"] < 9


def test_a_run_that_starts_anew_has_no_old_lines(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"pairs": 200}\n[]\n{"pairs": 0}\n\xff')
    trim_log(tmp_path / "log.jsonl", 0)
    assert (tmp_path / "log.jsonl").read_text() == '{"pairs": 0}\n'
    trim_log(tmp_path / "none.jsonl", 0)


@pytest.mark.parametrize("workers", [0, 1])
def test_images_that_cannot_be_read_are_one_line_and_cost_no_step(command, square, tmp_path, workers):
    shutil.copytree(square, tmp_path / "videos")
    assert command(pairs=8, source=", memory_gib: 0", videos=tmp_path / "videos")[0] == 0
    for path in (tmp_path / "videos" / "square" / "img").iterdir():
        path.write_bytes(path.read_bytes()[:500])
    code, _, err = command(pairs=80, workers=workers, source=", memory_gib: 0", videos=tmp_path / "videos")
    assert code == 2 and "cannot be read as an image" in err and len(err.strip().splitlines()) <= 3, err
    assert torch.load(tmp_path / "run" / CHECKPOINT, weights_only=True)["seen"] == 8
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("error", [FloatingPointError("not finite"), RuntimeError("a bug")])
def test_an_error_of_a_step_ends_the_workers(config, tmp_path, error):
    """Python would wait for them at its end; and the error's traceback keeps everything alive until then."""
    trainer = Trainer(replace(config, output=str(tmp_path / "run"), workers=1))

    def step(batch):
        raise error

    trainer.step = step
    with pytest.raises(type(error)):
        trainer.run(progress=False)
    assert not multiprocessing.active_children()


def test_data_that_fails_after_some_steps_saves_them_first(config, tmp_path):
    trainer = Trainer(replace(config, output=str(tmp_path / "run")))
    plain = trainer.step

    def step(batch):
        terms = plain(batch)
        if trainer.seen == 12:
            raise_next()
        return terms

    source = None

    def raise_next():
        def fail(rng, crops):
            raise ValueError("0007.png cannot be read")

        source.sample = fail

    from ostrack_fast.training import trainer as module

    build = module.build_dataset

    def remember(cfg):
        nonlocal source
        dataset = build(cfg)
        source = dataset.sources[0]
        return dataset

    trainer.step = step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "build_dataset", remember)
        with pytest.raises(ValueError, match=r"0007\.png cannot be read"):
            trainer.run(progress=False)
    assert torch.load(tmp_path / "run" / CHECKPOINT, weights_only=True)["seen"] == 12


def test_targets_that_give_no_pair_are_one_line(command, square, tmp_path):
    shutil.copytree(square, tmp_path / "videos")
    truth = tmp_path / "videos" / "square" / "groundtruth_rect.txt"
    for lines in ("5,5,1.5,1.5\n" * 24, "500,500,20,20\n" * 24):
        truth.write_text(lines)
        code, _, err = command(workers=1, videos=tmp_path / "videos")
        assert code == 2 and "no usable pair" in err and "Traceback" not in err


def test_a_worker_that_dies_is_one_line(tmp_path, square):
    script = (
        "import os, sys\n"
        "from ostrack_fast.training.videos import VideoFolder\n"
        "VideoFolder.sample = lambda *args: os._exit(1)\n"
        "from ostrack_fast.cli import main\n"
        "main()\n"
    )
    (tmp_path / "t.yaml").write_text(YAML.format(videos=square, source="", pairs=8, workers=1))
    command = [sys.executable, "-c", script, "train", "t.yaml", "--device", "cpu"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "a data worker died" in done.stderr and "Traceback" not in done.stderr


def test_a_full_disk_is_one_line_and_leaves_the_checkpoint(command, tmp_path):
    """A limit of the size of files fails writes as a full disk does."""
    assert command(pairs=4)[0] == 0
    good = {name: (tmp_path / "run" / name).read_bytes() for name in (CHECKPOINT, WEIGHTS)}
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        code, _, err = command(pairs=8)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert code == 2 and "Traceback" not in err and len(err.strip().splitlines()) <= 3, err
    for name, data in good.items():
        assert (tmp_path / "run" / name).read_bytes() == data
    assert not list((tmp_path / "run").glob("next*")) and not (tmp_path / "run" / PREVIOUS).exists()
    code, out, _ = command(pairs=8)
    assert code == 0 and "done: 8 of 8 pairs" in " ".join(out.split())
