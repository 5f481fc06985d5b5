"""Layers that recompute what the backward pass needs: the numbers of the plain modules, and less that is kept."""

import pytest
import torch
from torch import nn

from ostrack_fast.config import ModelConfig
from ostrack_fast.model import OSTrack, recompute

TINY = ModelConfig(
    template_size=32, search_size=64, embed_dim=32, depth=3, num_heads=1, head_channels=16,
    ce_layers=(1,), ce_keep_ratio=(0.7,), drop_path=0.0,
)  # fmt: skip


def everywhere(monkeypatch, on):
    monkeypatch.setattr(recompute, "_worthwhile", lambda x: on)


def step(model, images, precision):
    """The sum of all results, the gradients, and the bytes that were kept for them besides the parameters."""
    kept = {}
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def keep(tensor):
        pointer = tensor.untyped_storage().data_ptr()
        if pointer not in parameters:
            kept[pointer] = tensor.untyped_storage().nbytes()
        return tensor

    model.zero_grad()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
            out = model(*images)
        total = sum(out[name].float().square().sum() for name in ("score_map", "size_map", "offset_map"))
    total.backward()
    return total.detach(), [p.grad for p in model.parameters() if p.grad is not None], sum(kept.values())


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16, torch.float64])
def test_results_and_gradients_are_those_of_the_modules_and_less_is_kept(monkeypatch, precision):
    torch.manual_seed(0)
    model = OSTrack(TINY).train().to(torch.float64 if precision == torch.float64 else torch.float32)
    images = [torch.randn(2, 3, size, size, dtype=model.backbone.norm.weight.dtype) for size in (32, 64)]
    everywhere(monkeypatch, False)
    expected, grads, stored = step(model, images, precision)
    everywhere(monkeypatch, True)
    found, others, less = step(model, images, precision)
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float64: 1e-12}[precision]
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=0)
    assert len(grads) == len(others) > 40
    for grad, other in zip(grads, others, strict=True):
        assert (grad - other).norm() <= tolerance * grad.norm(), grad.shape
    assert less < 0.8 * stored


def test_what_is_frozen_gets_no_gradient(monkeypatch):
    everywhere(monkeypatch, True)
    norm, layer = nn.LayerNorm(8), nn.Linear(8, 4)
    x = torch.randn(2, 3, 8)
    layer.weight.requires_grad_(False)
    recompute.gelu_linear(layer, recompute.norm_linear(norm, nn.Linear(8, 8), x)).sum().backward()
    assert layer.weight.grad is None and layer.bias.grad is not None and norm.weight.grad is not None
    norm.requires_grad_(False)
    norm.weight.grad = None
    recompute.norm_linear(norm, layer, x).sum().backward()
    assert norm.weight.grad is None


def test_who_listens_or_transforms_gets_the_modules(monkeypatch):
    everywhere(monkeypatch, True)
    norm, layer, x = nn.LayerNorm(8), nn.Linear(8, 4), torch.randn(2, 3, 8)
    heard = []
    layer.register_forward_hook(lambda *_: heard.append(1))
    recompute.norm_linear(norm, layer, x)
    assert heard == [1]
    plain = nn.Linear(8, 4)
    gradient = torch.func.grad(lambda x: recompute.norm_linear(norm, plain, x).square().sum())(x)
    assert gradient.shape == x.shape
    assert "NormLinear" in type(recompute.norm_linear(norm, plain, x).grad_fn).__name__
    assert "NormLinear" not in type(recompute.norm_linear(norm.eval(), plain, x).grad_fn).__name__
