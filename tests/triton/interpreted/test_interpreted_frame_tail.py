"""The end of a frame as one kernel, interpreted, against the ops one after the other in float64."""

import numpy as np
import pytest
import torch
from race_guard import guard
from triton.runtime.errors import InterpreterError

from ostrack_fast import Engine, build_ostrack, ops
from ostrack_fast.config import ModelConfig
from ostrack_fast.kernels import FrameTail, frame_tail
from ostrack_fast.locator import hann_window
from ostrack_fast.ops import layers, reference
from ostrack_fast.ops.update_box import reference as update_box_reference
from ostrack_fast.smoothing import Smoothing, smoothed_decode

TINY = ModelConfig(
    template_size=32, search_size=64, embed_dim=32, depth=2, num_heads=1, head_channels=8,
    ce_layers=(1,), ce_keep_ratio=(0.7,),
)  # fmt: skip


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def inputs(batch: int, grid: int, channels: int, dtype: torch.dtype):
    """Weight, bias, window; features, box."""
    weight, bias = random(5, channels, seed=1) * 2 * channels**-0.5, random(5, seed=2)
    box = torch.rand(batch, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64) * 300 + 0.1
    return (weight, bias, hann_window(grid)), (random(batch, grid, grid, 3 * channels).to(dtype), box)


def one_after_the_other(weight, bias, window, features, box, size, factor, margin, smoothing=None):
    """Maps, decoding and box update in float64."""
    towers = features.double().unflatten(-1, (3, -1)).unbind(-2)
    pairs = zip((0, 1, 1, 2, 2), weight.double(), bias.double(), strict=True)
    maps = torch.stack([towers[tower] @ one + shift for tower, one, shift in pairs], dim=1)
    probability = maps.sigmoid().clamp(1e-4, 1 - 1e-4)
    decoded = probability[:, :1], probability[:, 3:], maps[:, 1:3], window.double()
    if smoothing is None:
        found, score = reference.decode(*decoded)
    else:
        found, score = smoothed_decode(*decoded, box, factor, Smoothing(*smoothing))
    return torch.cat((update_box_reference(found, box, size, factor, margin), score[:, None]), dim=1)


@pytest.mark.parametrize(
    ("batch", "grid", "channels", "dtype"),
    [(1, 16, 32, torch.float16), (3, 24, 32, torch.bfloat16), (2, 5, 1, torch.float32), (1, 7, 12, torch.float16)],
)
@pytest.mark.parametrize("smoothing", [None, (0.138, 0.455, 0.65), (1.5, 0.1, 0.3)])
@pytest.mark.parametrize(("size", "margin"), [((480, 640), 10), ((9, 7), 10), ((1080, 1920), 0.3)])
def test_equals_the_ops(batch, grid, channels, dtype, size, margin, smoothing):
    fixed, given = inputs(batch, grid, channels, dtype)
    with guard(grid):
        ours = FrameTail(*fixed)(*given, size, 4.1, margin, smoothing)
    exact = one_after_the_other(*fixed, *given, size, 4.1, margin, smoothing)
    assert ours.dtype == torch.float64 and ours.shape == (batch, 5)
    torch.testing.assert_close(ours[:, :4], exact[:, :4], rtol=1e-6, atol=1e-3)  # of crops up to 1200 pixels wide
    torch.testing.assert_close(ours[:, 4], exact[:, 4], rtol=1e-5, atol=1e-6)


def test_the_first_of_equal_cells_and_saturated_scores():
    """Scores that the clamp makes equal: the window alone decides, and it is symmetric."""
    fixed, (features, box) = inputs(2, 6, 8, torch.float32)
    features[..., :8] *= 1e4 * fixed[0][0].sign()
    ours = FrameTail(*fixed)(features.abs() * fixed[0][0].sign().repeat(3), box, (200, 300), 4.0, 10.0)
    exact = one_after_the_other(*fixed, features.abs() * fixed[0][0].sign().repeat(3), box, (200, 300), 4.0, 10.0)
    assert torch.equal(ours[:, 4], torch.full((2,), 1 - 1e-4).double().to(torch.float32).double())
    torch.testing.assert_close(ours[:, :4], exact[:, :4], rtol=1e-6, atol=1e-3)


@pytest.mark.parametrize("smoothing", [None, (0.138, 0.455, 0.65)])
def test_nan_is_below_everything_and_of_nothing_else_shows(smoothing):
    fixed, (features, box) = inputs(3, 6, 8, torch.float16)
    features[0, 2, 3], features[1] = torch.nan, torch.nan
    with guard(2):
        ours = FrameTail(*fixed)(features, box, (200, 300), 4.0, 10.0, smoothing)
    exact = one_after_the_other(*fixed, features, box, (200, 300), 4.0, 10.0, smoothing)
    assert ours[1].isnan().all() and not ours[[0, 2]].isnan().any()
    torch.testing.assert_close(ours[[0, 2]], exact[[0, 2]], rtol=1e-5, atol=1e-3)


def test_other_sizes_are_refused():
    fixed, (features, box) = inputs(2, 6, 8, torch.float16)
    for wrong in (features[:1], features[:, :, :5], features[..., 1:]):
        with pytest.raises(ValueError, match=r"features must be \(2,6,6,24\)"):
            FrameTail(*fixed)(wrong, box, (200, 300), 4.0, 10.0)


def test_the_guard_sees_planted_faults():
    """A map one cell larger than the features; a result for all targets where the first one's lies."""
    fixed, (features, box) = inputs(2, 6, 8, torch.float16)
    launch = frame_tail._frame_tail
    arguments = (features, *fixed, box)
    rest = {"F": 6, "C": 8, "CELLS": 64, "CHANNELS": 8, "SMOOTH": True, "PDL": False}
    numbers = 200, 300, 4.0, 10.0, 0.1, 0.5, 0.5
    out = torch.empty(2, 5, dtype=torch.float64)
    with guard():
        launch[(2,)](*arguments, out, *numbers, **rest)
    with pytest.raises(InterpreterError, match="load outside"), guard():
        launch[(2,)](*arguments, out, *numbers, **rest | {"F": 7})
    with pytest.raises(InterpreterError, match="store outside"), guard():
        launch[(2,)](*arguments, out[:1], *numbers, **rest)


@pytest.mark.parametrize("smoothing", [None, Smoothing()])
def test_frames(monkeypatch, smoothing):
    """The engine's boxes, of two targets, as those of the reference."""
    torch.manual_seed(0)
    model = build_ostrack(TINY).requires_grad_(False)
    frames = [np.random.default_rng(seed).integers(0, 256, (60, 80, 3), dtype=np.uint8) for seed in range(2)]
    rows, launched = [], []
    call = FrameTail.__call__
    monkeypatch.setattr(FrameTail, "__call__", lambda self, *given: launched.append(1) or call(self, *given))
    for backend in ("reference", "triton"):
        with ops.use(backend):
            engine = Engine(model, "cpu", "float32", smoothing=smoothing)
            engine.add(frames[0], (20.0, 15.0, 22.0, 17.0))
            engine.add(frames[0], (40.0, 25.0, 12.0, 27.0))
            rows.append(engine.step(frames[1]))
        assert len(launched) == (backend == "triton")
    np.testing.assert_allclose(rows[1], rows[0], atol=1e-3)


def test_another_backend_asked_for():
    weight, bias, window = inputs(1, 6, 8, torch.float16)[0]
    assert isinstance(layers.frame_tail(weight, bias, window), FrameTail)
    with ops.use("reference"):
        assert layers.frame_tail(weight, bias, window) is None
