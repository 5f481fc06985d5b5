"""Frozen linear layers on the CPU, against the reference in float64."""

import copy
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ostrack_fast import ops
from ostrack_fast.ops import native, native_linear, reference

from .int8 import quantized, quantized_weight

FEATURES = native.build_info()["cpu_features"]
PRODUCTS = [torch.float32, torch.bfloat16, torch.int8]


def needs(dtype):
    reason = ops.LAYERS["linear"].unsupported_reason("native", weight=torch.zeros(1, 1), dtype=dtype)
    if reason is not None:
        pytest.skip(reason)


def layer(outputs, inputs, seed=0):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(outputs, inputs, generator=generator) * inputs**-0.5
    return weight, torch.randn(outputs, generator=generator)


def rows(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def assert_accurate(ours, plain, exact, name=""):
    """The error against float64 is at most twice that of PyTorch in the same dtype, or a rounding error."""
    assert ours.shape == exact.shape
    unit = torch.finfo(ours.dtype).eps * exact.abs().max()
    error, allowed = ((value.double() - exact).abs().max() for value in (ours, plain))
    assert error <= 2 * allowed + unit, f"{name}: error {error:.3g}, PyTorch's {allowed:.3g}"


def check(x, weight, bias, dtype, residual=None, **how):
    exact = reference.Linear(weight.double(), bias.double(), dtype=torch.float64, **how)
    plain = reference.Linear(weight, bias, dtype=dtype, **how)
    got = native_linear.Linear(weight, bias, dtype=dtype, **how)(x, residual)
    assert got.dtype == (dtype if residual is None else torch.float32)
    wide = None if residual is None else residual.double()
    assert_accurate(got, plain(x, residual), exact(x.double(), wide), str(how))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("count", [1, 7, 8, 9, 153, 180, 343])
@pytest.mark.parametrize(("inputs", "outputs"), [(384, 1152), (768, 768), (3072, 96), (216, 5), (384, 216), (37, 41)])
def test_error_by_shape(dtype, count, inputs, outputs):
    needs(dtype)
    check(rows(count, inputs).to(dtype), *layer(outputs, inputs), dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("inputs", [96, 37, 1])
@pytest.mark.parametrize("activation", ["none", "gelu", "relu"])
@pytest.mark.parametrize("norm_eps", [None, 1e-6])
@pytest.mark.parametrize("added", [False, True])
def test_error_of_what_is_fused(dtype, inputs, activation, norm_eps, added):
    needs(dtype)
    x = rows(2, 19, inputs) * 3 + 1
    residual = rows(2, 19, 40, seed=2) if added else None
    check(x, *layer(40, inputs), dtype, residual, activation=activation, norm_eps=norm_eps)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norm_of_rows_far_from_zero(dtype):
    """Whose mean is a thousand times their deviation: the square of the mean would leave no digits."""
    needs(dtype)
    check(rows(20, 384) + 1000, *layer(64, 384), dtype, norm_eps=1e-6)


def test_gelu_follows_its_curve():
    """To 1e-7 of the scale of its values, at every place of the pieces it is computed in."""
    needs(torch.float32)
    x = torch.cat([torch.linspace(-8, 8, 40001), torch.linspace(-1e-3, 1e-3, 101), torch.tensor([-1e4, 1e4])])[:, None]
    got = native_linear.Linear(torch.ones(1, 1), torch.zeros(1), activation="gelu")(x)
    error = (got.double() - torch.nn.functional.gelu(x.double())).abs()
    assert (error <= 1e-7 * x.abs().clamp(min=1).double()).all()
    near_zero = x.abs() < 1e-4
    assert (error[near_zero] <= 2e-7 * x.abs()[near_zero]).all()


@pytest.mark.parametrize("dtype", PRODUCTS)
@pytest.mark.parametrize("wide", [torch.float32, torch.bfloat16])
def test_dtype_of_x_and_out(dtype, wide):
    needs(dtype)
    weight, bias = layer(50, 64)
    linear = native_linear.Linear(weight, bias, dtype=dtype)
    x = rows(30, 64).bfloat16()
    expected = linear(x)
    out = torch.empty(30, 50, dtype=wide)
    assert linear(x.to(wide), out=out) is out
    torch.testing.assert_close(out.to(expected.dtype), expected, rtol=2**-8, atol=0)
    assert torch.equal(linear(x.double()), linear(x.float()))


@pytest.mark.parametrize("dtype", PRODUCTS)
@pytest.mark.parametrize("norm_eps", [None, 1e-6])
def test_slices_of_larger_buffers(dtype, norm_eps):
    """x, residual and out whose batch stride is larger than their rows; what lies between stays as it is."""
    needs(dtype)
    weight, bias = layer(96, 96)
    linear = native_linear.Linear(weight, bias, norm_eps=norm_eps, dtype=dtype)
    x, tokens = rows(3, 25, 96), rows(3, 31, 96, seed=2)
    expected = linear(x[:, 4:].contiguous(), tokens[:, 5:26].contiguous())
    before = tokens.clone()
    assert linear(x[:, 4:], tokens[:, 5:26], tokens[:, 5:26]).data_ptr() == tokens[:, 5:26].data_ptr()
    assert torch.equal(tokens[:, 5:26], expected)
    assert torch.equal(tokens[:, :5], before[:, :5])
    assert torch.equal(tokens[:, 26:], before[:, 26:])


@pytest.mark.parametrize("dtype", PRODUCTS)
def test_residual_may_be_out(dtype):
    needs(dtype)
    weight, bias = layer(41, 37)
    linear = native_linear.Linear(weight, bias, dtype=dtype)
    x, tokens = rows(3, 7, 37), rows(3, 7, 41)
    expected = linear(x, tokens)
    assert linear(x, tokens, tokens) is tokens
    assert torch.equal(tokens, expected)


@pytest.mark.parametrize("shape", [(64,), (5, 64), (2, 3, 4, 64), (0, 64), (2, 0, 64)])
@pytest.mark.parametrize("dtype", PRODUCTS)
def test_any_leading_dimensions(dtype, shape):
    needs(dtype)
    linear = native_linear.Linear(*layer(9, 64), dtype=dtype)
    x = rows(*shape)
    got = linear(x)
    assert got.shape == (*shape[:-1], 9)
    assert torch.equal(got.view(-1, 9), linear(x.view(-1, 64)))
    strided = x.repeat_interleave(2, dim=-1)[..., ::2]
    assert torch.equal(linear(strided), got)


@pytest.mark.parametrize("dtype", PRODUCTS)
@pytest.mark.parametrize(("count", "outputs"), [(1, 5), (153, 200), (320, 48)])
def test_threads_do_not_change_a_bit(threads, dtype, count, outputs):
    needs(dtype)
    linear = native_linear.Linear(*layer(outputs, 192), norm_eps=1e-6, activation="gelu", dtype=dtype)
    x = rows(count, 192)
    many = [linear(x) for _ in range(20)]  # threads that share memory by mistake meet now and then
    torch.set_num_threads(1)
    one = linear(x)
    assert all(torch.equal(each, one) for each in many)


@pytest.mark.parametrize("dtype", PRODUCTS)
@pytest.mark.parametrize("norm_eps", [None, 1e-6])
@pytest.mark.parametrize("activation", ["none", "gelu", "relu"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_not_finite_stays_in_its_row(dtype, norm_eps, activation, value):
    needs(dtype)
    weight, bias = layer(50, 96)
    x = rows(20, 96)
    x[11, 50] = value
    got = native_linear.Linear(weight, bias, norm_eps=norm_eps, activation=activation, dtype=dtype)(x)
    others = torch.arange(20) != 11
    assert got[others].isfinite().all()
    expected = reference.Linear(weight.double(), bias.double(), norm_eps, activation, torch.float64)(x.double())[11]
    if dtype == torch.int8:  # whose scale such a row has none of
        assert got[11].isnan().all()
    elif activation == "gelu":  # at minus infinity PyTorch takes infinity times zero, and the limit is 0
        limit = torch.where(expected.isnan() & torch.tensor(norm_eps is None and value == value), 0.0, expected)
        torch.testing.assert_close(got[11].double(), limit, equal_nan=True, rtol=0, atol=1e-6)
    else:
        torch.testing.assert_close(got[11].double(), expected, equal_nan=True)


@pytest.mark.parametrize("count", [1, 7, 153, 180])
@pytest.mark.parametrize(("inputs", "outputs"), [(384, 216), (768, 50), (3072, 17), (33, 5), (257, 40)])
def test_int8_is_its_formula(count, inputs, outputs):
    """The sums of products are exact; what follows rounds in float32."""
    needs(torch.int8)
    weight, bias = layer(outputs, inputs)
    x = rows(count, inputs) * rows(count, 1, seed=3).exp()
    x_bytes, weight_bytes = quantized(x), quantized_weight(weight)
    expected = x_bytes @ weight_bytes.T + bias
    out = torch.empty(count, outputs)
    native_linear.Linear(weight, bias, dtype=torch.int8)(x, out=out)
    unit = torch.finfo(torch.float32).eps * (x_bytes.abs() @ weight_bytes.abs().T + bias.abs())
    assert ((out - expected).abs() <= unit).all()


@pytest.mark.parametrize("sign", [1, -1])
def test_int8_at_its_limits(sign):
    """Whole numbers that quantize to whole ones give whole sums, the largest there are."""
    needs(torch.int8)
    inputs = 1000  # 2^24 / 127^2, beyond which float32 does not hold all whole numbers
    x = torch.full((3, inputs), 127.0)
    x[1] = torch.randint(-127, 128, (inputs,), generator=torch.Generator().manual_seed(0)).float()
    x[1, 0] = 127
    x[2] = 0
    weight = torch.full((2, inputs), 127.0 * sign)
    weight[1, ::2] = -127
    out = torch.empty(3, 2)
    native_linear.Linear(weight, torch.zeros(2), dtype=torch.int8)(x, out=out)
    assert torch.equal(out, (x.double() @ quantized_weight(weight).T).float())


def test_int8_has_as_many_inputs_as_sums_fit_32_bits():
    needs(torch.int8)
    most = 1 << 17
    out, weight = torch.empty(1, 1), torch.full((1, most), -127.0)
    native_linear.Linear(weight, torch.zeros(1), dtype=torch.int8)(torch.full((1, most), 127.0), out=out)
    assert out.item() == 127 * quantized_weight(weight).sum()
    assert native_linear.reason(torch.empty(1, most), torch.int8) is None
    assert native_linear.reason(torch.empty(1, most + 1), torch.int8) is not None
    assert native_linear.reason(torch.empty(1, most + 1)) is None


@pytest.mark.parametrize("x_signs", [[1], [1, -1], [1, 1, -1, -1]])
@pytest.mark.parametrize("signs", [[1], [-1], [1, -1], [1, 1, -1, -1]])
def test_int8_never_saturates(x_signs, signs):
    """Where all products have one sign, two or eight of them together reach the end of 16 bits."""
    needs(torch.int8)
    inputs = 256
    # Two are added so that all steps are near 127.
    x = (rows(9, inputs).abs() + 2) * torch.tensor(x_signs).repeat(inputs // len(x_signs))
    weight = (layer(40, inputs)[0].abs() + 0.1) * torch.tensor(signs).repeat(inputs // len(signs))
    out = torch.empty(9, 40)
    native_linear.Linear(weight, torch.zeros(40), dtype=torch.int8)(x, out=out)
    expected = quantized(x) @ quantized_weight(weight).T
    torch.testing.assert_close(out.double(), expected, rtol=1e-6, atol=2e-5)


@pytest.mark.parametrize("norm_eps", [None, 1e-6])
@pytest.mark.parametrize("activation", ["none", "gelu"])
def test_int8_error(norm_eps, activation):
    """Rounding to 254 steps of a row's largest value: one per cent of the deviation of such sums."""
    needs(torch.int8)
    weight, bias = layer(300, 768)
    x = rows(180, 768)
    exact = reference.Linear(weight.double(), bias.double(), norm_eps, activation, torch.float64)(x.double())
    got = native_linear.Linear(weight, bias, norm_eps, activation, torch.int8)(x, out=torch.empty(180, 300))
    error = (got - exact).pow(2).mean().sqrt()
    assert 0.001 < error < 0.015


def test_int8_of_nothing_but_zeros():
    needs(torch.int8)
    weight, bias = layer(20, 64)
    weight[3] = 0
    linear = native_linear.Linear(weight, bias, dtype=torch.int8)
    zero = linear(torch.zeros(4, 64), out=torch.empty(4, 20))
    assert torch.equal(zero, bias.expand(4, -1))
    assert torch.equal(linear(rows(4, 64), out=torch.empty(4, 20))[:, 3], bias[3].expand(4))


def test_int8_takes_only_finite_weights():
    needs(torch.int8)
    weight, bias = layer(20, 64)
    weight[3, 5] = float("inf")
    with pytest.raises(ValueError, match="outside the range"):
        native_linear.Linear(weight, bias, dtype=torch.int8)


def test_reasons():
    weight = torch.zeros(4, 4)
    assert "float16" in ops.LAYERS["linear"].unsupported_reason("native", weight=weight, dtype=torch.float16)
    assert "backward" in ops.LAYERS["linear"].unsupported_reason(
        "native", weight=weight.requires_grad_(), dtype=torch.float32
    )
    for dtype in PRODUCTS:
        reason = ops.LAYERS["linear"].unsupported_reason("native", weight=torch.zeros(4, 4), dtype=dtype)
        assert (reason is None) or "needs AVX2" in reason or "AMX" in reason
        if not FEATURES["avx2"]:
            assert reason is not None


@pytest.mark.parametrize(
    ("capability", "able"), [("portable", False), ("avx2", True), ("avx_vnni", True), ("avx512", True)]
)
def test_lesser_processors(capability, able):
    """In a process that takes this processor for an older one, layers say whether they can run."""
    if not FEATURES["avx2"]:
        pytest.skip("this processor has no avx2")
    if FEATURES["amx_bf16"]:
        pytest.skip("this processor has AMX, which is another reason")
    code = (
        "import torch\nfrom ostrack_fast import ops\n"
        "print('result', ops.layers.result_dtype(torch.int8))\n"
        "for dtype in (torch.float32, torch.bfloat16, torch.int8):\n"
        "    print(dtype, ops.LAYERS['linear'].unsupported_reason('native', weight=torch.zeros(4, 4), dtype=dtype))"
    )
    environment = os.environ | {"OSTRACK_FAST_CPU_CAPABILITY": capability}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    found = dict(line.removeprefix("torch.").split(" ", 1) for line in done.stdout.splitlines())
    assert found.pop("result") == "torch.float32"  # none of them rounds to bfloat16 in one instruction
    assert set(found) == {"float32", "bfloat16", "int8"}
    assert all(reason == "None" if able else "OSTRACK_FAST_CPU_CAPABILITY" in reason for reason in found.values())


@pytest.mark.parametrize("capability", ["avx2", "avx_vnni"])
def test_int8_of_lesser_processors(capability):
    """The tests of int8 in a process that takes this processor for an older one."""
    if not FEATURES[capability]:
        pytest.skip(f"this processor has no {capability}")
    environment = os.environ | {"OSTRACK_FAST_CPU_CAPABILITY": capability}
    files = [str(Path(__file__).with_name(f"test_{name}.py")) for name in ("linear", "conv3x3", "restore_conv3x3")]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files, "-k", "int8 and not lesser"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout


@pytest.mark.parametrize(
    "how", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))], ids=["copy", "pickle"]
)
def test_a_copy_reads_its_own_weights(how):
    needs(torch.float32)
    weight, bias = layer(9, 64)
    linear, x = native_linear.Linear(weight, bias), rows(2, 5, 64)
    expected = linear(x)
    other = how(linear)
    linear._packed._bytes.zero_()
    torch.testing.assert_close(other(x), expected)
    assert not torch.equal(linear(x), expected)


def test_wrong_arguments():
    needs(torch.float32)
    linear = native_linear.Linear(*layer(9, 64))
    x = rows(2, 5, 64)
    with pytest.raises(ValueError, match="x must be"):
        linear(rows(5, 63))
    with pytest.raises(ValueError, match="residual must be"):
        linear(x, rows(2, 5, 8))
    for out in (torch.empty(2, 5, 8), torch.empty(2, 5, 9, dtype=torch.float64), torch.empty(2, 9, 5).transpose(1, 2)):
        with pytest.raises(ValueError, match="out must be"):
            linear(x, out=out)
