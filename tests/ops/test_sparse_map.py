"""A convolution of the tokens that restoration would put in a map, against that of the map."""

import pytest
import torch
from torch.nn.functional import conv2d

from ostrack_fast import ops
from ostrack_fast.ops.matmul import matmul_op
from ostrack_fast.ops.sparse_map import convolve, is_worthwhile, sparse_map


def problem(batch, kept, channels, outputs, grid, dtype=torch.float32):
    generator = torch.Generator().manual_seed(kept)
    tokens, weight, bias = (
        torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
        for shape in ((batch, kept, channels), (outputs, channels, 3, 3), (outputs,))
    )
    ids = torch.rand(batch, grid * grid, generator=generator).argsort(1)[:, :kept]
    return [each.requires_grad_() for each in (tokens, weight, bias)], ids


def of_map(tokens, ids, weight, bias, grid):
    return conv2d(ops.reference.restore(tokens, ids, grid), weight, bias, padding=1)


def of_tokens(tokens, ids, weight, bias, grid):
    return convolve(sparse_map(tokens, ids, grid), weight, bias)


def with_gradients(run, inputs, ids, grid):
    tokens, weight, bias = inputs
    out = run(tokens, ids, weight, bias, grid)
    slope = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)
    return out, *torch.autograd.grad((out * slope).sum(), inputs)


# The small network's; one token; all cells taken; one cell; a grid of more rows than a tap reaches.
@pytest.mark.parametrize(("batch", "kept", "grid"), [(3, 71, 12), (2, 1, 5), (2, 9, 3), (1, 1, 1), (2, 20, 9)])
def test_error(batch, kept, grid):
    single, ids = problem(batch, kept, 24, 10, grid)
    double, _ = problem(batch, kept, 24, 10, grid, torch.float64)
    exact = with_gradients(of_map, double, ids, grid)
    ours, plain = (with_gradients(run, single, ids, grid) for run in (of_tokens, of_map))
    for got, other, wanted in zip(ours, plain, exact, strict=True):
        error, allowed = ((each.double() - wanted).abs().max() for each in (got, other))
        assert error <= 2 * allowed + torch.finfo(torch.float32).eps * wanted.abs().max()


def test_where_it_is_worthwhile(monkeypatch):
    monkeypatch.setattr(matmul_op, "unsupported_reason", lambda *_: None)
    few, many = torch.zeros(2, 71, 8), torch.zeros(2, 130, 8)
    assert is_worthwhile(few, 12) and not is_worthwhile(many, 12) and not is_worthwhile(few[:, :0], 12)
    assert not is_worthwhile(few.double(), 12) and not is_worthwhile(few.to("meta"), 12)
    with torch.no_grad():
        assert not is_worthwhile(few, 12)
    with ops.use("reference"):
        assert not is_worthwhile(few, 12)
    with torch.autocast("cpu", torch.bfloat16):
        assert not is_worthwhile(few, 12)
