"""`linear` and `conv3x3` of every backend on every device, against the reference in float64."""

import pytest
import torch

from ostrack_fast import ops
from ostrack_fast.ops import reference
from ostrack_fast.ops.layers import conv3x3, linear

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def build(make, device, weight, bias, dtype, **how):
    """The layer on the device; skips where the backend has none."""
    weight, bias = weight.to(device), bias.to(device)
    backend = ops.forced_backend()
    reason = ops.LAYERS[make.__name__].unsupported_reason(backend, weight=weight, bias=bias, dtype=dtype, **how)
    if reason is not None:
        pytest.skip(f"{backend}: {reason}")
    return make(weight, bias, dtype=dtype, **how)


def assert_accurate(ours, plain, exact):
    """At most twice the error of PyTorch at the same dtype and device, or a rounding error of the largest value."""
    assert ours.shape == exact.shape
    error, allowed = ((value.cpu().double() - exact).abs().max() for value in (ours, plain))
    unit = torch.finfo(plain.dtype).eps * exact.abs().max()
    assert error <= 2 * allowed + unit, f"error {error:.3g}, PyTorch's {allowed:.3g}"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("shape", "outputs", "eps", "activation", "added"),
    [
        ((1, 320, 768), 2304, 1e-6, "none", False),
        ((1, 190, 768), 768, None, "none", True),
        ((2, 107, 384), 1536, 1e-6, "gelu", False),
        ((1, 153, 3072), 768, None, "none", True),
        ((3, 5, 40), 12, None, "relu", False),
        ((1, 65, 100), 33, 1e-6, "none", True),
        ((64, 244, 384), 384, None, "none", True),
    ],
)
def test_linear(device, shape, outputs, eps, activation, added, dtype, no_tf32):
    if device.type == "cpu" and shape[0] == 64:
        pytest.skip("a batch for GPUs")
    weight, bias = random(outputs, shape[2], seed=1) * shape[2] ** -0.5, random(outputs, seed=2)
    how = {"norm_eps": eps, "activation": activation}
    layer = build(linear, device, weight, bias, dtype, **how)
    x = random(*shape) if eps else random(*shape).to(dtype)
    residual = random(*shape[:2], outputs, seed=3) if added else None
    ours = layer(x.to(device), None if residual is None else residual.to(device))
    assert ours.dtype == (torch.float32 if added else dtype)
    plain = reference.Linear(weight.to(device), bias.to(device), **how, dtype=dtype)(
        x.to(device), None if residual is None else residual.to(device)
    )
    wide = None if residual is None else residual.double()
    exact = reference.Linear(weight.double(), bias.double(), **how, dtype=torch.float64)(x.double(), wide)
    assert_accurate(ours, plain, exact)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_linear_writes_into_the_token_buffer(device, dtype, no_tf32):
    """Into a slice of it, and over its own residual; beside the slice nothing changes."""
    layer = build(linear, device, random(96, 128, seed=1) * 0.1, random(96, seed=2), dtype)
    x, tokens = random(2, 25, 128).to(device, dtype), random(2, 31, 96, seed=3).to(device)
    expected, before = layer(x, tokens[:, 5:30].contiguous()), tokens.clone()
    layer(x, tokens[:, 5:30], tokens[:, 5:30])
    assert torch.equal(tokens[:, 5:30], expected)
    assert torch.equal(tokens[:, :5], before[:, :5]) and torch.equal(tokens[:, 30:], before[:, 30:])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("batch", "grid", "inputs", "outputs", "groups"),
    [(1, 16, 768, 768, 1), (1, 16, 384, 192, 3), (2, 12, 72, 36, 3), (1, 24, 192, 96, 3), (3, 5, 24, 9, 3)],
)
def test_conv3x3(device, batch, grid, inputs, outputs, groups, dtype, no_tf32):
    weight = random(outputs, inputs // groups, 3, 3, seed=1) * (9 * inputs / groups) ** -0.5
    bias, x = random(outputs, seed=2), random(batch, grid, grid, inputs).to(dtype)
    ours = build(conv3x3, device, weight, bias, dtype, groups=groups)(x.to(device))
    assert ours.dtype == dtype and ours.is_contiguous()
    plain = reference.Conv3x3(weight.to(device), bias.to(device), groups, dtype=dtype)(x.to(device))
    exact = reference.Conv3x3(weight.double(), bias.double(), groups, dtype=torch.float64)(x.double())
    assert_accurate(ours, plain, exact)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_repeats_bit_by_bit(device, dtype, no_tf32):
    """Sums in parts are added in a fixed order."""
    layer = build(linear, device, random(96, 3072, seed=1) * 0.02, random(96, seed=2), dtype)
    convolution = build(conv3x3, device, random(48, 96, 3, 3, seed=1) * 0.03, random(48, seed=2), dtype, groups=1)
    x, maps = random(1, 107, 3072).to(device, dtype), random(1, 12, 12, 96).to(device, dtype)
    first = layer(x), convolution(maps)
    for _ in range(20):
        assert torch.equal(layer(x), first[0]) and torch.equal(convolution(maps), first[1])
