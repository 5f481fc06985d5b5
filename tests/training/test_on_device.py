"""Training on every device: the published step, the CPU's step, and a loss that falls."""

from dataclasses import replace
from statistics import mean

import numpy as np
import pytest
import torch

from ostrack_fast.config import ModelConfig, get_config
from ostrack_fast.model import template_mask
from ostrack_fast.training.config import OptimConfig, TrainConfig
from ostrack_fast.training.losses import LossConfig, ostrack_loss
from ostrack_fast.training.trainer import Trainer

from ..model.test_golden_model import GOLDEN, seeded_images, seeded_model

TINY = ModelConfig(
    template_size=32, search_size=64, embed_dim=32, depth=3, num_heads=1, head_channels=16,
    ce_layers=(1,), ce_keep_ratio=(0.7,), drop_path=0.0,
)  # fmt: skip


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def where(request, no_tf32):
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return request.param


@pytest.mark.slow
def test_published_step_in_float32(where):
    """Loss and the gradient of every parameter, as the published code has them in float64."""
    expected = np.load(GOLDEN / "training_step.npz")
    model = seeded_model(get_config("ostrack_256_ce"), torch.float32).to(where)
    template, search = (image.to(where) for image in seeded_images(model.cfg, 2, torch.float32))
    mask = template_mask(model.cfg, device=where)
    out = model(template, search, mask, ce_keep_rate=float(expected["keep_rate"]))
    loss, terms = ostrack_loss(out, torch.from_numpy(expected["gt_xywh"]).float().to(where))
    loss.backward()
    for name in ("loss", "giou", "l1", "focal"):
        np.testing.assert_allclose(terms[name].item(), expected[name], rtol=1e-4, err_msg=name)
    norms = [-1.0 if p.grad is None else p.grad.norm().item() for p in model.parameters()]
    np.testing.assert_allclose(norms, expected["grad_norms"], rtol=2e-3, atol=1e-5 * expected["grad_norm_total"])


def trainer(where, precision, cfg=TINY, attention=0.0, **optim):
    return Trainer(
        TrainConfig(
            model=cfg, data={}, output=".", precision=precision, batch_size=8, ce_start_epoch=0.0, ce_warmup_epochs=0.0,
            loss=LossConfig(box_cells="target", attention=attention),
            optim=OptimConfig(lr=3e-3, backbone_lr=1.0, **optim),
        ),
        where,
    )  # fmt: skip


def pairs(random, cfg, count):
    """Noise with a coloured square: in the middle of the template, somewhere in the search image."""
    template, search = (
        random.integers(0, 90, (count, size, size, 3), dtype=np.uint8) for size in (cfg.template_size, cfg.search_size)
    )
    boxes = np.zeros((count, 4), np.float32)
    for index in range(count):
        colour = random.integers(150, 256, 3)
        side = cfg.template_size // 2
        template[index, side // 2 : -side // 2, side // 2 : -side // 2] = colour
        x, y = random.integers(0, cfg.search_size - side, 2)
        search[index, y : y + side, x : x + side] = colour
        boxes[index] = np.array((x, y, side, side)) / cfg.search_size
    arrays = {"template": template, "search": search, "search_box": boxes}
    if cfg.template_box:
        arrays["template_box"] = np.tile(np.float32((0.25, 0.25, 0.5, 0.5)), (count, 1))
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def test_what_is_computed_again_is_not_stored():
    """Bytes that the gradient of a step's loss holds, in the storages of all saved tensors."""
    held = {}
    for again in ("none", "mlp", "block"):
        run = Trainer(replace(trainer("cpu", "float32").cfg, activation_checkpointing=again))
        storages = {}

        def keep(tensor, storages=storages):
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss, _ = run._loss(pairs(np.random.default_rng(0), TINY, 8))
        held[again] = sum(storages.values())
        assert loss.requires_grad
    assert held["block"] < 0.9 * held["mlp"] < 0.8 * held["none"], held


@pytest.mark.parametrize("attention", [0.0, 0.5])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_step_as_on_the_cpu_in_float32(where, precision, attention):
    """Also with a loss on the candidates' score, whose gradient no backend may leave out."""
    batch = pairs(np.random.default_rng(0), TINY, 8)
    host, other = trainer("cpu", "float32", attention=attention), trainer(where, precision, attention=attention)
    other.model.load_state_dict(host.model.state_dict())
    exact, found = host.step(batch), other.step(batch)
    tolerance = 1e-4 if precision == "float32" else 0.05
    for name in ("loss", "giou", "l1", "focal", *(["attention"] if attention else [])):
        assert found[name] == pytest.approx(exact[name], rel=tolerance), name
    assert _difference(other.model, host.model) < (1e-3 if precision == "float32" else 0.3)


def _difference(model, other):
    """Of the gradients, as a share of their norm."""
    pairs = zip(model.parameters(), other.parameters(), strict=True)
    grads = [(a.grad.cpu().double(), b.grad.double()) for a, b in pairs if b.grad is not None]
    wrong, whole = sum((a - b).square().sum() for a, b in grads), sum(b.square().sum() for _, b in grads)
    return (wrong / whole).sqrt().item()


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_loss_falls_over_200_steps(where, precision):
    cfg = replace(get_config("small"), template_size=64, search_size=128) if where == "cuda" else TINY
    run = trainer(where, precision, cfg, grad_clip=1.0)
    if where == "cuda":
        for group in run.optimizer.param_groups:
            group["base_lr"] = 3e-4
    random = np.random.default_rng(0)
    losses = [run.step(pairs(random, cfg, 8))["loss"] for _ in range(200)]
    assert mean(losses[-20:]) < 0.5 * mean(losses[:5])
