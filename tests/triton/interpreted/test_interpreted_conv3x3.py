"""The convolution kernel, interpreted, against float64: borders, groups, sums in parts."""

import dataclasses

import pytest
import torch
from race_guard import guard

from ostrack_fast.kernels import conv3x3, tiles
from ostrack_fast.ops import reference

DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def random(*shape: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


def layer_and_reference(
    inputs: int, outputs: int, groups: int, activation: str, dtype: torch.dtype
) -> tuple[conv3x3.Conv3x3, reference.Conv3x3, reference.Conv3x3]:
    weight = random(outputs, inputs // groups, 3, 3, seed=1, scale=(9 * inputs / groups) ** -0.5)
    bias = random(outputs, seed=2)
    return (
        conv3x3.Conv3x3(weight, bias, groups, activation, dtype),
        reference.Conv3x3(weight, bias, groups, activation, dtype),
        reference.Conv3x3(weight.double(), bias.double(), groups, activation, torch.float64),
    )


def check(
    batch: int, grid: int, inputs: int, outputs: int, groups: int, dtype: torch.dtype, activation: str = "relu"
) -> None:
    layer, pytorch, exact = layer_and_reference(inputs, outputs, groups, activation, dtype)
    x = random(batch, grid, grid, inputs).to(dtype)
    with guard(grid):
        ours = layer(x)
    expected = exact(x.double())
    assert ours.dtype == dtype and ours.is_contiguous() and ours.shape == expected.shape
    error, allowed = ((value.double() - expected).abs() for value in (ours, pytorch(x)))
    assert error.max() <= 2 * allowed.max() + 1e-7, f"{error.max():.2e}, PyTorch {allowed.max():.2e}"
    assert error.mean() <= 1.25 * allowed.mean() + 1e-8, f"{error.mean():.2e}, PyTorch {allowed.mean():.2e}"


@pytest.mark.parametrize(
    ("grid", "inputs", "outputs", "groups"),
    [(16, 384, 192, 3), (16, 192, 96, 3), (12, 288, 144, 3), (12, 144, 72, 3), (12, 72, 36, 3), (24, 64, 64, 1)],
)
def test_sizes_of_the_models(grid, inputs, outputs, groups):
    check(1, grid, inputs, outputs, groups, torch.float16)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("batch", "grid", "inputs", "outputs", "groups"),
    [(2, 5, 64, 48, 1), (3, 4, 24, 9, 3), (1, 1, 8, 8, 1), (2, 7, 5, 3, 1), (1, 9, 200, 136, 2)],
)
def test_borders_groups_and_odd_sizes(batch, grid, inputs, outputs, groups, dtype):
    check(batch, grid, inputs, outputs, groups, dtype, activation="none")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_every_candidate_tile_computes_the_same(dtype, monkeypatch):
    layer, _, exact = layer_and_reference(72, 108, 3, "relu", dtype)
    x = random(1, 5, 5, 72)
    expected = exact(x.double())
    candidates = tiles.candidate_configs(layer.problem(25), 0)
    assert {config.split for config in candidates} >= {1, 3, 9}
    for config in candidates:
        monkeypatch.setattr(conv3x3, "config_for", lambda problem, device, config=config: config)
        with guard(config.split):
            ours = layer(x)
        assert (ours.double() - expected).abs().max() < 8 * torch.finfo(dtype).eps, config
    assert not layer.workspace.reserve(x.device, 1, 1)[1].any()


def test_sums_in_parts_do_not_depend_on_the_order_of_programs(monkeypatch):
    layer, _, _ = layer_and_reference(64, 64, 1, "relu", torch.float16)
    config = dataclasses.replace(tiles.config_for(layer.problem(36), torch.device("cpu")), split=9)
    monkeypatch.setattr(conv3x3, "config_for", lambda problem, device: config)
    x = random(1, 6, 6, 64).half()
    results = []
    for seed in range(3):
        with guard(seed):
            results.append(layer(x))
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


def test_a_float32_map_is_rounded_and_one_that_is_not_dense_is_copied():
    layer, _, _ = layer_and_reference(32, 16, 1, "relu", torch.bfloat16)
    x = random(2, 32, 5, 5).permute(0, 2, 3, 1)
    assert torch.equal(layer(x), layer(x.contiguous().bfloat16()))


def test_no_maps():
    layer, _, _ = layer_and_reference(32, 16, 1, "relu", torch.float16)
    assert layer(torch.empty(0, 4, 4, 32, dtype=torch.float16)).shape == (0, 4, 4, 16)


def test_a_map_of_another_width_is_refused():
    layer, _, _ = layer_and_reference(32, 16, 1, "relu", torch.float16)
    for wrong in (torch.zeros(1, 4, 4, 64), torch.zeros(1, 4, 5, 32), torch.zeros(1, 4, 4, 16)):
        with pytest.raises(ValueError, match=r"x must be \(B,F,F,32\), is"):
            layer(wrong.half())
