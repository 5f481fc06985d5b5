"""Crops of training pairs: window, jitter, border, and the outline of a mask."""

import numpy as np

from ostrack_fast.boxes import crop_window
from ostrack_fast.training.crops import CameraConfig, CropConfig, View, crop_view, cut, draw_window
from ostrack_fast.training.geometry import bounds, mask_outline


def test_window_follows_the_published_formulas():
    crops = CropConfig(center_jitter=(0, 0), scale_jitter=(0, 0))
    box = (33.0, 41.5, 37.0, 22.0)
    window, inside = draw_window(box, crops, True, np.random.default_rng(0))
    assert (window.left, window.top, window.side) == crop_window(box, 4.0)
    scale = 256 / window.side
    expected = np.array([127.5 - 18.5 * scale, 127.5 - 11 * scale, 37 * scale, 22 * scale]) / 256
    np.testing.assert_allclose(inside, expected, rtol=1e-6)


def test_jitter_has_the_published_spread():
    crops, rng = CropConfig(), np.random.default_rng(0)
    box = (200.0, 200.0, 60.0, 60.0)
    drawn = [draw_window(box, crops, True, rng) for _ in range(2000)]
    kept = [d for d in drawn if d is not None]
    sides = np.log([w.side / 240 for w, _ in kept])
    # The side is the geometric mean of two log-normal factors of deviation 0.25.
    assert abs(sides.std() - 0.25 / np.sqrt(2)) < 0.01
    centers = np.array([b[0] + b[2] / 2 for _, b in kept])
    # Uniform within 1.5 jittered sizes of a crop 4 sizes wide: 0.125 to 0.875.
    assert 0.12 < centers.min() < 0.14 and 0.86 < centers.max() < 0.88


def test_draw_outside_the_crop_is_refused():
    crops = CropConfig(center_jitter=(0, 40))
    drawn = [draw_window((50, 50, 20, 20), crops, True, np.random.default_rng(i)) for i in range(50)]
    assert any(d is None for d in drawn)
    for window_and_box in drawn:
        if window_and_box is not None:
            box = window_and_box[1]
            assert 0 <= box[0] + box[2] / 2 <= 1 and 0 <= box[1] + box[3] / 2 <= 1


def test_cut_is_black_outside_and_never_reads_the_last_row_and_column():
    image = np.full((40, 50, 3), 200, dtype=np.uint8)
    image[-1], image[:, -1] = 255, 255
    still = CropConfig(center_jitter=(0, 0), scale_jitter=(0, 0))
    window, _ = draw_window((30, 20, 20, 20), still, True, np.random.default_rng(0))
    crop = cut(image, window)
    assert crop.shape == (80, 80, 3) and window.side == 80
    assert set(np.unique(crop)) == {0, 200}
    assert (crop[-window.top : -window.top + 39, : 49 - window.left] == 200).all()
    assert not crop[: -window.top].any() and not crop[:, 49 - window.left :].any()


def test_outline_of_a_mask_is_tight():
    mask = np.zeros((20, 30), dtype=np.uint8)
    mask[4:9, 6:13] = 1
    mask[9, 8] = 1
    np.testing.assert_array_equal(bounds(mask_outline(mask)), [6, 4, 7, 6])
    assert mask_outline(np.zeros((5, 5))) is None


def test_boxes_far_larger_than_the_image_are_passed_over():
    """OpenCV would mirror the image a million times, for each pixel of the crop."""
    image, rng = np.zeros((48, 64, 3), np.uint8), np.random.default_rng(0)
    outline = np.array([[10.0, 10.0], [1e9, 12.0], [12.0, 1e9]])
    for view in (
        View(image, np.array([1.0, 1.0, 1e9, 1e9]), None),
        View(image, np.array([5.0, 5.0, 20.0, 20.0]), outline),
    ):
        for _ in range(8):
            assert crop_view(view, CropConfig(32, 64), True, CameraConfig(probability=1.0), rng) is None
