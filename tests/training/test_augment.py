"""Augmentation: each operation, and that pairs stay aligned."""

import numpy as np

from ostrack_fast.training.augment import Augment, AugmentConfig, add_noise, adjust, flip_box, motion_blur, saturate


def test_augment_operations():
    image = np.full((64, 64, 3), (100, 150, 200), dtype=np.uint8)
    np.testing.assert_array_equal(adjust(image, 1.2)[0, 0], [120, 180, 240])
    np.testing.assert_array_equal(adjust(image, 1.0, tint=np.array([0.5, 1, 2]))[0, 0], [50, 150, 255])
    assert adjust(np.zeros_like(image), 1.3, 0.5).max() == 0
    gray = saturate(image, 0.0)[0, 0]
    assert np.ptp(gray) <= 1 and abs(int(gray[0]) - 141) <= 1
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
        (a, b), flips = augment((ramp, ramp), rng)
        assert flips[0] == flips[1]
        assert (a[0, 0, 0] > a[0, -1, 0]) == flips[0] == (b[0, 0, 0] > b[0, -1, 0])
        flipped += flips[0]
        is_gray = np.ptp(a[5, 5]) == 0
        assert is_gray == (np.ptp(b[5, 5]) == 0)
        gray += is_gray
        assert 0.78 < a[..., 1].mean() / ramp[..., 1].mean() < 1.22
    assert abs(flipped / 400 - 0.5) < 0.1 and 5 <= gray <= 40
