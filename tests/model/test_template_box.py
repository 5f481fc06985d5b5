"""A template that knows its target's box: what the box adds to the tokens, and that every path adds it."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from ostrack_fast import Engine, Tracker
from ostrack_fast.boxes import image_to_crop
from ostrack_fast.config import ModelConfig
from ostrack_fast.model import OSTrack
from ostrack_fast.model.checkpoint import save_weights
from ostrack_fast.model.vit import box_coverage, square_box
from ostrack_fast.ops import crop
from ostrack_fast.training.building import build_model
from ostrack_fast.training.config import TrainConfig

CFG = ModelConfig(
    template_size=64, search_size=128, embed_dim=32, depth=2, num_heads=2, head_channels=16, ce_layers=(1,),
    ce_keep_ratio=(0.7,), template_box=True,
)  # fmt: skip


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = OSTrack(CFG).eval()
    torch.nn.init.normal_(model.backbone.box_embed)
    return model


@pytest.fixture
def crops():
    torch.manual_seed(1)
    return torch.randn(2, 3, 64, 64), torch.randn(2, 3, 128, 128)


def test_coverage():
    # Two columns and a half of four, from the second on, and one row and a half, from the first on.
    box = torch.tensor([[0.25, 0.0, 0.625, 0.375], [-1.0, -1.0, 3.0, 3.0]])
    covered = box_coverage(box, 4)[..., 0].view(2, 4, 4)
    expected = torch.tensor([[0, 1, 1, 0.5], [0, 0.5, 0.5, 0.25], [0, 0, 0, 0], [0, 0, 0, 0]])
    torch.testing.assert_close(covered, torch.stack((expected, torch.ones(4, 4))))


def test_it_starts_with_nothing(crops):
    torch.manual_seed(0)
    with_box = OSTrack(CFG).eval()
    torch.manual_seed(0)
    without = OSTrack(replace(CFG, template_box=False)).eval()
    assert set(with_box.state_dict()) - set(without.state_dict()) == {"backbone.box_embed"}
    box = torch.tensor([[0.3, 0.4, 0.4, 0.2]] * 2)
    assert torch.equal(with_box(*crops, template_box=box)["score_map"], without(*crops)["score_map"])


def test_the_box_matters_and_reaches_its_vectors(model, crops):
    wide, square = torch.tensor([[0.2, 0.4, 0.6, 0.2]] * 2), square_box(CFG).repeat(2, 1)
    score = model(*crops, template_box=wide)["score_map"]
    assert not torch.allclose(score, model(*crops)["score_map"], atol=1e-4)
    assert torch.equal(model(*crops, template_box=square)["score_map"], model(*crops)["score_map"])
    score.sum().backward()
    assert (model.backbone.box_embed.grad.abs().sum(1) > 0).all()


def test_the_engine_adds_what_the_model_adds(model, crops):
    box = torch.tensor([[0.2, 0.4, 0.6, 0.2], [0.4, 0.1, 0.2, 0.8]])
    mask = torch.ones(16, dtype=torch.bool)
    engine = Engine(model, "cpu", "float32")
    for given in (box, None):
        engine.set_template(crops[0], mask, given)
        ours, expected = engine(crops[1]), model(*crops, mask, template_box=given)
        for name in ("score_map", "size_map", "offset_map"):
            torch.testing.assert_close(ours[name], expected[name], rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="one for each template"):
        engine.set_template(crops[0], mask, box[:1])


def frames():
    return np.random.default_rng(0).integers(0, 256, (3, 120, 160, 3), dtype=np.uint8)


def test_a_tracker_gives_the_box_of_the_first_frame(model):
    first, *_ = frames()
    engine = Engine(model, "cpu", "float32")
    engine.add(first, (60, 40, 50, 20))
    around = torch.tensor([[60, 40, 50, 20]], dtype=torch.float64)
    template, scale = crop(torch.from_numpy(first), around, CFG.template_factor, CFG.template_size)
    tokens = model.backbone.embed_template(template, image_to_crop(around, around, scale, CFG.template_size))
    torch.testing.assert_close(engine._targets.tokens[:1, :16], tokens.detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("batch", [1, None])
def test_an_exported_network_takes_the_box(model, tmp_path, batch):
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name, reason=f"{name} is not installed: pip install 'ostrack_fast[export]'")
    from ostrack_fast.export import export_model

    export_model(model, tmp_path / "box.onnx", batch=batch)
    first, *others = frames()
    ours, exported = Tracker(model, "cpu", "float32"), Tracker.from_onnx(tmp_path / "box.onnx")
    for tracker in (ours, exported):
        tracker.initialize(first, (60, 40, 50, 20))
    for frame in others:
        np.testing.assert_allclose(exported.track(frame).box, ours.track(frame).box, atol=0.5)


def test_training_starts_from_weights_without_it(tmp_path):
    torch.manual_seed(0)
    plain = replace(CFG, template_box=False)
    save_weights(OSTrack(plain).state_dict(), plain, tmp_path / "plain.safetensors")
    model = build_model(TrainConfig(model=CFG, weights=str(tmp_path / "plain.safetensors"), data={}, output="run"))
    assert model.backbone.box_embed.abs().sum() == 0
