"""Smoothing: the formula against plain numbers, and the engine's frames against it."""

from math import ceil, exp, sqrt

import pytest
import torch

from ostrack_fast import Tracker, ops
from ostrack_fast.locator import CLIP_MARGIN, hann_window
from ostrack_fast.smoothing import Smoothing, smoothed_decode

from .tiny_tracker import BOX, TINY, assert_many_as_each_alone, frames, tiny_model


def random_maps(batch, grid, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(batch, channels, grid, grid, generator=generator) * 0.9 + 0.05 for channels in (1, 2, 2)]


def by_hand(maps, window, box, factor, settings):
    """PySOT's steps in Python's floats, cell by cell, for one target."""
    score, size, offset = (each[0].double().numpy() for each in maps)
    side = ceil(sqrt(box[2] * box[3]) * factor)
    old_w, old_h = box[2] / side, box[3] / side

    def padded(w, h):
        pad = (w + h) * 0.5
        return sqrt((w + pad) * (h + pad))

    best, chosen = -1.0, None
    for y in range(score.shape[1]):
        for x in range(score.shape[2]):
            w, h = size[:, y, x]
            s, r = padded(w, h) / padded(old_w, old_h), (old_w / old_h) / (w / h)
            penalty = exp(-(max(s, 1 / s) * max(r, 1 / r) - 1) * settings.penalty)
            response = penalty * score[0, y, x] * (1 - settings.influence) + window[y, x] * settings.influence
            if response > best:
                best, chosen = response, (x, y)
    x, y = chosen
    w, h = size[:, y, x]
    grid = score.shape[1]
    return (
        (x + offset[0, y, x]) / grid, (y + offset[1, y, x]) / grid,
        old_w * settings.keep + w * (1 - settings.keep), old_h * settings.keep + h * (1 - settings.keep),
    ), score[0, y, x]  # fmt: skip


@pytest.mark.parametrize("settings", [Smoothing(), Smoothing(2.0, 0.1, 0.3), Smoothing(0.5, 0.0, 0.0)])
@pytest.mark.parametrize("grid", [4, 12])
def test_the_published_steps(device, settings, grid):
    boxes = torch.tensor([BOX, (5.0, 9.0, 30.0, 90.0), (0.0, 0.0, 61.5, 60.25)], dtype=torch.float64)
    for seed in range(4):
        maps, window = random_maps(3, grid, seed), hann_window(grid)
        arguments = [each.to(device) for each in (*maps, window, boxes)]
        found, score = (each.cpu() for each in smoothed_decode(*arguments, 4.0, settings))
        assert found.dtype == score.dtype == torch.float32
        for row in range(3):
            one = [each[row : row + 1] for each in maps]
            place, value = by_hand(one, window.double().numpy(), boxes[row].tolist(), 4.0, settings)
            assert found[row].tolist() == pytest.approx(place, abs=1e-6) and score[row].item() == pytest.approx(value)


def test_without_strength_only_the_window_differs():
    maps, window = random_maps(2, 8), hann_window(8)
    box = torch.tensor([BOX, BOX], dtype=torch.float64)
    found, score = smoothed_decode(*maps, window, box, 4.0, Smoothing(0, 0, 0))
    expected = ops.decode(*maps, None)
    torch.testing.assert_close((found, score), expected, rtol=0, atol=1e-7)


def test_nan_is_no_box():
    maps = random_maps(1, 6)
    maps[0][:] = torch.nan
    found, score = smoothed_decode(*maps, hann_window(6), torch.tensor([BOX], dtype=torch.float64), 4.0, Smoothing())
    assert score.isnan().all() and found.isfinite().all(), "the first cell, as decode"


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def test_a_frame_with_and_without(model):
    """Off is bit-identical; on, a frame is crop, network, `smoothed_decode` and box update."""
    plain, off, on = (
        Tracker(model, "cpu", "float32", **kwargs) for kwargs in ({}, {"smoothing": False}, {"smoothing": True})
    )
    first, *rest = frames(5)
    for tracker in (plain, off, on):
        tracker.initialize(first, BOX)
    for frame in rest:
        expected = plain.track(frame)
        assert off.track(frame) == expected
        engine, around = on.engine, torch.tensor(on.engine.boxes, dtype=torch.float64)
        search, _ = ops.crop(torch.from_numpy(frame), around, TINY.search_factor, TINY.search_size)
        with torch.no_grad():
            *maps, _ = engine._locator.maps(engine._targets.rows(slice(1)), search)
        found, score = smoothed_decode(*maps, engine._locator.window, around, TINY.search_factor, Smoothing())
        moved = ops.update_box(found, around, (200, 300), TINY.search_factor, CLIP_MARGIN)
        result = on.track(frame)
        assert list(result.box) == moved[0].tolist() and result.score == score.item()
        looked = (engine.look(frame, 0, [BOX]), plain.engine.look(frame, 0, [BOX]))
        assert looked[0] == looked[1], "a look at some place is not compared with the box before"


def test_many_targets_as_each_alone(model):
    assert_many_as_each_alone(model, smoothing=Smoothing(keep=0.5))


def test_settings_out_of_range_are_told():
    with pytest.raises(ValueError, match=r"keep=1\.5 must lie in"):
        Smoothing(keep=1.5)
