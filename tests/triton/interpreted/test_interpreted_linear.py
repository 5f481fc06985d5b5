"""The linear kernel, interpreted, against float64: tiles, sums in parts, LayerNorm in the loop, views to write to."""

import pytest
import torch
from race_guard import guard

from ostrack_fast.kernels import linear, tiles
from ostrack_fast.kernels.gemm import Workspace
from ostrack_fast.ops import reference

CPU = torch.device("cpu")
DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def random(*shape: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


def assert_no_worse(ours: torch.Tensor, pytorch: torch.Tensor, exact: torch.Tensor) -> None:
    """At most twice the error of the reference at the same dtype, in the mean and in the worst element."""
    error, allowed = ((value.double() - exact).abs() for value in (ours, pytorch))
    assert error.max() <= 2 * allowed.max() + 1e-7, f"{error.max():.2e}, PyTorch {allowed.max():.2e}"
    assert error.mean() <= 1.25 * allowed.mean() + 1e-8, f"{error.mean():.2e}, PyTorch {allowed.mean():.2e}"


def check(
    x: torch.Tensor, features: int, dtype: torch.dtype, eps: float | None = None, activation: str = "none",
    residual: torch.Tensor | None = None, seed: int = 0,
) -> linear.Linear:  # fmt: skip
    channels = x.shape[-1]
    weight, bias = random(features, channels, seed=1, scale=channels**-0.5), random(features, seed=2)
    layer = linear.Linear(weight, bias, eps, activation, dtype)
    with guard(seed):
        ours = layer(x, residual)
    rounded = x.double() if eps is not None else x.to(dtype).double()
    double = [None if value is None else value.double() for value in (weight, bias, residual)]
    exact = reference.Linear(double[0], double[1], eps, activation, torch.float64)(rounded, double[2])
    pytorch = reference.Linear(weight, bias, eps, activation, dtype)(x, residual)
    assert ours.dtype == pytorch.dtype == (dtype if residual is None else torch.float32)
    assert_no_worse(ours, pytorch, exact)
    return layer


def use(monkeypatch: pytest.MonkeyPatch, **values: int) -> None:
    """Run every product with the tile that the model chose, but for these values."""
    stock = tiles.config_for
    monkeypatch.setattr(
        linear, "config_for", lambda problem, device: tiles.dataclasses.replace(stock(problem, device), **values)
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", ["none", "gelu", "relu"])
@pytest.mark.parametrize("eps", [None, 1e-6], ids=["plain", "norm"])
def test_every_variant(eps, activation, dtype):
    x = random(2, 37, 128, scale=3.0) + 0.5
    check(x if eps else x.to(dtype), 96, dtype, eps, activation)
    check(x, 96, dtype, eps, activation, residual=random(2, 37, 96, seed=3))


@pytest.mark.parametrize(
    ("rows", "features", "channels", "eps", "activation", "with_residual"),
    [
        (153, 2304, 768, 1e-6, "none", False),
        (190, 768, 768, None, "none", True),
        (137, 1536, 384, 1e-6, "gelu", False),
        (153, 768, 3072, None, "none", True),
    ],
)
def test_sizes_of_the_models(rows, features, channels, eps, activation, with_residual):
    x = random(1, rows, channels)
    residual = random(1, rows, features, seed=3) if with_residual else None
    check(x if eps else x.half(), features, torch.float16, eps, activation, residual)


@pytest.mark.parametrize(
    ("rows", "features", "channels"), [(1, 1, 1), (1, 12, 24), (65, 33, 40), (3, 130, 72), (64, 64, 100)]
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("eps", [None, 1e-6], ids=["plain", "norm"])
def test_odd_sizes(rows, features, channels, dtype, eps):
    x = random(rows, channels)
    check(x if eps else x.to(dtype), features, dtype, eps, seed=rows)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_candidate_tile_computes_the_same(dtype, monkeypatch):
    x, weight, bias = random(35, 192), random(129, 192, seed=1), random(129, seed=2)
    for eps in (None, 1e-6):
        layer = linear.Linear(weight, bias, eps, "none", dtype)
        exact = reference.Linear(weight.double(), bias.double(), eps, "none", torch.float64)(x.double())
        candidates = tiles.candidate_configs(layer.problem(35), 0)
        assert len(candidates) >= 2
        for config in candidates:
            monkeypatch.setattr(linear, "config_for", lambda problem, device, config=config: config)
            with guard(7):
                ours = layer(x)
            assert (ours.double() - exact).abs().max() < 200 * torch.finfo(dtype).eps, config


def test_sums_in_parts_do_not_depend_on_the_order_of_programs(monkeypatch):
    use(monkeypatch, split=4)
    x, residual = random(1, 70, 512).half(), random(1, 70, 96, seed=3)
    layer = linear.Linear(random(96, 512, seed=1), random(96, seed=2), activation="gelu", dtype=torch.float16)
    results = []
    for seed in range(4):
        with guard(seed):
            results.append(layer(x, residual))
    assert all(torch.equal(results[0], other) for other in results[1:])


def test_tickets_are_left_ready_and_layers_may_share_a_workspace(monkeypatch):
    use(monkeypatch, split=2)
    workspace = Workspace()
    large, small = (
        linear.Linear(random(features, 256), random(features), dtype=torch.float32, workspace=workspace)
        for features in (200, 40)
    )
    x = random(70, 256)
    first = large(x), small(x)
    held = workspace.reserve(x.device, 1, 1)
    assert not held[1].any()
    assert torch.equal(first[0], large(x)) and torch.equal(first[1], small(x))
    assert workspace.reserve(x.device, 1, 1)[0] is held[0]


def test_memory_handed_out_stays(monkeypatch):
    workspace, device = Workspace(), torch.device("cpu")
    before = workspace.reserve(device, 100, 3)
    after = workspace.reserve(device, 50, 9)
    assert after[0].numel() == 100 and after[1].numel() == 9
    assert workspace._held[device] == [before, after]


@pytest.mark.parametrize("split", [1, 2])
def test_writes_into_a_slice_of_a_longer_buffer_and_nowhere_else(split, monkeypatch):
    use(monkeypatch, split=split)
    layer = linear.Linear(random(48, 128, seed=1), random(48, seed=2), dtype=torch.float16)
    x, table = random(3, 21, 128).half(), random(21, 48, seed=3).expand(3, 21, 48)
    buffer = torch.full((3, 30, 48), 7.0)
    with guard(split):
        result = layer(x, residual=table, out=buffer[:, 5:26])
    assert result.data_ptr() == buffer[:, 5:26].data_ptr()
    assert torch.equal(result, layer(x, residual=table.contiguous()))
    assert (buffer[:, :5] == 7).all() and (buffer[:, 26:] == 7).all()


@pytest.mark.parametrize("split", [1, 2])
def test_adds_in_place(split, monkeypatch):
    use(monkeypatch, split=split)
    layer = linear.Linear(random(40, 128, seed=1), random(40, seed=2), dtype=torch.bfloat16)
    x, tokens = random(2, 33, 128), random(2, 33, 40, seed=3)
    expected = layer(x, tokens)
    with guard(split):
        layer(x, residual=tokens, out=tokens)
    assert torch.equal(tokens, expected)


@pytest.mark.parametrize("offset", [0.0, 30.0, -300.0])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_normalizes_rows_far_from_zero(offset, dtype):
    check(random(40, 256) + offset, 64, dtype, 1e-6)


@pytest.mark.parametrize("channel", [0, 200])
def test_normalizes_rows_with_an_outlier(channel):
    x = random(40, 768)
    x[:, channel] = 300.0
    check(x, 64, torch.float16, 1e-6)


def test_normalizes_constant_rows_to_zero():
    layer = linear.Linear(random(64, 96), random(64, seed=1), 1e-6)
    result = layer(torch.full((5, 96), 3.0))
    assert torch.allclose(result, layer.bias.expand(5, -1), atol=1e-5)


@pytest.mark.parametrize("activation", ["none", "gelu", "relu"])
def test_nan_stays_in_its_row(activation):
    layer = linear.Linear(random(64, 96), random(64, seed=1), 1e-6, activation)
    x = random(5, 96)
    x[2, 50] = torch.nan
    result = layer(x)
    assert result[2].isnan().all() and not result[[0, 1, 3, 4]].isnan().any()


def test_no_rows_and_one_row_without_a_batch():
    layer = linear.Linear(random(8, 32), random(8, seed=1))
    assert layer(random(2, 0, 32)).shape == (2, 0, 8)
    x = random(32)
    assert torch.equal(layer(x, residual=torch.ones(8)), layer(x[None])[0] + 1)


def test_strides_it_cannot_write_to():
    layer = linear.Linear(random(8, 32), random(8, seed=1))
    with pytest.raises(ValueError, match="dense rows"):
        layer(random(4, 32), out=torch.empty(8, 4).T)
