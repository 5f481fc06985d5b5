"""`ostrack-fast evaluate` as a user runs it, with an untrained network."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from ostrack_fast.cli import main
from ostrack_fast.config import ModelConfig
from ostrack_fast.evaluation import evaluate_folder, load_videos, read_boxes
from ostrack_fast.model import OSTrack
from ostrack_fast.model.checkpoint import save_weights
from ostrack_fast.tracker import Tracker

TINY = ModelConfig(
    template_size=64, search_size=128, embed_dim=24, depth=2, num_heads=2, head_channels=16,
    ce_layers=(1,), ce_keep_ratio=(0.7,),
)  # fmt: skip


@pytest.fixture
def weights(tmp_path):
    torch.manual_seed(0)
    save_weights(OSTrack(TINY).state_dict(), TINY, tmp_path / "tiny.safetensors")
    return tmp_path / "tiny.safetensors"


def test_everything_it_writes(videos, weights, tmp_path):
    arguments = [
        "--data", videos, "--weights", weights, "--device", "cpu", "--dtype", "float32", "--one-based", "one_*",
        "--json", tmp_path / "out.json", "--results", tmp_path / "boxes", "--plot", tmp_path / "curves.png",
    ]  # fmt: skip
    command = [sys.executable, "-m", "ostrack_fast.cli", "evaluate", *map(str, arguments)]
    out = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False)
    assert out.returncode == 0, out.stderr
    read = json.loads((tmp_path / "out.json").read_text())
    expected = {"weights": str(weights), "device": "cpu", "dtype": "float32", "box_prior": False, "smoothing": False}
    assert read["tracker"] == expected
    assert (read["data"], read["one_based"]) == (str(videos), ["one_*"])
    assert [video["name"] for video in read["videos"]] == ["one_A", "zero_B"]
    for name in ("one_A", "zero_B", "AUC", "fps", f"{read['mean']['auc']:.3f}"):
        assert name in out.stdout
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    # The same as from Python; the files hold three decimals and count as the ground truth does.
    expected = evaluate_folder(videos, Tracker(weights, "cpu", "float32"), one_based=["one_*"])
    assert read["mean"]["auc"] == pytest.approx(expected.mean.auc)
    for video, outcome in zip(load_videos(videos, ["one_*"]), expected.videos, strict=True):
        written = read_boxes(tmp_path / "boxes" / f"{video.name}.txt")
        written[:, :2] -= video.origin
        np.testing.assert_allclose(written, outcome.boxes, atol=1e-3)


def test_a_bad_video_is_named_and_the_others_are_reported(videos, weights, tmp_path, monkeypatch, capsys):
    (videos / "one_A" / "groundtruth_rect.txt").write_text("500,500,10,10\n" + "20,30,16,12\n" * 5)
    arguments = ["--data", videos, "--weights", weights, "--device", "cpu", "--json", tmp_path / "out.json"]
    monkeypatch.setattr("sys.argv", ["ostrack-fast", "evaluate", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 3
    read = json.loads((tmp_path / "out.json").read_text())
    assert [video["name"] for video in read["videos"]] == ["zero_B"] and list(read["skipped"]) == ["one_A"]
    err = capsys.readouterr().err
    assert "one_A: the first frame" in err and err.endswith("1 of 2 videos were skipped\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--data empty --weights tiny.safetensors", "empty holds no videos"),
        ("--data data --weights absent.safetensors", "absent.safetensors"),
        ("--data data --weights tiny.safetensors --plot curves.txt", "must end in one of"),
        ("--data data --weights tiny.safetensors --json empty", "empty is a folder"),
        ("--data data --weights tiny.safetensors --one-based VOT_*", "no video in data is called 'VOT_*'"),
        ("--weights tiny.safetensors", "--data"),
    ],
)
def test_mistakes_are_told_in_a_sentence(videos, weights, tmp_path, monkeypatch, capsys, arguments, message):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["ostrack-fast", "evaluate", *arguments.split()])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
