"""Pictures from inside the network, against what the model itself reports of the same frame."""

import json
from importlib import resources

import cv2
import numpy as np
import pytest
import torch

from ostrack_fast import ops
from ostrack_fast.cli import main
from ostrack_fast.model import OSTrack, template_mask
from ostrack_fast.video import open_source
from ostrack_fast.visualization.inside import Inside, default_blocks, draw

ASSETS = resources.files("ostrack_fast") / "assets"


@pytest.fixture(scope="module")
def demo():
    frames = iter(open_source(ASSETS / "demo.mp4"))
    box = json.loads((ASSETS / "demo.json").read_text())["box"]
    return OSTrack.from_pretrained("small"), next(frames), next(frames), box


def test_it_is_what_the_model_reports(demo):
    model, first, second, box = demo
    cfg = model.cfg
    view = Inside(model, first, box).look(second, box)
    around = torch.tensor([box], dtype=torch.float64)
    template, _ = ops.crop(torch.from_numpy(first), around, cfg.template_factor, cfg.template_size)
    search, _ = ops.crop(torch.from_numpy(second), around, cfg.search_factor, cfg.search_size)
    with torch.no_grad():
        out = model(template, search, template_mask(cfg))
    gone = np.zeros(cfg.search_grid**2, bool)
    for block, removed, (score, cells) in zip(cfg.ce_layers, out["removed_indexes_s"], out["ce_scores"], strict=True):
        if cfg.ce_template_range == "CTR_POINT":
            np.testing.assert_allclose(view.attention[block].ravel()[cells[0]], score[0], rtol=1e-4, atol=1e-7)
        gone[removed[0].numpy()] = True
        np.testing.assert_array_equal(view.alive[block].ravel(), ~gone)
    assert [int(each.sum()) for each in view.alive][-1] == cfg.search_tokens()[-1]
    assert (view.features.ravel()[gone] == 0).all() and (view.features.ravel()[~gone] > 0).all()
    # The hooks are gone: the model is as it was.
    assert not any(block._forward_hooks or block._forward_pre_hooks for block in model.backbone.blocks)


def test_the_activation_map_tells_the_target_from_what_is_around_it(demo):
    model, first, second, box = demo
    view = Inside(model, first, box).look(second, box)
    activation, left = view.activation(), view.alive[-1]
    assert activation[left].min() == 0 == activation[~left].max() and activation.max() > 0
    # The search region is four times as large as the target, and lies around it.
    grid = model.cfg.search_grid
    middle = (np.abs(np.arange(grid) + 0.5 - grid / 2) < grid / 8)[:, None] & left
    target = middle & middle.T
    stronger = activation[target][:, None] > activation[left & ~target][None]
    assert target.any() and stronger.mean() > 0.75, "chance is 0.5"


def test_pictures(demo):
    model, first, second, box = demo
    view = Inside(model, first, box).look(second, box)
    for kind in ("attention", "elimination", "features"):
        blocks = default_blocks(model, kind)
        picture = draw(view, kind, blocks)
        panels = 2 if kind == "features" else 1 + len(blocks)
        assert picture.shape == (284, 260 * panels, 3) and picture.dtype == np.uint8
        # Each panel differs from the plain region.
        region = picture[30:, 4:256].astype(int)
        assert all(np.abs(picture[30:, 260 * i + 4 : 260 * i + 256] - region).max() > 20 for i in range(1, panels))
    with pytest.raises(ValueError, match="blocks 0 to 7, not 8"):
        draw(view, "attention", [8])


def run(monkeypatch, *words):
    monkeypatch.setattr("sys.argv", ["ostrack-fast", "visualize", *map(str, words)])
    with pytest.raises(SystemExit) as stop:
        main()
    return stop.value.code


def test_the_command(demo, tmp_path, monkeypatch, capsys):
    _, first, second, box = demo
    for index, frame in enumerate((first, second, second)):
        cv2.imwrite(str(tmp_path / f"{index}.png"), frame[..., ::-1])
    target = ["--box", ",".join(map(str, box))]
    assert not run(monkeypatch, "attention", tmp_path, *target, "-o", tmp_path / "out" / "a.png", "--blocks", "0,3")
    assert cv2.imread(str(tmp_path / "out" / "a.png")).shape == (284, 780, 3)
    assert not run(monkeypatch, "elimination", tmp_path, *target, "-o", tmp_path / "out" / "e.mp4")
    assert len(list(open_source(tmp_path / "out" / "e.mp4"))) == 2
    (tmp_path / "one").mkdir()
    cv2.imwrite(str(tmp_path / "one" / "0.png"), first[..., ::-1])
    for words, said in (
        (("features", tmp_path / "one", *target, "-o", tmp_path / "o" / "a.mp4"), "has no frame after the first"),
        (("mood", tmp_path, *target, "-o", "a.png"), "no picture of 'mood'"),
        (("features", tmp_path, *target, "-o", "a.gif"), "must end in .png"),
        (("features", tmp_path, *target, "-o", tmp_path / "o" / "a.png", "--frame", "9"), "has no frame 9"),
        (
            ("features", tmp_path, *target, "-o", tmp_path / "o" / "a.png", "--blocks", "x"),
            "not a list of numbers from 0",
        ),
    ):
        assert run(monkeypatch, *words) == 2 and said in capsys.readouterr().err
