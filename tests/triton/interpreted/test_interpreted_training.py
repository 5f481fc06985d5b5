"""A training step on the Triton kernels, interpreted, under autocast or not: the same as on PyTorch's own."""

from importlib import import_module

import pytest
import torch

from ostrack_fast.config import ModelConfig
from ostrack_fast.ops import registry
from ostrack_fast.training.config import OptimConfig, TrainConfig
from ostrack_fast.training.losses import LossConfig
from ostrack_fast.training.trainer import Trainer

TINY = ModelConfig(
    template_size=32, search_size=64, embed_dim=32, depth=3, num_heads=1, head_channels=16,
    ce_layers=(1,), ce_keep_ratio=(0.7,), drop_path=0.0,
)  # fmt: skip


def step(precision):
    """Terms of the loss and gradients after one step on random pairs."""
    run = Trainer(
        TrainConfig(
            model=TINY, data={}, output=".", precision=precision, batch_size=2, ce_start_epoch=0.0,
            ce_warmup_epochs=0.0, loss=LossConfig(box_cells="target", attention=0.5), optim=OptimConfig(grad_clip=0.0),
        )
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    images = {
        name: torch.randint(0, 256, (2, size, size, 3), dtype=torch.uint8, generator=generator)
        for name, size in (("template", 32), ("search", 64))
    }
    terms = run.step({**images, "search_box": torch.tensor([[0.2, 0.3, 0.4, 0.3], [0.5, 0.4, 0.3, 0.5]])})
    return terms, {name: p.grad for name, p in run.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_step(precision, monkeypatch):
    expected, grads = step(precision)
    _, exact = step("float32")
    ran = []
    for op in ("attention", "eliminate", "restore"):
        plain, module = registry.triton_kernel(op), import_module(f"ostrack_fast.kernels.{op}")
        monkeypatch.setattr(
            module, op, lambda *values, plain=plain, op=op: ran.append((op, values[0].dtype)) or plain(*values)
        )
    # As on a GPU: Triton wherever it can, and PyTorch for the rest.
    monkeypatch.setitem(registry._ORDER, "cpu", ("triton", "reference"))
    terms, ours = step(precision)
    assert {op for op, _ in ran} == {"attention", "eliminate", "restore"}
    assert {dtype for op, dtype in ran if op == "attention"} == {getattr(torch, precision)}
    for name in ("loss", "giou", "l1", "focal", "attention"):
        assert terms[name] == pytest.approx(expected[name], rel=1e-4 if precision == "float32" else 1e-2), name
    assert ours.keys() == grads.keys()
    if precision == "float32":
        assert distance(ours, grads) < 1e-4
    else:  # rounding moves such a network's gradients far: no further than PyTorch's own rounding does
        assert distance(ours, exact) <= 2 * distance(grads, exact)


def distance(grads, others):
    """Of all gradients together, as a share of their norm."""
    wrong = sum((grads[name] - other).square().sum() for name, other in others.items())
    return (wrong / sum(other.square().sum() for other in others.values())).sqrt()
