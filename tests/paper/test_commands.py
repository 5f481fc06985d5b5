"""The paper's commands, with networks and videos that take no time."""

import json
import os
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from ostrack_fast.baselines import NETWORKS
from ostrack_fast.cli import main
from ostrack_fast.config import get_config
from ostrack_fast.model import OSTrack
from ostrack_fast.model.checkpoint import save_weights
from ostrack_fast.paper import ablations, figures, table4, table5
from ostrack_fast.paper.costs import count_macs, measured_macs
from tests.training.conftest import square  # noqa: F401 - a fixture

TINY = """
model: {preset: small, template_size: 32, search_size: 64, embed_dim: 48, depth: 2, num_heads: 2, head_channels: 16,
        ce_layers: [], ce_keep_ratio: []}
data: {videos: {path: .}}
output: unused
loss: {box_cells: target}
optim: {drop_epoch: null}
batch_size: 4
precision: float32
workers: 0
pictures: 0
"""


def paper(monkeypatch, capsys, *words):
    """What the command prints."""
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.setattr("sys.argv", ["ostrack-fast", "paper", *map(str, words)])
    with pytest.raises(SystemExit) as left:
        main()
    out, err = capsys.readouterr()
    assert not left.value.code, err
    return out


@pytest.fixture
def training(square, tmp_path):  # noqa: F811
    (tmp_path / "tiny.yaml").write_text(TINY)
    return [
        "--recipe", tmp_path / "tiny.yaml", "--data-root", square, "--pairs", 8, "--runs", tmp_path / "runs",
        "--videos", square, "--frames", 3, "--device", "cpu", "--json", tmp_path / "out.json",
    ]  # fmt: skip


@pytest.fixture
def tiny_preset(monkeypatch):
    """ViT-B would take its time; what the counts are tested with is below."""
    cfg = replace(get_config("ostrack_256"), template_size=32, search_size=64, embed_dim=48, depth=2, num_heads=2)
    monkeypatch.setattr("ostrack_fast.paper.table5.get_config", lambda _: cfg)


def test_table4_trains_and_goes_on_where_it_was(training, monkeypatch, capsys, tmp_path):
    shown = paper(monkeypatch, capsys, "table4", "--start", "none", *training)
    assert "(60.4)" in shown and "took" in shown and "1 videos, 3 frames" in shown
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert [(row["start"], row["pairs"]) for row in rows] == [("none", 8)]
    monkeypatch.setattr("ostrack_fast.training.trainer.Trainer.step", lambda *_: pytest.fail("trained again"))
    assert paper(monkeypatch, capsys, "table4", "--start", "none", *training).split("took")[0] == shown.split("took")[0]


def test_starts_are_the_papers_or_ones_own(tmp_path):
    (tmp_path / "vit.npz").touch()
    assert table4.sources_of(None) == {"none": None, "ImageNet-1k": "deit", "ImageNet-21k": "augreg", "MAE": "mae"}
    assert table4.sources_of(["none", f"S={tmp_path / 'vit.npz'}"]) == {"none": None, "S": str(tmp_path / "vit.npz")}
    with pytest.raises(ValueError, match="'vits' is neither NAME=SOURCE nor one of none"):
        table4.sources_of(["vits"])


def test_table5_without_training(tiny_preset, monkeypatch, capsys, tmp_path):
    words = ["--rounds", 1, "--device", "cpu", "--json", tmp_path / "out.json"]
    shown = paper(monkeypatch, capsys, "table5", *words)
    assert "(52.9)" in shown and "AUC of" not in shown
    found = json.loads((tmp_path / "out.json").read_text())
    assert len(found["costs"]) == 3 and found["trained"] == []
    ours = next(each for each in found["costs"] if each["network"] == "ostrack")
    assert ours["engine_fps"] > 0 and all(each["engine_fps"] is None for each in found["costs"] if each is not ours)


@pytest.mark.slow
def test_table5_with_training(training, tiny_preset, square, monkeypatch, capsys, tmp_path):  # noqa: F811
    more = ["--validation", square, "--plot", tmp_path / "curves.png", "--rounds", 1]
    shown = paper(monkeypatch, capsys, "table5", *training, *more)
    for text in ("(52.9)", "(67.5)", "(93.1)", "(30 M)", "(39.3 M)", "(18 M)", "(68.7)", "MACs of a frame"):
        assert text in shown, text
    found = json.loads((tmp_path / "out.json").read_text())
    assert [each["network"] for each in found["costs"]] == ["stark-aligned", "swintrack-aligned", "ostrack"]
    assert all(each["fps"] > 0 and each["frame"]["layers"] < each["both"]["layers"] for each in found["costs"])
    assert len(found["trained"]) == 3 and all(each["curve"][-1][0] == 8 for each in found["trained"])
    assert cv2.imread(str(tmp_path / "curves.png")) is not None


def test_counted_macs_are_the_formulas():
    cfg = get_config("small")
    cfg = replace(cfg, ce_layers=(), ce_keep_ratio=(), depth=2)
    model = OSTrack(cfg).eval()
    images = [torch.zeros(1, 3, side, side) for side in (cfg.template_size, cfg.search_size)]
    assert measured_macs(model, lambda: model(*images)) == count_macs(cfg)


def test_the_reason_follows_the_figures():
    macs = [table5.Macs(10**9 * n, 0) for n in (26, 22, 29)]
    costs = [
        table5.Cost(name, 1, one, one, fps, None)
        for name, one, fps in zip(table5.PUBLISHED, macs, (5, 6, 4), strict=True)
    ]
    assert "behind stark-aligned and swintrack-aligned" in table5.explanation(costs)
    ahead = [*costs[:2], replace(costs[2], fps=9.0)]
    assert "OSTrack is ahead of both" in table5.explanation(ahead)


def test_ablations_change_the_options_and_nothing_else(square, monkeypatch, capsys, tmp_path):  # noqa: F811
    cfg = replace(
        get_config("small"), template_size=32, search_size=64, embed_dim=48, depth=6, num_heads=2, head_channels=16
    )
    torch.manual_seed(0)
    save_weights(OSTrack(cfg).state_dict(), cfg, tmp_path / "w.safetensors")
    words = ["--weights", tmp_path / "w.safetensors", "--videos", square, "--frames", 3, "--device", "cpu"]
    words += ["--runs", tmp_path / "runs", "--rounds", 1, "--json", tmp_path / "out.json"]
    shown = paper(monkeypatch, capsys, "ablations", *words)
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert "centre 2x2" in shown and "eliminating blocks" in shown and len(rows) == len(ablations.variants(cfg))
    stored = len([*(tmp_path / "runs").iterdir()])
    assert stored == len(rows)
    changed = {key for row in rows for key, value in row["model"].items() if value != rows[0]["model"][key]}
    assert changed == {"ce_layers", "ce_keep_ratio", "ce_template_range"}
    save_weights(OSTrack(replace(cfg, ce_layers=(), ce_keep_ratio=())).state_dict(),
                 replace(cfg, ce_layers=(), ce_keep_ratio=()), tmp_path / "w.safetensors")  # fmt: skip
    with pytest.raises(ValueError, match="eliminates no candidates"):
        ablations.ablations(str(tmp_path / "w.safetensors"), None, tmp_path, "cpu", 1, print)


def test_figures(square, monkeypatch, capsys, tmp_path):  # noqa: F811
    cfg = replace(get_config("small"), ce_layers=(), ce_keep_ratio=(), depth=1, template_size=32, search_size=64)
    torch.manual_seed(0)
    save_weights(NETWORKS["stark-aligned"](cfg).state_dict(), cfg, tmp_path / "two.safetensors")
    evaluated = {"mean": {"auc": 0.5, "fps": 30.0}}
    (tmp_path / "small.json").write_text(json.dumps(evaluated))
    words = ["--source", square / "square" / "img", "--box", "20,30,24,20", "--frames", "1,2"]
    words += ["--two-stream", tmp_path / "two.safetensors", "--results", tmp_path / "small.json"]
    shown = paper(monkeypatch, capsys, "figures", tmp_path / "[b]pictures[/i]", *words)
    sizes = [cv2.imread(str(tmp_path / f"[b]pictures[/i]/figure{number}.jpg")).shape for number in (4, 5, 6)]
    assert all(height == 2 * (256 + 24 + 4) for height, *_ in sizes) and sizes[2][1] == 3 * 260
    assert cv2.imread(str(tmp_path / "[b]pictures[/i]/figure1.png")) is not None and "1 trackers" in shown
    # Names in brackets are no markup; what is written is what the check before the work looks at.
    assert "[b]pictures" in shown and sorted(figures.FILES) == sorted(os.listdir(tmp_path / "[b]pictures[" / "i]"))


def test_a_two_stream_networks_features_do_not_depend_on_the_template():
    cfg = replace(get_config("small"), ce_layers=(), ce_keep_ratio=(), depth=1, template_size=32, search_size=64)
    model = NETWORKS["swintrack-aligned"](cfg).eval()
    frame = np.random.default_rng(0).integers(0, 255, (96, 128, 3), np.uint8)
    first = figures.two_stream_features(model, frame, (40, 30, 24, 20))
    assert first.shape == (4, 4)
    assert not np.allclose(first, figures.two_stream_features(model, frame, (60, 30, 24, 20)))


def test_features_are_stretched_over_the_cells_that_are_left():
    found = figures.stretched(np.array([[0.0, 10.0], [11.0, 12.0]]))
    assert found.tolist() == [[0.0, 0.0], [0.5, 1.0]] and not figures.stretched(np.zeros((2, 2))).any()


def test_points_without_speed_or_accuracy(tmp_path):
    trackers = {"MIL": {"median_ms": 50.0, "auc": 0.4}, "int8": {"median_ms": 5.0}}
    (tmp_path / "peers.json").write_text(json.dumps({"trackers": trackers}))
    assert figures.read_points([tmp_path / "peers.json"]) == [("MIL", 20.0, 40.0)]
    stopped = {"trackers": {"MIL": {"median_ms": 0.0, "auc": 0.4}}}
    for text in ("{}", "[" * 100_000, json.dumps(stopped), json.dumps({"mean": {"fps": 10**400, "auc": 1}})):
        (tmp_path / "x.json").write_text(text)
        with pytest.raises(ValueError, match=r"x\.json holds no speed"):
            figures.read_points([tmp_path / "x.json"])
