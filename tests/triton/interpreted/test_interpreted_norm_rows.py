"""LayerNorm handed from one layer's epilogue to the next layer, interpreted, against float64."""

import pytest
import torch
from race_guard import guard
from torch._subclasses.fake_tensor import FakeTensorMode
from triton.runtime.errors import InterpreterError

from ostrack_fast import Engine, build_ostrack, ops
from ostrack_fast.config import ModelConfig
from ostrack_fast.kernels import linear, tiles
from ostrack_fast.kernels.norm_rows import NormRows
from ostrack_fast.model import frozen, template_mask
from ostrack_fast.ops import reference

TINY = ModelConfig(
    template_size=32, search_size=64, embed_dim=64, depth=4, num_heads=2, head_channels=8,
    ce_layers=(1,), ce_keep_ratio=(0.7,),
)  # fmt: skip


def random(*shape: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


def split_sums(monkeypatch: pytest.MonkeyPatch, split: int) -> None:
    stock = tiles.config_for
    monkeypatch.setattr(
        linear, "config_for", lambda problem, device: tiles.dataclasses.replace(stock(problem, device), split=split)
    )


def rows_of(stream: torch.Tensor, shifts: torch.Tensor, dtype: torch.dtype) -> NormRows:
    """What `added` should leave of these rows."""
    centred = stream - shifts[..., None]
    grains = torch.nn.functional.pad(centred, (0, -stream.shape[-1] % 32)).unflatten(-1, (-1, 32))
    sums = torch.cat((shifts[..., None], grains.sum(-1), grains.square().sum(-1)), -1)
    return NormRows(centred.to(dtype), sums)


@pytest.mark.parametrize(
    ("batch", "tokens", "inputs", "outputs", "split", "dtype"),
    [(1, 70, 128, 192, 1, torch.float16), (2, 33, 128, 72, 2, torch.bfloat16)],
    ids=str,
)
def test_added_leaves_the_rows_and_their_sums(batch, tokens, inputs, outputs, split, dtype, monkeypatch):
    split_sums(monkeypatch, split)
    layer = linear.Linear(random(outputs, inputs, seed=1), random(outputs, seed=2), dtype=dtype)
    x, residual = random(batch, tokens, inputs).to(dtype), random(batch, tokens, outputs, seed=3) + 40
    expected, shifts = layer(x, residual), residual.mean(-1)
    for out in (None, residual):
        with guard(split):
            stream, left = layer.added(x, residual.clone() if out is None else residual, out, shifts)
        assert torch.equal(stream, expected)
        rows, sums = rows_of(expected, shifts, dtype)
        assert torch.equal(left.rows, rows) and torch.equal(left.sums[..., 0], shifts)
        torch.testing.assert_close(left.sums, sums, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize(
    ("offset", "rows", "channels", "features", "split"),
    [(0.0, 70, 128, 96, 2), (30.0, 3, 40, 130, 1), (-300.0, 65, 768, 64, 1), (0.0, 65, 768, 64, 3)],
)
def test_normed_is_no_worse_than_pytorch(offset, rows, channels, features, split, monkeypatch):
    """Also of rows far from zero, which half precision could not hold without their shift."""
    split_sums(monkeypatch, split)
    stream = random(1, rows, channels, scale=3.0) + offset
    shifts = stream.mean(-1) + random(1, rows, seed=5)  # the mean before the addition
    weight, bias = random(features, channels, seed=1, scale=channels**-0.5), random(features, seed=2)
    layer = linear.Linear(weight, bias, 1e-6, "gelu", torch.float16)
    with guard(rows):
        ours, means = layer.normed(rows_of(stream, shifts, torch.float16))
    exact = reference.Linear(weight.double(), bias.double(), 1e-6, "gelu", torch.float64)(stream.double())
    pytorch = reference.Linear(weight, bias, 1e-6, "gelu", torch.float16)(stream)
    error, allowed = ((value.double() - exact).abs() for value in (ours, pytorch))
    assert error.max() <= 2 * allowed.max() and error.mean() <= 1.25 * allowed.mean()
    torch.testing.assert_close(means, stream.mean(-1), rtol=1e-5, atol=1e-4)


def test_the_means_of_a_norm_in_the_loop():
    layer, stream = linear.Linear(random(40, 100), random(40), 1e-6, dtype=torch.float16), random(2, 35, 100) + 7
    with guard(1):
        result, means = layer.normed(stream)
    assert torch.equal(result, layer(stream))
    torch.testing.assert_close(means, stream.mean(-1), rtol=1e-5, atol=1e-5)


def test_nan_stays_in_its_row():
    layer = linear.Linear(random(64, 96), random(64, seed=1), 1e-6, dtype=torch.float16)
    stream = random(1, 5, 96)
    stream[0, 2, 50] = torch.nan
    result, _ = layer.normed(rows_of(stream, torch.zeros(1, 5), torch.float16))
    assert result[0, 2].isnan().all() and not result[0, [0, 1, 3, 4]].isnan().any()


def test_the_guard_sees_planted_faults():
    """Sums that have no room for the last group of channels; means written over sums that other tiles still read."""
    add, norm = (linear.Linear(random(192, 192), random(192), eps, dtype=torch.float16) for eps in (None, 1e-6))
    x = random(1, 70, 192)
    rows = rows_of(x, x.mean(-1), torch.float16)
    with pytest.raises(InterpreterError, match="store outside"), guard():
        add._launch(x, x, x.clone(), shifts=x.mean(-1), leave=NormRows(rows.rows, rows.sums[:, :-1].contiguous()))
    with pytest.raises(InterpreterError, match="race"), guard():
        norm._launch(rows.rows, sums=rows.sums, means=rows.sums.view(-1)[:70])


def test_only_half_precision_on_hopper_and_newer_hands_over(monkeypatch):
    weight, bias = random(8, 8), random(8)
    assert linear.Linear(weight, bias, dtype=torch.float16).hands_over
    assert not linear.Linear(weight, bias, dtype=torch.float32).hands_over
    with FakeTensorMode():
        on_gpu = torch.empty(8, 8, device="cuda"), torch.empty(8, device="cuda")
        for capability, able in (((8, 9), False), ((9, 0), True), ((12, 0), True)):
            monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, found=capability: found)
            assert linear.Linear(*on_gpu, dtype=torch.float16).hands_over == able


def test_layers_without_a_norm_or_dense_rows_refuse():
    layer = linear.Linear(random(64, 64), random(64), dtype=torch.float16)
    with pytest.raises(ValueError, match="no LayerNorm"):
        layer.normed(random(1, 5, 64))
    with pytest.raises(ValueError, match="dense rows"):
        layer.added(random(1, 5, 64), random(1, 9, 64)[:, 4:], random(2, 9, 64)[:, 4:], torch.zeros(1, 5))


def test_a_network_that_hands_over(monkeypatch):
    """The layers as on a GPU: as near the float64 network as without the switch."""
    torch.manual_seed(0)
    model = build_ostrack(TINY).requires_grad_(False)
    for table in (model.backbone.pos_embed_z, model.backbone.pos_embed_x):
        torch.nn.init.normal_(table, mean=2.0)
    z, x = torch.randn(2, 3, 32, 32), torch.randn(2, 3, 64, 64)
    monkeypatch.setattr(frozen, "skips_unused_queries", lambda device: False)
    found, handed = {}, []
    normed = linear.Linear.normed
    monkeypatch.setattr(linear.Linear, "normed", lambda self, x: handed.append(type(x)) or normed(self, x))
    for state in ("off", "on"):
        monkeypatch.setenv("OSTRACK_FAST_SWITCHES", f"norm_rows={state}")
        with ops.use("triton"), guard(1):
            engine = Engine(model, "cpu", torch.float16)
            engine.set_template(z)
            found[state] = engine.forward(x)
        assert bool(handed) == (state == "on")
    # Of four blocks' LayerNorms only the first has no epilogue before it, and the one behind an elimination.
    assert handed.count(torch.Tensor) == 2 and handed.count(NormRows) == 6
    exact = model.double()(z.double(), x.double(), template_mask(TINY))
    for name in ("score_map", "size_map", "offset_map"):
        errors = {state: (maps[name].double() - exact[name]).abs().mean() for state, maps in found.items()}
        assert errors["on"] <= 1.5 * errors["off"] + 1e-6, (name, errors)
