"""Photos without red and targets of nothing but red, and what finds these in a crop again."""

import cv2
import numpy as np

from ostrack_fast.training.augment import AugmentConfig
from ostrack_fast.training.crops import CameraConfig

RED = (230, 20, 20)
PLAIN = AugmentConfig(gray=0, flip=0, brightness=0)
STILL = CameraConfig(probability=0)


def texture(rng, height, width):
    """A gray-green photo without any red."""
    image = cv2.resize(rng.integers(0, 255, (height // 8, width // 8), dtype=np.uint8), (width, height))
    return np.stack((image // 4, image // 2 + 60, image // 3 + 40), axis=-1)


def save(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    channels = image[..., [2, 1, 0, 3]] if image.shape[2] == 4 else image[..., ::-1]
    assert cv2.imwrite(str(path), channels)


def red_box(image):
    """xywh, in pixels from edge to edge, of what is red."""
    image = image.astype(np.int16)
    y, x = np.nonzero((image[..., 0] > 120) & (image[..., 1] < 90) & (image[..., 2] < 90))
    return np.array([x.min(), y.min(), x.max() + 1 - x.min(), y.max() + 1 - y.min()])


def assert_box_marks_red(image, box, tolerance):
    """The normalized box lies on the red pixels, if these do not touch the border of the crop."""
    size = image.shape[0]
    seen = red_box(image)
    if (seen[:2] > 0).all() and (seen[:2] + seen[2:] < size).all():
        expected = box.astype(np.float64) * size
        np.testing.assert_allclose(seen, expected, atol=tolerance)
        return 1
    return 0
