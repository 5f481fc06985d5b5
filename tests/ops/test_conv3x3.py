"""Frozen 3 x 3 convolutions on the CPU, against the reference in float64."""

import pytest
import torch

from ostrack_fast import ops
from ostrack_fast.ops import native_linear, reference

from .int8 import quantized, quantized_weight

PRODUCTS = [torch.float32, torch.bfloat16, torch.int8]


def needs(dtype):
    reason = ops.LAYERS["conv3x3"].unsupported_reason("native", weight=torch.zeros(1, 1, 3, 3), dtype=dtype)
    if reason is not None:
        pytest.skip(reason)


def layer(outputs, inputs, groups=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(outputs, inputs // groups, 3, 3, generator=generator) * (9 * inputs // groups) ** -0.5
    return weight, torch.randn(outputs, generator=generator)


def maps(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# Layers of both models' heads (some narrower), sides and widths beside the edges of tiles, a map of one place.
CASES = [
    (1, 16, 96, 96, 1),
    (1, 16, 384, 192, 3),
    (1, 24, 192, 96, 3),
    (2, 12, 72, 36, 3),
    (3, 5, 21, 15, 3),
    (1, 9, 50, 33, 1),
    (1, 7, 10, 70, 2),
    (2, 1, 8, 8, 1),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("activation", ["relu", "none"])
@pytest.mark.parametrize(("batch", "side", "inputs", "outputs", "groups"), CASES)
def test_error(dtype, activation, batch, side, inputs, outputs, groups):
    """Against float64 at most twice that of PyTorch in the same dtype, or a rounding error."""
    needs(dtype)
    weight, bias = layer(outputs, inputs, groups)
    x = maps(batch, side, side, inputs).to(dtype)
    exact = reference.Conv3x3(weight.double(), bias.double(), groups, activation, torch.float64)(x.double())
    plain = reference.Conv3x3(weight, bias, groups, activation, dtype)(x)
    got = native_linear.Conv3x3(weight, bias, groups, activation, dtype)(x)
    assert got.shape == exact.shape
    assert got.dtype == dtype
    unit = torch.finfo(dtype).eps * exact.abs().max()
    error, allowed = ((value.double() - exact).abs().max() for value in (got, plain))
    assert error <= 2 * allowed + unit, f"error {error:.3g}, PyTorch's {allowed:.3g}"


@pytest.mark.parametrize(("batch", "side", "inputs", "outputs", "groups"), CASES)
def test_int8_is_its_formula(batch, side, inputs, outputs, groups):
    """Each cell and each tap are quantized by themselves; then sums of products are exact."""
    needs(torch.int8)
    weight, bias = layer(outputs, inputs, groups)
    x = maps(batch, side, side, inputs) * maps(batch, side, side, 1, seed=3).exp()
    x_bytes = quantized(x.unflatten(-1, (groups, -1))).flatten(-2)
    weight_bytes = quantized_weight(weight.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    exact = reference.Conv3x3(weight_bytes, bias.double(), groups, "relu", torch.float64)(x_bytes)
    layer_of_bytes = native_linear.Conv3x3(weight, bias, groups, "relu", torch.int8)
    got = layer_of_bytes(x)
    assert got.dtype == ops.layers.result_dtype(torch.int8)
    torch.testing.assert_close(got.double(), exact, rtol=torch.finfo(got.dtype).eps, atol=1e-5)


@pytest.mark.parametrize("dtype", PRODUCTS)
def test_groups_see_only_their_inputs(dtype):
    needs(dtype)
    weight, bias = layer(36, 48, 3)
    x = maps(2, 6, 6, 48)
    together = native_linear.Conv3x3(weight, bias, 3, dtype=dtype)(x)
    for g in range(3):
        alone = native_linear.Conv3x3(weight[12 * g : 12 * g + 12], bias[12 * g : 12 * g + 12], dtype=dtype)
        assert torch.equal(alone(x[..., 16 * g : 16 * g + 16]), together[..., 12 * g : 12 * g + 12])


@pytest.mark.parametrize("dtype", PRODUCTS)
def test_threads_do_not_change_a_bit(threads, dtype):
    needs(dtype)
    layer_of_three = native_linear.Conv3x3(*layer(36, 72, 3), 3, dtype=dtype)
    x = maps(2, 12, 12, 72)
    many = [layer_of_three(x) for _ in range(20)]  # threads that share memory by mistake meet now and then
    torch.set_num_threads(1)
    one = layer_of_three(x)
    assert all(torch.equal(each, one) for each in many)


@pytest.mark.parametrize("dtype", PRODUCTS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_not_finite_reaches_its_neighbours(dtype, value):
    needs(dtype)
    x = maps(1, 8, 8, 20)
    x[0, 3, 0, 7] = value
    got = native_linear.Conv3x3(*layer(10, 20), activation="none", dtype=dtype)(x)
    touched = torch.zeros(8, 8, dtype=torch.bool)
    touched[2:5, :2] = True
    assert torch.equal(~got[0].isfinite().all(-1), touched)


@pytest.mark.parametrize("dtype", PRODUCTS)
def test_x_of_another_dtype_and_layout(dtype):
    needs(dtype)
    conv = native_linear.Conv3x3(*layer(10, 20), dtype=dtype)
    x = maps(2, 6, 6, 20).bfloat16().float()
    expected = conv(x)
    assert torch.equal(conv(x.bfloat16()), expected)
    assert torch.equal(conv(x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)), expected)
    assert conv(x[:0]).shape == (0, 6, 6, 10)


def test_reasons_and_wrong_arguments():
    weight = torch.zeros(4, 4, 3, 3)
    assert "float16" in ops.LAYERS["conv3x3"].unsupported_reason("native", weight=weight, dtype=torch.float16)
    needs(torch.float32)
    assert "groups 3" in ops.LAYERS["conv3x3"].unsupported_reason(
        "native", weight=weight, groups=3, dtype=torch.float32
    )
    with pytest.raises(ValueError, match="x must be"):
        native_linear.Conv3x3(*layer(4, 4))(maps(1, 5, 5, 3))
