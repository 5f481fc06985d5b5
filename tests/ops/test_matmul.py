"""Products of two matrices, and the linear layers that train by them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from ostrack_fast import ops
from ostrack_fast.ops import native
from ostrack_fast.ops.matmul import matmul_op


@pytest.fixture
def kernel():
    reason = matmul_op.unsupported_reason("native", torch.ones(1, 1), torch.ones(1, 1))
    if reason is not None:
        pytest.skip(reason)


def matrices(rows, inputs, outputs, turned="", seed=0):
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.randn(rows, inputs, generator=generator), torch.randn(inputs, outputs, generator=generator)
    a, b = (x.t().contiguous().t() if name in turned else x for name, x in (("a", a), ("b", b)))
    return a, b, torch.randn(outputs, generator=generator)


def assert_accurate(got, exact, plain):
    """The error against float64 is at most twice PyTorch's, or a rounding error."""
    assert got.shape == exact.shape
    error, allowed = ((value.double() - exact).abs().max() for value in (got, plain))
    assert error <= 2 * allowed + torch.finfo(torch.float32).eps * exact.abs().max()


@pytest.mark.parametrize("turned", ["", "a", "b", "ab"])
@pytest.mark.parametrize(
    ("rows", "inputs", "outputs"),
    [
        (1440, 384, 1152),
        (384, 1440, 384),
        (9, 48, 48),
        (10, 3, 49),
        (65, 66, 67),
        (1, 1, 1),
        (130, 1, 5),
        (1, 700, 3),
        (20, 4100, 60),
        (512, 514, 576),  # with AVX2, large and even ones are multiplied by quarters
        (1046, 512, 768),
        (513, 512, 576),
        (514, 2102, 576),
    ],
)
def test_error_by_shape(kernel, threads, rows, inputs, outputs, turned):
    a, b, bias = matrices(rows, inputs, outputs, turned)
    with ops.use("native"):
        got = ops.matmul(a, b, bias)
    assert_accurate(got, a.double() @ b.double() + bias.double(), a @ b + bias)


def test_parts_of_larger_matrices_are_read_where_they_lie(kernel):
    a, b, _ = matrices(50, 70, 60)
    with ops.use("native"):
        got = ops.matmul(a[3:40, 5:30], b[5:30, 10:51])
        turned = ops.matmul(a[3:40, 5:30].t(), a[3:40, 1:20])
    torch.testing.assert_close(got, a[3:40, 5:30] @ b[5:30, 10:51])
    torch.testing.assert_close(turned, a[3:40, 5:30].t() @ a[3:40, 1:20])


def test_nothing_is_read_or_written_beside_the_matrices(kernel):
    room = torch.full((40, 100), float("nan"))
    room[:33, :70] = 1
    with ops.use("native"):
        out = ops.matmul(room[:33, :70], room[:33, :70].t())
        turned = ops.matmul(room[:33, :70].t(), room[:33, :70])
    assert torch.equal(out, torch.full((33, 33), 70.0)) and torch.equal(turned, torch.full((70, 70), 33.0))


def test_not_a_number_stays(kernel):
    a, b, _ = matrices(12, 20, 30)
    a[4, 7] = float("nan")
    with ops.use("native"):
        out = ops.matmul(a, b)
    assert out[4].isnan().all() and not out[[0, 1, 2, 3, 5, 11]].isnan().any()


def test_not_a_number_reaches_its_row_of_a_large_product(kernel):
    a, b, bias = matrices(520, 514, 576)
    a[4, 7], a[300, 1] = float("nan"), float("inf")
    with ops.use("native"):
        out = ops.matmul(a, b, bias)
    assert not out[[4, 300]].isfinite().any()


def test_lesser_processors(kernel):
    """This file and that of products with GELU, in a process that takes this processor for one with AVX2 alone."""
    if native.cpu_level() == "avx2":
        pytest.skip("all of these tests run with AVX2 alone here")
    files = [__file__, str(Path(__file__).with_name("test_gelu_matmul.py"))]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files, "-k", "not lesser"]
    environment = os.environ | {"OSTRACK_FAST_CPU_CAPABILITY": "avx2"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((3, 4), (5, 6), (6,)), "a (R,I) and b (I,O) needed"),
        (((3, 4, 1), (4, 6), (6,)), "a (R,I) and b (I,O) needed"),
        (((3, 4), (4, 6), (5,)), "bias must be (6,)"),
    ],
)
def test_shapes_that_do_not_fit(shapes, message):
    with pytest.raises(ValueError) as caught:
        ops.matmul(*map(torch.zeros, shapes))
    assert message in str(caught.value)


def test_dtypes_that_differ():
    with pytest.raises(ValueError, match="one float dtype"):
        ops.matmul(torch.zeros(2, 3), torch.zeros(3, 4).double())


def with_gradients(run, x, layer):
    x = x.detach().clone().requires_grad_()
    layer.zero_grad()
    out = run(x, layer.weight, layer.bias)
    (out.sin() * torch.linspace(0, 1, out.shape[-1], dtype=out.dtype)).sum().backward()
    return [each.detach() for each in (out, x.grad, layer.weight.grad, layer.bias.grad)]


@pytest.mark.parametrize("shape", [(8, 180, 24), (13, 24), (1, 2, 3, 24)])
def test_a_layer_and_its_gradients(kernel, threads, shape):
    torch.manual_seed(0)
    layer, x = nn.Linear(24, 50), torch.randn(shape)
    ours, plain = (with_gradients(run, x, layer) for run in (ops.linear, nn.functional.linear))
    exact = with_gradients(nn.functional.linear, x.double(), layer.double())
    for got, other, wanted in zip(ours, plain, exact, strict=True):
        assert_accurate(got, wanted, other)


def calls(monkeypatch, run):
    """How often the compiled kernel is called."""
    found, call = [], native.call
    monkeypatch.setattr(native, "call", lambda kernel, *rest: (found.append(kernel), call(kernel, *rest)))
    run()
    return found.count("matmul")


def test_what_trains_in_float32_is_ours(kernel, monkeypatch):
    layer, x = nn.Linear(8, 8), torch.randn(4, 8, requires_grad=True)
    assert calls(monkeypatch, lambda: ops.linear(x, layer.weight, layer.bias).sum().backward()) == 3


@pytest.mark.parametrize("turned", [False, True])
def test_a_gradient_lies_in_memory_as_its_matrix(kernel, turned):
    """PyTorch would copy it else, in every step."""
    a, b, _ = matrices(20, 30, 40, "b" if turned else "")
    b.requires_grad_()
    ops.matmul(a, b).sum().backward()
    assert b.grad.stride() == b.stride()
    torch.testing.assert_close(b.grad, a.sum(0)[:, None].expand_as(b))


def test_frozen_weights_get_no_gradient(kernel, monkeypatch):
    layer, x = nn.Linear(8, 8).requires_grad_(False), torch.randn(4, 8, requires_grad=True)
    assert calls(monkeypatch, lambda: ops.linear(x, layer.weight, layer.bias).sum().backward()) == 2


@pytest.mark.parametrize("kind", ["no gradients", "autocast", "float64", "one vector", "no rows", "asked for"])
def test_everything_else_is_pytorchs(monkeypatch, kind):
    layer, x = nn.Linear(8, 8), torch.randn(4, 8)
    if kind == "float64":
        layer, x = layer.double(), x.double()
    x = {"one vector": x[0], "no rows": x[:0]}.get(kind, x)

    def run():
        with (
            torch.set_grad_enabled(kind != "no gradients"),
            torch.autocast("cpu", torch.bfloat16, enabled=kind == "autocast"),
            ops.use("reference" if kind == "asked for" else "auto"),
        ):
            out = ops.linear(x, layer.weight, layer.bias)
            wanted = nn.functional.linear(x, layer.weight, layer.bias)
        assert torch.equal(out, wanted) and out.dtype == wanted.dtype

    assert calls(monkeypatch, run) == 0
