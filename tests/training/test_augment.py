"""Augmentation: each operation, and that pairs stay aligned."""

import numpy as np
import pytest
import torch

from ostrack_fast.ops.reference import IMAGE_MEAN, IMAGE_STD
from ostrack_fast.training.augment import Augment, AugmentConfig, Normalizer, add_noise, adjust, flip_box, motion_blur


@pytest.mark.parametrize(
    ("colours", "expected"),
    [
        ((1, 1, 1, 1, 1), (100, 150, 200)),
        ((1, 1, 1.2, 1.2, 1.2), (120, 180, 240)),
        ((1, 1, 0.5, 1, 2), (50, 150, 255)),
        ((0, 1, 1, 1, 1), (140.75, 140.75, 140.75)),
        ((1.5, 1, 1, 1, 1), (79.625, 154.625, 229.625)),
        ((1, 2, 1, 1, 1), (100**2 / 255, 150**2 / 255, 200**2 / 255)),
    ],
    ids=["as they are", "brightness", "tint, clipped", "gray", "saturation", "gamma"],
)
def test_colours_of_a_batch(colours, expected):
    """Beside an image whose colours stay, as a batch has many."""
    images = torch.tensor((100, 150, 200), dtype=torch.uint8).expand(2, 8, 8, 3)
    out = Normalizer(torch.device("cpu"))(images, torch.tensor([colours, (1, 1, 1, 1, 1)]).float())
    assert out.shape == (2, 3, 8, 8)
    levels = 255 * (out.permute(0, 2, 3, 1) * torch.tensor(IMAGE_STD) + torch.tensor(IMAGE_MEAN))
    torch.testing.assert_close(levels[0], torch.tensor(expected).float().expand(8, 8, 3), atol=1e-3, rtol=0)
    torch.testing.assert_close(levels[1], torch.tensor((100.0, 150, 200)).expand(8, 8, 3), atol=1e-3, rtol=0)
    torch.testing.assert_close(out[1], Normalizer(torch.device("cpu"))(images)[1])


def test_augment_operations():
    image = np.full((64, 64, 3), (100, 150, 200), dtype=np.uint8)
    np.testing.assert_array_equal(adjust(image, 1.2)[0, 0], [120, 180, 240])
    np.testing.assert_array_equal(adjust(image, 1.0, tint=np.array([0.5, 1, 2]))[0, 0], [50, 150, 255])
    assert adjust(np.zeros_like(image), 1.3, 0.5).max() == 0
    noisy = add_noise(image, 10.0, np.random.default_rng(0)).astype(np.float64) - image
    assert abs(noisy.std() - 10) < 1 and abs(noisy.mean()) < 1
    dot = np.zeros((33, 33, 3), dtype=np.uint8)
    dot[16, 16] = 250
    streak = motion_blur(dot, 8.0, 0.0)[..., 0]
    assert np.count_nonzero(streak[16]) == 9 and np.count_nonzero(streak) == 9
    np.testing.assert_allclose(flip_box(np.array([0.1, 0.2, 0.3, 0.4])), [0.6, 0.2, 0.3, 0.4])


def test_published_augmentation_keeps_pairs_aligned():
    rng = np.random.default_rng(0)
    ramp = np.tile(np.arange(50, 114, dtype=np.uint8)[None, :, None], (64, 1, 3)) + np.uint8([0, 20, 40])
    augment, flipped, gray = Augment(AugmentConfig()), 0, 0
    for _ in range(400):
        a, b = augment((ramp, ramp), rng)
        assert a.flipped == b.flipped
        assert (a.image[0, 0, 0] > a.image[0, -1, 0]) == a.flipped == (b.image[0, 0, 0] > b.image[0, -1, 0])
        flipped += a.flipped
        assert a.colours[0] == b.colours[0] and a.colours[0] in (0, 1)
        gray += a.colours[0] == 0
        for one in (a, b):
            assert one.colours[1] == 1 and 0.8 <= one.colours[2] <= 1.2 and np.ptp(one.colours[2:]) == 0
    assert abs(flipped / 400 - 0.5) < 0.1 and 5 <= gray <= 40


def test_a_tint_is_shared_and_leaves_gray_images_gray():
    rng, image = np.random.default_rng(0), np.zeros((16, 16, 3), dtype=np.uint8)
    augment = Augment(AugmentConfig(gray=0.3, tint=0.1, brightness=0.2, gamma=0.2))
    drawn = [[one.colours for one in augment((image, image), rng)] for _ in range(200)]
    for a, b in drawn:
        np.testing.assert_allclose(a[2:] / a[2], b[2:] / b[2], rtol=1e-5)
        assert (np.ptp(a[2:]) == 0) == (a[0] == 0)
    exponents = np.log([one[1] for pair in drawn for one in pair])
    assert np.std(exponents) == pytest.approx(0.2, rel=0.15)
