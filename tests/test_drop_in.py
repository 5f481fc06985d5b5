"""`accelerate`: a network as a fork of the published code has it, by its own way to call it."""

import pytest
import torch
from torch import nn

from ostrack_fast import accelerate, build_ostrack
from ostrack_fast.model import template_mask


class PublishedLike(nn.Module):
    """The outside of the published network: submodules, the backbone's attributes, `cal_bbox`."""

    def __init__(self, model):
        super().__init__()
        self.backbone, self.box_head = model.backbone, model.box_head
        if model.cfg.ce_layers:
            self.backbone.ce_loc = list(model.cfg.ce_layers)
            self.backbone.ce_keep_ratio = list(model.cfg.ce_keep_ratio)


@pytest.fixture
def model():
    torch.manual_seed(0)
    made = build_ostrack("small").requires_grad_(False)
    for table in (made.backbone.pos_embed_z, made.backbone.pos_embed_x):
        nn.init.normal_(table)
    return made


def images():
    torch.manual_seed(1)
    return torch.randn(1, 3, 96, 96), torch.randn(1, 3, 192, 192)


@pytest.mark.parametrize("foreign", [True, False])
def test_as_the_network(model, foreign):
    z, x = images()
    mask = template_mask(model.cfg)[None]
    fast = accelerate(PublishedLike(model) if foreign else model, device="cpu", dtype="float32")
    assert fast.engine.cfg.ce_layers == model.cfg.ce_layers and not fast.training
    assert fast.box_head is model.box_head
    expected = model(z, x, mask)
    found = fast(template=z, search=x, ce_template_mask=mask)
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=2e-5, msg=name)


def test_elimination_is_read_from_the_backbone(model):
    foreign = PublishedLike(model)
    foreign.backbone.ce_loc, foreign.backbone.ce_keep_ratio = [2], [0.5]
    assert accelerate(foreign, device="cpu").engine.cfg.ce_layers == (2,)
    foreign.backbone.ce_loc = None
    assert accelerate(foreign, device="cpu").engine.cfg.ce_layers == ()
    assert accelerate(foreign, "small", device="cpu").engine.cfg == model.cfg


def test_a_template_is_embedded_once(model, monkeypatch):
    fast = accelerate(model, device="cpu", dtype="float32")
    calls = []
    embed = fast.engine.set_template
    monkeypatch.setattr(fast.engine, "set_template", lambda *a: calls.append(1) or embed(*a))
    z, x = images()
    first = fast(z, x)["score_map"]
    fast(z, x)
    assert len(calls) == 1
    z += 1.0  # another picture in the same tensor
    assert not torch.equal(fast(z, x)["score_map"], first) and len(calls) == 2
    fast(z.clone(), x)
    assert len(calls) == 3


def test_what_it_cannot_do(model):
    fast = accelerate(model, device="cpu")
    z, x = images()
    for wrong in ({"ce_keep_rate": 0.5}, {"return_last_attn": True}):
        with pytest.raises(ValueError, match="original network"):
            fast(z, x, **wrong)
    with pytest.raises(ValueError, match="the given PublishedLike does not fit the configuration: missing"):
        accelerate(PublishedLike(model), "ostrack_256_ce", device="cpu")
    with pytest.raises(ValueError, match="the given Linear carries no configuration"):
        accelerate(nn.Linear(2, 2), device="cpu")
