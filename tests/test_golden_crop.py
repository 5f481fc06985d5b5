"""Crops and normalization against the published code (tests/golden/processing.npz)."""

from pathlib import Path

import numpy as np
import pytest
import torch

from ostrack_fast import ops
from ostrack_fast.boxes import crop_window
from ostrack_fast.ops import reference

from .golden import seeded

GOLDEN = np.load(Path(__file__).parent / "golden" / "processing.npz")
FACTORS = {128: 2.0, 256: 4.0, 384: 5.0}


@pytest.fixture(scope="module")
def frame():
    image = seeded.image("frame", 1, 320, 1)[0, :, :240].permute(1, 2, 0).numpy()
    low, high = image.min(), image.max()
    return ((image - low) / (high - low) * 255).astype(np.uint8)


@pytest.mark.parametrize("size", FACTORS)
@pytest.mark.parametrize("number", range(6))
def test_crops_are_bit_exact(frame, number, size):
    left, top, side = crop_window(GOLDEN["boxes"][number], FACTORS[size])
    crop = reference.crop_pixels(frame, left, top, side, size)
    assert np.array_equal(crop[::4, ::4], GOLDEN[f"crop_{number}_{size}"])
    assert np.array_equal(crop.sum((0, 1), dtype=np.int64), GOLDEN[f"crop_sum_{number}_{size}"])


@pytest.mark.parametrize("size", FACTORS)
def test_resize_factors_and_normalization(device, frame, size):
    box = torch.from_numpy(GOLDEN["boxes"]).to(device)
    patch, scale = ops.crop(torch.from_numpy(frame).to(device), box, FACTORS[size], size)
    expected = [GOLDEN[f"resize_factor_{number}_{size}"] for number in range(6)]
    np.testing.assert_allclose(scale.cpu().numpy(), expected, rtol=1e-12)
    if size == 256:
        # Stored for every 16th pixel of the first crop.
        normalized = patch[:1, :, ::16, ::16].cpu()
        torch.testing.assert_close(normalized, torch.from_numpy(GOLDEN["normalized"]), rtol=1e-6, atol=1e-6)
