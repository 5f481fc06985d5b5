"""The CUDA kernels of eliminate, restore, crop, decode and update_box, run on the CPU, against the reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from c_abi import BF16, EDTYPE, EINVAL, F16, F32, F64
from emulator import ORDERS, EmulationError

from ostrack_fast.ops import reference
from ostrack_fast.ops.update_box import reference as update_box_reference

TRACKER = [(64, 256, 180), (64, 180, 126), (64, 126, 89), (144, 576, 404)]


def tokens_of(shape, dtype, seed=0) -> np.ndarray:
    values = np.random.default_rng(seed).standard_normal(shape)
    return (values * 1000).astype(dtype) if np.dtype(dtype).kind == "u" else values.astype(dtype)


def scores_of(kind: str, batch: int, search: int) -> np.ndarray:
    score = np.random.default_rng(1).standard_normal((batch, search)).astype(np.float32)
    if kind == "ties":
        score = np.round(score)
    elif kind == "special":
        values = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, -np.nan, 1e-45, -1e-45, 1.0], np.float32)
        score = np.random.default_rng(2).choice(values, (batch, search)).astype(np.float32)
    return score


def expected_order(score: np.ndarray) -> np.ndarray:
    """Descending, NaN last, ties (also -0 and +0) to the lower position."""

    def rank(row: np.ndarray, i: int) -> tuple[bool, float, int]:
        return bool(np.isnan(row[i])), 0.0 if np.isnan(row[i]) else -float(row[i]), i

    return np.array([sorted(range(row.size), key=lambda i: rank(row, i)) for row in score], np.int64)


def check_eliminate(kernels, batch, template, search, keep, channels, dtype, kind="random"):
    tokens = tokens_of((batch, template + search, channels), dtype)
    score = scores_of(kind, batch, search)
    ids = np.stack([np.random.default_rng(b).permutation(2000)[:search] for b in range(batch)]).astype(np.int64)
    out, kept, removed = kernels.eliminate(tokens, score, ids, keep)
    order = expected_order(score)
    np.testing.assert_array_equal(kept, np.take_along_axis(ids, order[:, :keep], 1))
    np.testing.assert_array_equal(removed, np.take_along_axis(ids, order[:, keep:], 1))
    search_rows = np.take_along_axis(tokens[:, template:], order[:, :keep, None], 1)
    np.testing.assert_array_equal(out, np.concatenate((tokens[:, :template], search_rows), 1))
    if kind != "special":
        inputs = (torch.from_numpy(tokens.view(np.int16) if dtype == np.uint16 else tokens), torch.from_numpy(score))
        spec = reference.eliminate(*inputs, torch.from_numpy(ids), keep)
        np.testing.assert_array_equal(out.view(spec[0].numpy().dtype), spec[0].numpy())
        np.testing.assert_array_equal(kept, spec[1].numpy())
        np.testing.assert_array_equal(removed, spec[2].numpy())


@pytest.mark.parametrize(("template", "search", "keep"), TRACKER)
@pytest.mark.parametrize("kind", ["random", "ties", "special"])
def test_eliminate_tracker_sizes(kernels, template, search, keep, kind):
    check_eliminate(kernels, 1, template, search, keep, 96, np.float16, kind)


@pytest.mark.parametrize("dtype", [np.uint16, np.float32, np.float64])
@pytest.mark.parametrize("channels", [1, 2, 4, 33, 768, 1160])
def test_eliminate_row_widths(kernels, channels, dtype):
    """Rows of 2 to 9280 bytes: every access width, rows longer than what is read ahead."""
    check_eliminate(kernels, 2, 3, 21, 15, channels, dtype)


@pytest.mark.parametrize(("template", "search", "keep"), [(0, 5, 0), (0, 5, 5), (4, 1, 1), (2, 0, 0), (1, 1500, 1000)])
def test_eliminate_edges(kernels, template, search, keep):
    check_eliminate(kernels, 2, template, search, keep, 8, np.float32, "ties")


def test_eliminate_misaligned_rows(kernels):
    """An array that starts two bytes off a 16-byte boundary is read by narrower accesses."""
    raw = np.zeros(8 * 16 * 2 + 16, np.uint8)
    start = -raw.ctypes.data % 16 + 2
    tokens = raw[start : start + 8 * 16 * 2].view(np.float16).reshape(1, 8, 16)
    tokens[:] = tokens_of(tokens.shape, np.float16)
    score = scores_of("random", 1, 8)
    out, _, _ = kernels.eliminate(tokens, score, np.arange(8)[None], 5)
    np.testing.assert_array_equal(out[0], tokens[0, expected_order(score)[0, :5]])


@pytest.mark.parametrize(
    ("grid", "kept"), [(16, 256), (16, 180), (16, 126), (16, 89), (24, 199), (5, 7), (1, 0), (3, 9)]
)
@pytest.mark.parametrize(("dtype", "channels"), [(np.uint16, 96), (np.float32, 65), (np.float64, 3)])
def test_restore(kernels, grid, kept, dtype, channels):
    tokens = tokens_of((2, kept, channels), dtype)
    ids = np.stack([np.random.default_rng(b).permutation(grid * grid)[:kept] for b in range(2)]).astype(np.int64)
    out = kernels.restore(tokens, ids, grid)
    inputs = torch.from_numpy(tokens.view(np.int16) if dtype == np.uint16 else tokens)
    spec = reference.restore(inputs, torch.from_numpy(ids), grid).numpy()
    np.testing.assert_array_equal(out.view(spec.dtype), spec)


def frame_of(height, width) -> np.ndarray:
    return np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)


BOXES = {
    "inside": [100.3, 60.7, 40.2, 30.9],
    "half size": [120.0, 100.0, 64.0, 64.0],
    "same size": [150.0, 100.0, 32.0, 32.0],
    "right and bottom": [280.0, 200.0, 50.0, 45.0],
    "left and top": [-20.5, -11.25, 37.0, 21.0],
    "whole frame and more": [0.0, 0.0, 320.0, 240.0],
    "outside": [900.0, 900.0, 20.0, 20.0],
    "tiny": [33.3, 44.4, 0.2, 0.3],
    "half to even": [10.5, 20.5, 30.0, 30.0],
}


@pytest.mark.parametrize("size", [64, 50])
@pytest.mark.parametrize("name", BOXES)
def test_crop_is_bit_exact(kernels, name, size):
    """Every pixel is what OpenCV's resize gives; mean 0 and deviation 1/255 leave the pixel itself."""
    frame, box = frame_of(240, 320), np.array([BOXES[name]])
    patch, scale = kernels.crop(frame, box, 2.0, size, [0, 0, 0], [255, 255, 255])
    left, top, side = reference.crop_window(box[0].tolist(), 2.0)
    pixels = reference.crop_pixels(frame, left, top, side, size)
    np.testing.assert_array_equal(np.rint(patch[0]).astype(np.uint8), pixels.transpose(2, 0, 1))
    assert scale[0] == size / side


def test_crop_random_boxes(kernels):
    rng = np.random.default_rng(0)
    frame = frame_of(97, 131)
    box = np.stack((rng.uniform(-40, 130, 24), rng.uniform(-40, 100, 24), *rng.uniform(1, 60, (2, 24))), 1)
    patch, scale = kernels.crop(frame, box, 3.1, 37, [0, 0, 0], [255, 255, 255])
    for i, one in enumerate(box):
        window = reference.crop_window(one.tolist(), 3.1)
        pixels = reference.crop_pixels(frame, *window, 37)
        np.testing.assert_array_equal(np.rint(patch[i]).astype(np.uint8), pixels.transpose(2, 0, 1))
        assert scale[i] == 37 / window[2]


@pytest.mark.parametrize(("code", "dtype"), [(F32, torch.float32), (F16, torch.float16), (BF16, torch.bfloat16)])
def test_crop_normalizes(kernels, code, dtype):
    frame, box = frame_of(80, 90), np.array([[20.0, 15.0, 30.0, 25.0], [60.0, 60.0, 12.0, 31.0]])
    inverse = 1 / np.array(reference.IMAGE_STD)
    patch, _ = kernels.crop(frame, box, 2.0, 40, reference.IMAGE_MEAN, inverse, code)
    ours = torch.from_numpy(patch.view(np.int16) if code == BF16 else patch).view(dtype)
    spec, _ = reference.crop(torch.from_numpy(frame), torch.from_numpy(box), 2.0, 40, dtype)
    windows = [reference.crop_window(one, 2.0) for one in box.tolist()]
    pixels = np.stack([reference.crop_pixels(frame, *w, 40) for w in windows]).transpose(0, 3, 1, 2)
    mean, std = (np.array(v)[:, None, None] for v in (reference.IMAGE_MEAN, reference.IMAGE_STD))
    exact = torch.from_numpy((pixels / 255.0 - mean) / std)
    assert (ours.double() - exact).abs().max() <= 2 * (spec.double() - exact).abs().max()


@pytest.mark.parametrize(
    "box", [[5.0, 5.0, 0.0, 9.0], [5.0, 5.0, -3.0, 9.0], [np.nan, 5.0, 9.0, 9.0], [0.0, 0.0, 1e30, 1e30]]
)
def test_crop_of_no_box_is_border(kernels, box):
    """A box without area, NaN or beyond all sizes cannot raise on a device: the patch is border, nothing is read."""
    patch, _ = kernels.crop(frame_of(20, 20), np.array([box]), 2.0, 16, [0.5, 0.5, 0.5], [2, 2, 2])
    np.testing.assert_array_equal(patch, np.full_like(patch, -1.0))


@pytest.mark.parametrize("grid", [16, 24, 5, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("windowed", [True, False])
def test_decode(kernels, grid, dtype, windowed):
    generator = torch.Generator().manual_seed(grid)
    score, size, offset = (torch.rand(3, c, grid, grid, generator=generator).to(dtype) for c in (1, 2, 2))
    score[1] = (score[1] * 4).round() / 4  # ties
    window = torch.hann_window(grid + 2, periodic=False)[1:-1]
    window = torch.outer(window, window) if windowed else None
    arrays = [
        m.view(torch.int16).numpy().view(np.uint16) if dtype == torch.bfloat16 else m.numpy()
        for m in (score, size, offset)
    ]
    box, best = kernels.decode(*arrays, None if window is None else window.numpy())
    exact_box, exact_best = reference.decode(score.double(), size.double(), offset.double(), window)
    torch_box, _ = reference.decode(score, size, offset, window)
    np.testing.assert_array_equal(best, exact_best.numpy())
    error = (torch.from_numpy(box).double() - exact_box).abs().max()
    assert error <= max(2 * (torch_box.double() - exact_box).abs().max(), 1e-7)


def test_decode_first_of_ties_and_zeros(kernels):
    score = np.full((1, 1, 6, 6), -1.0, np.float32)
    score[0, 0, 2, 3], score[0, 0, 4, 1] = -0.0, 0.0
    box, _ = kernels.decode(score, np.ones((1, 2, 6, 6), np.float32), np.zeros((1, 2, 6, 6), np.float32))
    np.testing.assert_array_equal(box, np.array([[3 / 6, 2 / 6, 1, 1]], np.float32))


def test_update_box(kernels):
    """To the bit as the reference, on boxes inside, at and beyond the edges of the frame."""
    random = np.random.default_rng(0)
    found = random.uniform(-0.2, 1.2, (200, 4)).astype(np.float32)
    box = np.concatenate((random.uniform(-50, 500, (200, 2)), random.uniform(0.1, 400, (200, 2))), 1)
    moved = kernels.update_box(found, box, (270, 480), 4.0, 10.0)
    expected = update_box_reference(torch.from_numpy(found), torch.from_numpy(box), (270, 480), 4.0, 10.0)
    np.testing.assert_array_equal(moved, expected.numpy())
    found[3, 1] = np.nan
    assert np.isnan(kernels.update_box(found, box, (270, 480), 4.0, 10.0)[3, 1])


@pytest.mark.parametrize("order", ORDERS)
def test_schedules_change_nothing(kernels, order):
    """Repeated ids too, which no caller has: the same map in every order."""
    tokens, ids = tokens_of((1, 60, 70), np.float32), np.random.default_rng(0).integers(0, 49, (1, 60))
    score = scores_of("ties", 1, 60)
    runs = []
    for chosen in ("in turn", order):
        kernels.configure(chosen, seed=3)
        runs.append([kernels.restore(tokens, ids, 7), *kernels.eliminate(tokens, score, ids, 40)])
    for a, b in zip(*runs, strict=True):
        assert a.tobytes() == b.tobytes()


def test_refusals(kernels):
    tokens, ids, score = tokens_of((1, 4, 8), np.float32), np.arange(4)[None], scores_of("random", 1, 4)
    byte = tokens.astype(np.uint8)
    for code, call in [
        (EDTYPE, lambda: kernels.eliminate(byte, score, ids, 2)),
        (EDTYPE, lambda: kernels.restore(byte, ids, 2)),
        (EINVAL, lambda: kernels.eliminate(tokens, score, ids[:, :3].copy(), 2)),
        (EINVAL, lambda: kernels.restore(tokens, ids[:, :3].copy(), 2)),
        (EINVAL, lambda: kernels.decode(*(np.zeros((1, n, 4, 4), np.float32) for n in (1, 2, 1)))),
        (EINVAL, lambda: kernels.restore(tokens, ids, 0)),
        (EINVAL, lambda: kernels.crop(frame_of(4, 4), np.ones((1, 4)), 0.0, 8, [0] * 3, [1] * 3)),
        (EDTYPE, lambda: kernels.crop(frame_of(4, 4), np.ones((1, 4)), 2.0, 8, [0] * 3, [1] * 3, F64)),
    ]:
        with pytest.raises(EmulationError) as error:
            call()
        assert error.value.code == code


def test_empty_batch(kernels):
    out, kept, removed = kernels.eliminate(
        *(np.zeros(s, d) for s, d in (((0, 6, 8), "f4"), ((0, 4), "f4"), ((0, 4), "i8"))), 2
    )
    assert out.shape == (0, 4, 8) and kept.shape == removed.shape == (0, 2)
    assert kernels.restore(np.zeros((0, 2, 8), np.float32), np.zeros((0, 2), np.int64), 2).shape == (0, 8, 2, 2)
