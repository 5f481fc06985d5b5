"""The registered ops on Triton's kernels: answers and gradients against the float64 specification."""

import pytest
import torch

from ostrack_fast import kernels, ops
from ostrack_fast.ops import reference

registered = torch.ops.ostrack_fast
MASK = torch.tensor([True, False, True])


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(autouse=True)
def triton_only():
    with ops.use("triton"):
        yield


def leaves(*values):
    """The values as they are and in float64, both with a gradient."""
    return [v.clone().requires_grad_() for v in values], [v.double().requires_grad_() for v in values]


@pytest.mark.parametrize("from_score", [False, True])
def test_attention(from_score, monkeypatch):
    calls = []
    stock = kernels.attention_backward
    monkeypatch.setattr(kernels, "attention_backward", lambda *a: calls.append(len(a)) or stock(*a))
    (qkv,), (exact,) = leaves(random(2, 9, 3, 2, 32))
    of_out, of_score = random(2, 9, 64, seed=1), random(2, 6, seed=2)
    out, score, lse = registered.attention(qkv, MASK)
    expected = reference.attention_with_lse(exact, MASK)
    for one, other in zip((out, score, lse), expected, strict=True):
        torch.testing.assert_close(one, other.float())
    loss = (out * of_out).sum() + ((score * of_score).sum() if from_score else 0)
    loss.backward()
    exact_loss = (expected[0] * of_out).sum() + ((expected[1] * of_score).sum() if from_score else 0)
    exact_loss.backward()
    torch.testing.assert_close(qkv.grad, exact.grad.float())
    assert len(calls) == (0 if from_score else 1)  # Triton's kernel has no gradient for the score


def test_eliminate_and_restore():
    tokens, score, ids = random(2, 8, 4), random(2, 6), torch.arange(6).expand(2, -1)
    weight, bias = random(4, seed=1), random(4, seed=2)
    grads = []
    for (t, w, b), prefix in zip(leaves(tokens, weight, bias), (registered, reference), strict=True):
        kept, left, _ = prefix.eliminate(t, score, ids, 4)
        grid = prefix.restore(kept[:, 2:], left, 3, w, b, 1e-6, True)
        (grid * random(2, 4, 3, 3, seed=3)).sum().backward()
        grads.append((grid.detach().double(), t.grad.double(), w.grad.double(), b.grad.double()))
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
