"""Products of what GELU makes of a matrix, and the second layers of MLPs that train by them."""

import pytest
import torch
from torch import nn

from ostrack_fast import ops
from ostrack_fast.ops import native
from ostrack_fast.ops.gelu_matmul import gelu_matmul_op, matmul_gelu_backward_op, matmul_gelu_op
from tests.ops.test_matmul import assert_accurate, matrices, with_gradients


@pytest.fixture
def kernel():
    reason = gelu_matmul_op.unsupported_reason("native", torch.ones(1, 1), torch.ones(1, 1))
    if reason is not None:
        pytest.skip(reason)


@pytest.mark.parametrize("turned", ["", "a", "b", "ab"])
@pytest.mark.parametrize(
    ("rows", "inputs", "outputs"),
    [(1440, 300, 384), (9, 48, 48), (67, 66, 65), (1, 1, 1), (20, 2100, 60), (520, 514, 576), (512, 2102, 768)],
)
def test_error_by_shape(kernel, threads, rows, inputs, outputs, turned):
    a, b, bias = matrices(rows, inputs, outputs, turned)
    x = torch.randn(rows, outputs, generator=torch.Generator().manual_seed(1))
    for op, arguments in (
        (gelu_matmul_op, (a, b, bias)),
        (matmul_gelu_op, (a, b)),
        (matmul_gelu_backward_op, (a, b, x)),
    ):
        with ops.use("native"):
            got = op(*arguments)
        exact = op.reference(*(each.double() for each in arguments))
        assert_accurate(got, exact, op.reference(*arguments))


def test_not_a_number_stays(kernel):
    a, b, _ = matrices(12, 20, 30)
    a[4, 7] = float("nan")
    for out in (gelu_matmul_op(a, b, None), matmul_gelu_op(a, b)):
        assert out[4].isnan().all() and not out[[0, 1, 2, 3, 5, 11]].isnan().any()
    slopes = torch.zeros(12, 30)
    slopes[3, 5] = float("nan")
    out = matmul_gelu_backward_op(a.nan_to_num(), b, slopes)
    assert out[3, 5].isnan() and out.isnan().sum() == 1


def test_the_derivative_is_taken_where_it_lies(kernel, threads):
    """Of each element its own, of matrices that are parts of larger ones, up to the last row and column."""
    a, b, x = (torch.ones(80, 160) for _ in range(3))
    x[:70, :150] = torch.linspace(-3, 3, 70 * 150).view(70, 150)
    with ops.use("native"):
        out = matmul_gelu_backward_op(a[:70, :10], b[:10, :150], x[:70, :150])
    wanted = torch.ops.aten.gelu_backward(torch.full((70, 150), 10.0), x[:70, :150])
    torch.testing.assert_close(out, wanted, rtol=0, atol=2e-5)


def test_not_a_number_in_a_gradient_stays(kernel):
    a, b, x = torch.ones(30, 20), torch.ones(20, 40), torch.zeros(30, 40)
    a[4, 7], b[3, 11] = float("nan"), float("inf")
    with ops.use("native"):
        out = matmul_gelu_backward_op(a, b, x)
    assert out[4].isnan().all() and out.isnan().sum() == 40
    assert out[torch.arange(30) != 4, 11].isposinf().all() and out.isinf().sum() == 29


def test_shapes_that_do_not_fit():
    with pytest.raises(ValueError, match=r"x must be \(3,5\)"):
        matmul_gelu_backward_op(torch.zeros(3, 4), torch.zeros(4, 5), torch.zeros(3, 4))


def of_plain_gelu(x, weight, bias):
    return nn.functional.linear(nn.functional.gelu(x), weight, bias)


@pytest.mark.parametrize("shape", [(8, 180, 24), (13, 24), (1, 2, 3, 24)])
def test_a_layer_and_its_gradients(kernel, threads, shape):
    torch.manual_seed(0)
    layer, x = nn.Linear(24, 50), torch.randn(shape)
    ours, plain = (with_gradients(run, x, layer) for run in (ops.gelu_linear, of_plain_gelu))
    exact = with_gradients(of_plain_gelu, x.double(), layer.double())
    for got, other, wanted in zip(ours, plain, exact, strict=True):
        assert_accurate(got, wanted, other)


@pytest.mark.parametrize("kind", ["trains", "frozen", "no gradients", "autocast", "float64", "one vector", "asked for"])
def test_what_trains_in_float32_is_ours(kernel, monkeypatch, kind):
    found, call = [], native.call
    monkeypatch.setattr(native, "call", lambda name, *rest: (found.append(name), call(name, *rest)))
    layer, x = nn.Linear(8, 8).requires_grad_(kind != "frozen"), torch.randn(4, 8, requires_grad=True)
    if kind == "float64":
        layer, x = layer.double(), x.detach().double().requires_grad_()
    x = x[0] if kind == "one vector" else x
    with (
        torch.set_grad_enabled(kind != "no gradients"),
        torch.autocast("cpu", torch.bfloat16, enabled=kind == "autocast"),
        ops.use("reference" if kind == "asked for" else "auto"),
    ):
        out = ops.gelu_linear(x, layer.weight, layer.bias)
        torch.testing.assert_close(out, of_plain_gelu(x, layer.weight, layer.bias))
        if out.requires_grad:
            out.sum().backward()
    wanted = {"trains": ["gelu_matmul", "matmul_gelu_backward", "matmul_gelu"]}
    wanted["frozen"] = wanted["trains"][:2]
    fused = [name for name in found if "matmul" in name]
    assert fused == wanted.get(kind, [])
