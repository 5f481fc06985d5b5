"""GELU and its gradient, as training computes them on a CPU."""

import pytest
import torch
from torch.nn.functional import gelu as plain

from ostrack_fast import ops
from ostrack_fast.ops import native
from ostrack_fast.ops.gelu import gelu_backward_op, gelu_op


@pytest.fixture
def kernel():
    reason = gelu_op.unsupported_reason("native", torch.ones(1))
    if reason is not None:
        pytest.skip(reason)


def with_gradient(run, x):
    x = x.detach().clone().requires_grad_()
    out = run(x)
    out.backward(torch.linspace(1, 2, x.numel(), dtype=x.dtype).view(x.shape))
    return out.detach(), x.grad


@pytest.mark.parametrize("shape", [(70001,), (3, 5, 31), (1,), (7, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_error(kernel, threads, dtype, shape):
    count = torch.Size(shape).numel()
    x = torch.linspace(-9, 9, count).view(shape).to(dtype) if count > 1 else torch.full(shape, 0.7, dtype=dtype)
    with ops.use("native"):
        ours = with_gradient(ops.gelu, x)
    exact = with_gradient(plain, x.double())
    for got, other, wanted in zip(ours, with_gradient(plain, x), exact, strict=True):
        error, allowed = ((each.double() - wanted).abs().max() for each in (got, other))
        assert error <= 2 * allowed + torch.finfo(torch.float32).eps * wanted.abs().max().clamp(min=1)


def test_ends(kernel):
    inf, nan = float("inf"), float("nan")
    out, slope = with_gradient(ops.gelu, torch.tensor([0.0, -0.0, inf, nan, 1e-30, -1e30, 1e30]))
    factors = torch.linspace(1, 2, 7)
    expected = torch.tensor([0, 0, inf, nan, 5e-31, 0, 1e30])
    torch.testing.assert_close(out, expected, equal_nan=True, atol=1e-7, rtol=1e-6)
    expected = factors * torch.tensor([0.5, 0.5, 1, nan, 0.5, 0, 1])
    torch.testing.assert_close(slope, expected, equal_nan=True, atol=1e-7, rtol=1e-6)


def test_transposed_views(kernel):
    x = torch.randn(20, 30).t()
    for got, wanted in zip(with_gradient(ops.gelu, x), with_gradient(plain, x), strict=True):
        torch.testing.assert_close(got, wanted)


def test_shapes_that_do_not_fit():
    with pytest.raises(ValueError, match="grad must be"):
        gelu_backward_op(torch.zeros(3), torch.zeros(4))
    with pytest.raises(ValueError, match="must be float"):
        gelu_op(torch.zeros(3, dtype=torch.int64))


@pytest.mark.parametrize("kind", ["trains", "no gradients", "constant", "float64", "asked for"])
def test_what_trains_is_ours(kernel, monkeypatch, kind):
    found, call = [], native.call
    monkeypatch.setattr(native, "call", lambda name, *rest: (found.append(name), call(name, *rest)))
    x = torch.randn(4, 8, dtype=torch.float64 if kind == "float64" else torch.float32, requires_grad=kind != "constant")
    with torch.set_grad_enabled(kind != "no gradients"), ops.use("reference" if kind == "asked for" else "auto"):
        out = ops.gelu(x)
        if out.requires_grad:
            out.sum().backward()
    assert found == (["gelu", "gelu_backward"] if kind == "trains" else [])
