"""PyTorch's attention, which trains on a GPU in place of ours: the same results and gradients, only where preferred."""

import pytest
import torch

from ostrack_fast import ops
from ostrack_fast.ops import library_attention, reference


def arguments(dtype=torch.float32, by_item=False):
    qkv, mask = ops.OPS["attention"].example(dtype, torch.device("cpu"), 2, 153, 2, 64, 64, (0, 32), by_item)
    return qkv.requires_grad_(), mask


@pytest.fixture
def preferred(monkeypatch):
    monkeypatch.setattr(library_attention, "preferred", lambda qkv: True)


def gradient(qkv, out, score):
    total = out.double().square().sum() + (0 if score is None else 100 * score.double().square().sum())
    return torch.autograd.grad(total, qkv)[0]


@pytest.mark.parametrize("by_item", [False, True])
@pytest.mark.parametrize("scored", [False, True])
def test_as_exact_as_the_reference(preferred, scored, by_item):
    qkv, mask = arguments(by_item=by_item)
    mask = mask if scored else None
    wide = qkv.detach().double().requires_grad_()
    exact, plain, found = (
        (*got, gradient(x, *got))
        for x, got in (
            (wide, reference.attention(wide, mask)),
            (qkv, reference.attention(qkv, mask)),
            (qkv, ops.attention(qkv, mask)),
        )
    )
    for ours, baseline, expected in zip(found, plain, exact, strict=True):
        if expected is None:
            assert ours is None
            continue
        assert ours.dtype == torch.float32 and ours.shape == expected.shape
        error, allowed = ((value.double() - expected).abs().max() for value in (ours, baseline))
        assert error <= 2 * allowed + torch.finfo(torch.float32).eps * expected.abs().max()


def test_autocast_rounds_nothing(preferred):
    qkv, mask = arguments()
    expected = ops.attention(qkv, mask)
    with torch.autocast("cpu", torch.bfloat16):
        found = ops.attention(qkv, mask)
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


def test_it_runs_where_it_is_preferred_and_no_backend_is_forced(monkeypatch):
    qkv, mask = arguments()
    called = []
    monkeypatch.setattr(library_attention, "attention", lambda *given: called.append(given) or (None, None))
    ops.attention(qkv, mask)
    assert not called, "not on a CPU"
    monkeypatch.setattr(library_attention, "preferred", lambda qkv: True)
    with ops.use("reference"):
        ops.attention(qkv, mask)
    assert not called
    ops.attention(qkv, mask)
    assert len(called) == 1
    with pytest.raises(ValueError, match="qkv must be"):
        ops.attention(qkv[0], mask)


def test_training_in_the_chosen_dtypes_on_a_gpu_prefers_it():
    with torch._subclasses.FakeTensorMode():
        for dtype in (torch.float32, torch.bfloat16):
            qkv = torch.empty(1, 4, 3, 1, 32, dtype=dtype, device="cuda")
            assert not library_attention.preferred(qkv)
            qkv.requires_grad_()
            assert library_attention.preferred(qkv) == (dtype in library_attention.DTYPES)
            with torch.no_grad():
                assert not library_attention.preferred(qkv)
