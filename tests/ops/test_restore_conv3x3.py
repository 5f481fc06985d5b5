"""The head's first convolution straight from the tokens that are left, against LayerNorm, restoration, convolution."""

import pytest
import torch

from ostrack_fast import ops
from ostrack_fast.ops import native_linear, reference
from ostrack_fast.ops.layers import restore_conv3x3

EPS = 1e-6


def needs(dtype):
    reason = ops.LAYERS["restore_conv3x3"].unsupported_reason("native", weight=torch.zeros(1, 1, 3, 3), dtype=dtype)
    if reason is not None:
        pytest.skip(reason)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def layer(outputs, inputs):
    """Weight, bias, and the LayerNorm's weight, bias and eps."""
    weight = random(outputs, inputs, 3, 3, seed=1) * (9 * inputs) ** -0.5
    norm = 1 + 0.3 * random(inputs, seed=2), random(inputs, seed=3), EPS
    return weight, random(outputs, seed=4), norm


def left(batch, count, inputs, grid):
    """Tokens as they come, (B,T+K,C) without the first T, and where they belong."""
    tokens = 2 * random(batch, 5 + count, inputs, seed=5) + random(inputs, seed=6)
    order = torch.rand(batch, grid * grid, generator=torch.Generator().manual_seed(7)).argsort(1)
    return tokens[:, 5:], order[:, :count]


def formula(tokens, ids, weight, bias, norm, grid, dtype, activation="relu"):
    restored = reference.restore(tokens, ids, grid, *norm, channels_last=True, dtype=dtype)
    return reference.Conv3x3(weight, bias, 1, activation, dtype)(restored.permute(0, 2, 3, 1))


# Both models with elimination (channels cut), nearly nothing left, everything left, one place.
CASES = [
    (1, 89, 96, 192, 16),
    (1, 199, 96, 96, 24),
    (3, 71, 40, 33, 12),
    (2, 1, 10, 5, 7),
    (2, 25, 8, 70, 5),
    (1, 1, 4, 3, 1),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("activation", ["relu", "none"])
@pytest.mark.parametrize(("batch", "count", "inputs", "outputs", "grid"), CASES)
def test_error(dtype, activation, batch, count, inputs, outputs, grid):
    """Against float64 at most twice that of PyTorch in the same dtype, or a rounding error."""
    needs(dtype)
    weight, bias, norm = layer(outputs, inputs)
    tokens, ids = left(batch, count, inputs, grid)
    wide = (norm[0].double(), norm[1].double(), EPS)
    exact = formula(tokens.double(), ids, weight.double(), bias.double(), wide, grid, torch.float64, activation)
    plain = formula(tokens, ids, weight, bias, norm, grid, dtype, activation)
    got = native_linear.RestoreConv3x3(weight, bias, norm, grid, activation, dtype)(tokens, ids)
    assert got.dtype == dtype
    assert got.shape == exact.shape
    unit = torch.finfo(dtype).eps * exact.abs().max()
    error, allowed = ((value.double() - exact).abs().max() for value in (got, plain))
    assert error <= 2 * allowed + unit, f"error {error:.3g}, PyTorch's {allowed:.3g}"


def test_int8_is_near():
    needs(torch.int8)
    weight, bias, norm = layer(192, 96)
    tokens, ids = left(2, 89, 96, 16)
    exact = formula(tokens, ids, weight, bias, norm, 16, torch.float32, "none")
    got = native_linear.RestoreConv3x3(weight, bias, norm, 16, "none", torch.int8)(tokens, ids)
    assert got.dtype == ops.layers.result_dtype(torch.int8)
    # Two factors of 127 steps each, and 8 bits of a result in bfloat16.
    assert (got - exact).square().mean() < (0.02 * exact.std()) ** 2


def test_no_token_leaves_the_bias(dtype=torch.float32):
    needs(dtype)
    weight, bias, norm = layer(12, 8)
    got = native_linear.RestoreConv3x3(weight, bias, norm, 6, "none", dtype)
    tokens, ids = left(2, 0, 8, 6)
    assert torch.equal(got(tokens, ids), bias.expand(2, 6, 6, 12))
    assert got(tokens[:0], ids[:0]).shape == (0, 6, 6, 12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_threads_do_not_change_a_bit(threads, dtype):
    needs(dtype)
    from_tokens = native_linear.RestoreConv3x3(*layer(48, 64), 12, dtype=dtype)
    tokens, ids = left(2, 50, 64, 12)
    many = [from_tokens(tokens, ids) for _ in range(20)]  # threads that share memory by mistake meet now and then
    torch.set_num_threads(1)
    one = from_tokens(tokens, ids)
    assert all(torch.equal(each, one) for each in many)


def test_not_finite_reaches_its_neighbours():
    needs(torch.float32)
    tokens, ids = left(1, 64, 20, 8)
    tokens = tokens.clone()
    token = int((ids[0] == 3 * 8).nonzero())  # row 3, column 0
    tokens[0, token, 7] = float("nan")
    got = native_linear.RestoreConv3x3(*layer(10, 20), 8)(tokens, ids)
    touched = torch.zeros(8, 8, dtype=torch.bool)
    touched[2:5, :2] = True
    assert torch.equal(~got[0].isfinite().all(-1), touched)


@pytest.mark.parametrize("ids", [[[0, 9]], [[0, -1]]])
def test_places_off_the_map(ids):
    needs(torch.float32)
    with pytest.raises(ValueError):
        native_linear.RestoreConv3x3(*layer(4, 8), 3)(torch.zeros(1, 2, 8), torch.tensor(ids))


def test_wrong_ids():
    needs(torch.float32)
    with pytest.raises(ValueError, match="ids must be"):
        native_linear.RestoreConv3x3(*layer(4, 8), 3)(torch.zeros(1, 2, 8), torch.zeros(1, 3, dtype=torch.int64))


@pytest.mark.parametrize("backend", ["auto", "native", "reference"])
@pytest.mark.parametrize("count", [30, 64])
def test_the_layer_of_every_backend(backend, count):
    """With places missing and without: the same numbers, whichever way they are computed."""
    if backend == "native":
        needs(torch.float32)
    weight, bias, norm = layer(24, 32)
    tokens, ids = left(2, count, 32, 8)
    with ops.use(backend):
        made = restore_conv3x3(weight, bias, norm, count, 8)
        got = made(tokens, ids)
    sparse = isinstance(made, native_linear.RestoreConv3x3)
    possible = ops.LAYERS["restore_conv3x3"].unsupported_reason("native", weight=weight, dtype=torch.float32) is None
    assert sparse == (possible and count < 64 and backend != "reference")
    torch.testing.assert_close(got, formula(tokens, ids, weight, bias, norm, 8, torch.float32), rtol=1e-4, atol=1e-5)
