"""Table 3 of the paper: its MACs to the printed digit, and a table of the four models."""

import json

import pytest
import torch
from torch import nn

from ostrack_fast.cli import main
from ostrack_fast.config import ModelConfig, get_config
from ostrack_fast.model import OSTrack
from ostrack_fast.paper import table3
from ostrack_fast.paper.costs import count_macs


@pytest.mark.parametrize("preset", table3.PUBLISHED)
def test_macs_are_the_papers_to_the_printed_digit(preset):
    assert round(count_macs(get_config(preset)).layers / 1e9, 1) == table3.PUBLISHED[preset].macs


@pytest.mark.parametrize("ratios", [(), (0.7, 0.5)])
def test_macs_are_those_of_the_layers_that_run(ratios):
    cfg = ModelConfig(
        template_size=32, search_size=64, embed_dim=24, depth=3, num_heads=2, head_channels=16,
        ce_layers=(0, 2)[: len(ratios)], ce_keep_ratio=ratios,
    )  # fmt: skip
    model, counted = OSTrack(cfg).eval(), []

    def count(layer, inputs, out):
        per_output = layer.weight.numel() // layer.weight.shape[0]
        counted.append(out.numel() * per_output)

    for layer in model.modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            layer.register_forward_hook(count)
    with torch.no_grad():
        out = model(torch.randn(1, 3, 32, 32), torch.randn(1, 3, 64, 64))
    # The attention that is returned of the last block costs its qkv layer a second time.
    again = 3 * cfg.embed_dim**2 * (4 + cfg.search_tokens()[-2]) if out["attn"] is not None else 0
    assert count_macs(cfg).layers == sum(counted) - again
    tokens = [4 + n for n in cfg.search_tokens()[:-1]]
    assert count_macs(cfg).attention == sum(2 * cfg.num_heads * n * n * 12 for n in tokens)


@pytest.fixture
def small_models(monkeypatch):
    """The table's code with models that take no time; what it counts stays the presets'."""
    build = OSTrack.from_preset
    monkeypatch.setattr(OSTrack, "from_preset", lambda _: build("small"))


def test_the_command(small_models, tmp_path, monkeypatch, capsys):
    scores = {"benchmark": "lasot", "protocol": "lasot", "trackers": [
        {"name": "ostrack_256_ce", "summary": {"AUC": 69.1}, "sequences": {}},
        {"name": "other", "summary": {"AUC": 1.0}, "sequences": {}},
    ]}  # fmt: skip
    (tmp_path / "scores.json").write_text(json.dumps(scores))
    monkeypatch.setenv("COLUMNS", "200")
    files = ["--scores", str(tmp_path / "scores.json"), "--json", str(tmp_path / "t.json")]
    monkeypatch.setattr("sys.argv", ["ostrack-fast", "paper", "table3", "--device", "cpu", "--rounds", "1", *files])
    with pytest.raises(SystemExit) as left:
        main()
    assert not left.value.code
    shown = capsys.readouterr().out
    for text in ("29.0 G (29.0)", "21.5 G (21.5)", "65.3 G (65.3)", "48.3 G (48.3)", "30.9 G", "74.9 G", "69.1"):
        assert text in shown
    rows = json.loads((tmp_path / "t.json").read_text())["rows"]
    assert [row["preset"] for row in rows] == list(table3.PUBLISHED) and all(row["fps"] > 0 for row in rows)
    assert rows[1]["accuracy"] == {"lasot AUC": 69.1} and rows[0]["accuracy"] == {}


def test_a_file_that_holds_no_scores_is_named(tmp_path):
    huge = {"benchmark": "otb", "trackers": [{"name": "ours", "summary": {"AUC": 10**400}}]}
    for text in ("[]", "[" * 100_000, json.dumps(huge)):
        (tmp_path / "x.json").write_text(text)
        with pytest.raises(ValueError, match=r"x\.json is no file that ostrack-fast score"):
            table3.read_accuracy([tmp_path / "x.json"])
