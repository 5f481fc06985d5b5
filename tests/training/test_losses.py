"""Losses, targets and schedules against the published code (tests/golden)."""

from pathlib import Path

import numpy as np
import pytest
import torch

from ostrack_fast.config import get_config
from ostrack_fast.model import template_mask
from ostrack_fast.training.losses import LossConfig, attention_loss, focal_loss, ostrack_loss
from ostrack_fast.training.schedule import keep_rate, rate_factor
from ostrack_fast.training.targets import gaussian_heatmap

from ..golden import seeded
from ..model.test_golden_model import GOLDEN, seeded_model

PROCESSING = np.load(Path(GOLDEN) / "processing.npz")


@pytest.mark.parametrize(("grid", "name"), [(16, "heatmap"), (24, "heatmap384")])
def test_heatmaps(grid, name):
    made = gaussian_heatmap(torch.from_numpy(PROCESSING["heatmap_boxes"]), grid)
    np.testing.assert_allclose(made.numpy(), PROCESSING[name], atol=1e-6)


def test_focal_loss_and_its_gradient():
    predicted = torch.from_numpy(PROCESSING["focal_pred"]).double().requires_grad_()
    loss = focal_loss(predicted.squeeze(1), torch.from_numpy(PROCESSING["heatmap"]).double())
    loss.backward()
    np.testing.assert_allclose(loss.item(), PROCESSING["focal_loss"], rtol=1e-6)
    np.testing.assert_allclose(predicted.grad.numpy(), PROCESSING["focal_grad"], rtol=1e-6, atol=1e-12)


def test_focal_loss_without_a_peak_is_finite():
    assert torch.isfinite(focal_loss(torch.full((1, 4, 4), 0.5), torch.zeros(1, 4, 4)))


def test_keep_rate():
    made = [keep_rate(epoch, 20, 80, 0.7) for epoch in range(131)]
    np.testing.assert_allclose(made, PROCESSING["keep_rate"], rtol=1e-6)


def test_learning_rate():
    published = [rate_factor(epoch, 300, 0, 240, 0) for epoch in (0, 239.9, 240, 299)]
    assert published == [1, 1, 0.1, 0.1]
    own = [rate_factor(epoch, 10, 2, None, 4) for epoch in (0, 1, 2, 6, 8, 10)]
    assert own == [0, 0.5, 1, 1, 0.5, 0]


def test_training_step():
    expected = np.load(GOLDEN / "training_step.npz")
    model = seeded_model(get_config("ostrack_256_ce"), torch.float64)
    template, search = (seeded.image(name, 2, size, 1).double() for name, size in (("template", 128), ("search", 256)))
    out = model(template, search, template_mask(model.cfg), ce_keep_rate=float(expected["keep_rate"]))
    loss, terms = ostrack_loss(out, torch.from_numpy(expected["gt_xywh"]))
    loss.backward()

    for name in ("loss", "giou", "l1", "focal"):
        np.testing.assert_allclose(terms[name].item(), expected[name], rtol=1e-6)
    norms = {name: -1.0 if p.grad is None else p.grad.norm().item() for name, p in model.named_parameters()}
    assert list(norms) == list(expected["param_names"])
    np.testing.assert_allclose(list(norms.values()), expected["grad_norms"], rtol=1e-4, atol=1e-9)


def test_box_terms_at_the_target_reach_the_right_cell_even_when_the_peak_is_wrong():
    out = {
        "score_map": torch.full((1, 1, 8, 8), 0.1).requires_grad_(),
        "size_map": torch.full((1, 2, 8, 8), 0.5).requires_grad_(),
        "offset_map": torch.zeros(1, 2, 8, 8).requires_grad_(),
        "pred_boxes": torch.tensor([[[0.1, 0.1, 0.5, 0.5]]]),
        "ce_scores": [],
    }
    box = torch.tensor([[0.55, 0.55, 0.15, 0.15]])
    loss, _ = ostrack_loss(out, box, LossConfig(box_cells="target"))
    loss.backward()
    touched = out["size_map"].grad.abs().sum((0, 1)).nonzero().tolist()
    assert [5, 5] in touched and [0, 0] not in touched


def test_attention_loss_falls_as_the_score_moves_onto_the_target():
    ids = torch.arange(16)[None]
    box = torch.tensor([[0.5, 0.0, 0.5, 0.25]])  # cells 2 and 3 of the first row
    on, off = torch.full((1, 16), 1e-3), torch.full((1, 16), 1e-3)
    on[0, 2:4], off[0, 8] = 0.4, 0.8
    good, bad = (attention_loss([(score, ids)], box, 4) for score in (on, off))
    assert good < 0.05 < 3 < bad
    assert attention_loss([], box, 4) == 0


def test_a_wrong_setting_is_refused():
    with pytest.raises(ValueError, match="box_cells"):
        LossConfig(box_cells="everywhere")
