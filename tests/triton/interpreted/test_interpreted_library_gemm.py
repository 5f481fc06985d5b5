"""A linear layer around the library's GEMM, its LayerNorm interpreted, against float64 and as the tables choose it."""

import pytest
import torch
from race_guard import guard
from test_interpreted_linear import assert_no_worse, random
from triton.runtime.errors import InterpreterError

from ostrack_fast.kernels import candidates, library_gemm, linear, tiles
from ostrack_fast.ops import reference

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def no_tables(monkeypatch):
    monkeypatch.setattr(tiles, "_measured", {})


def prefer_library(layer, rows):
    problem = layer.problem(rows)
    tiles.set_config(problem, tiles.config_for(problem, CPU), 0, library=True)


@pytest.fixture
def kernels_run(monkeypatch):
    """The layer's own launches."""
    runs = []
    stock = linear.Linear._launch
    monkeypatch.setattr(linear.Linear, "_launch", lambda *a, **how: runs.append(1) or stock(*a, **how))
    return runs


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("activation", ["none", "gelu", "relu"])
@pytest.mark.parametrize("eps", [None, 1e-6], ids=["plain", "norm"])
def test_every_variant(eps, activation, dtype, kernels_run):
    """The table sends the layer to the library; the result is that of plain PyTorch in the same dtype."""
    x = random(2, 37, 72, scale=3.0) + 0.5
    weight, bias = random(96, 72, seed=1, scale=72**-0.5), random(96, seed=2)
    layer = linear.Linear(weight, bias, eps, activation, dtype)
    prefer_library(layer, 74)
    for residual in (None, random(2, 37, 96, seed=3)):
        given = x if eps else x.to(dtype)
        double = [None if each is None else each.double() for each in (weight, bias, residual)]
        exact = reference.Linear(double[0], double[1], eps, activation, torch.float64)(given.double(), double[2])
        pytorch = reference.Linear(weight, bias, eps, activation, dtype)(given, residual)
        with guard():
            ours = layer(given, residual)
        assert ours.dtype == pytorch.dtype
        assert_no_worse(ours, pytorch, exact)
    assert not kernels_run


def test_results_go_where_they_are_wanted(kernels_run):
    """A slice of a longer buffer, the residual itself, and rows without a batch."""
    layer = linear.Linear(random(48, 64, seed=1), random(48, seed=2), 1e-6, "gelu", torch.float16)
    x, stream = random(2, 9, 64), random(2, 20, 48, seed=3)
    for rows in (18, 9):
        prefer_library(layer, rows)
    expected, added = layer(x), layer(x, stream[:, 4:13])
    found = stream.clone()
    assert layer(x, found[:, 4:13], found[:, 4:13]).data_ptr() == found[:, 4:13].data_ptr()
    torch.testing.assert_close(found[:, 4:13], added, rtol=0, atol=0)
    assert torch.equal(found[:, :4], stream[:, :4]) and torch.equal(found[:, 13:], stream[:, 13:])
    half = torch.full((2, 11, 48), 7.0, dtype=torch.float16)
    layer(x, out=half[:, 2:])
    torch.testing.assert_close(half[:, 2:], expected, rtol=0, atol=0)
    assert (half[:, :2] == 7.0).all()
    torch.testing.assert_close(layer(x[0]), expected[0])
    assert layer(x[:0]).shape == (0, 9, 48)
    assert len(kernels_run) == 1, "no rows: nothing was measured of them"


def test_only_the_sizes_in_the_table(kernels_run):
    layer = linear.Linear(random(48, 64, seed=1), random(48, seed=2), dtype=torch.float16)
    prefer_library(layer, 100)
    layer(random(1, 100, 64).half())
    layer(random(1, 128, 64).half())
    assert not kernels_run
    layer(random(1, 129, 64).half())
    assert len(kernels_run) == 1


def test_autocast_changes_nothing():
    layer = linear.Linear(random(48, 64, seed=1), random(48, seed=2), dtype=torch.float16)
    prefer_library(layer, 9)
    x = random(1, 9, 64).half()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = layer(x)
    assert inside.dtype == torch.float16 and torch.equal(inside, layer(x))


def test_the_choice_is_written_and_read(tmp_path):
    layer = linear.Linear(random(48, 64), random(48), dtype=torch.float16)
    prefer_library(layer, 9)
    tiles.set_config(layer.problem(100), tiles.config_for(layer.problem(100), CPU), 0)
    tiles.save_configs(tmp_path / "tiles.json")
    tiles._measured.clear()
    assert not tiles.library_is_faster(layer.problem(9), CPU)
    tiles.load_configs(tmp_path / "tiles.json")
    assert tiles.library_is_faster(layer.problem(9), CPU)
    assert not tiles.library_is_faster(layer.problem(100), CPU)


@pytest.mark.parametrize(("seconds", "chosen"), [(0.5, True), (0.99, False), (2.0, False)])
def test_tuning_takes_it_only_where_it_is_faster(seconds, chosen, monkeypatch):
    """By more than it costs beside other kernels; the tile stays known for what the library cannot compute."""
    monkeypatch.setattr(candidates, "worth_timing", lambda *_: [])
    layer = linear.Linear(random(48, 64, seed=1), random(48, seed=2), 1e-6, dtype=torch.float16)
    used = tiles.config_for(layer.problem(9), CPU)

    def time(runs):
        assert len(runs) == 2
        return {key: [2e-5 * (seconds if key == "library" else 1.0)] for key in runs}

    tuned = candidates.tune_one("qkv", layer, (random(1, 9, 64),), layer.problem(9), time)
    assert (tuned.library, tuned.config) == (chosen, used)
    assert tuned.seconds == 2e-5 * (seconds if chosen else 1.0)
    assert tiles.library_is_faster(layer.problem(9), CPU) == chosen


def test_tuning_refuses_a_library_that_is_wrong(monkeypatch):
    monkeypatch.setattr(candidates, "worth_timing", lambda *_: [])
    monkeypatch.setattr(linear, "library_linear", lambda x, weight, *_: x @ weight.float().T + 1)
    layer = linear.Linear(random(48, 64, seed=1), torch.zeros(48), dtype=torch.float16)
    with pytest.raises(candidates.WrongTile, match="the library's GEMM"):
        candidates.tune_one("qkv", layer, (random(1, 9, 64),), layer.problem(9), lambda runs: {})


@pytest.mark.parametrize("channels", [1, 72, 768])
def test_normalize(channels):
    x = random(5, channels, scale=3.0) + 1000.0
    with guard():
        found = library_gemm.normalize(x, 1e-6, torch.float16)
    exact = torch.nn.functional.layer_norm(x.double(), (channels,), eps=1e-6)
    assert_no_worse(found, torch.nn.functional.layer_norm(x, (channels,), eps=1e-6).half(), exact)


def test_the_guard_sees_a_row_too_many():
    x = random(5, 64)
    with pytest.raises(InterpreterError, match="outside"), guard():
        out = torch.empty(4, 64, dtype=torch.float16)
        library_gemm._normalize[(5,)](x, out, 1e-6, C=64, PADDED=64, PDL=False)
