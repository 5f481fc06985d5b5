"""Another object of the target's kind in a real video: the target itself, as other frames show it."""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from ..data.images import Image
from .augment import adjust
from .canvas import Cutout, blend, pose_at, render
from .geometry import bounds, corners, linear_map, transform

_TRIES = 12
_SHRINK = 0.96
_LEAST_SEEN = 0.5


def draw_look(cutouts: Mapping[int, Cutout], template: int, search: int, rng: Generator) -> Cutout | None:
    """The target as it looks in one of its video's frames, drawn from the half that lies farthest from the template's.

    In a nearer frame it may be more like the template than the target of the search image is, and the pair would teach
    the wrong answer. Neither of the pair's own two frames is drawn.

    Args:
        cutouts: those of a video, by frame. template, search: frames of the pair.

    Returns:
        None when there is no such frame.
    """
    others = sorted((frame for frame in cutouts if frame not in (template, search)), key=lambda f: -abs(f - template))
    far = others[: (len(others) + 1) // 2]
    return cutouts[far[int(rng.integers(len(far)))]] if far else None


def paste_beside(region: Image, box: NDArray, cutout: Cutout, rng: Generator) -> bool:
    """Paste a cut-out beside the target, in place, a little turned, recoloured and scaled, half of the time mirrored.

    Nothing of it, its soft edge included, reaches into the target's box, so it never covers the target; at least half
    of it lies in the region.

    Args:
        region: (h,w,3) uint8 RGB, what of a search crop lies in the image.
        box: the target's xywh in pixels of the region.

    Returns:
        False where none of a few draws has room beside the target: the region is as it was.
    """
    height, width = region.shape[:2]
    extent, centre = sqrt(box[2] * box[3]), box[:2] + 0.5 * box[2:]
    whole = corners((0, 0, *cutout.images[0].shape[1::-1]))
    for number in range(_TRIES):
        linear = linear_map(rng.normal(0, 0.1), rng.normal(0, 0.06)) * (1 if rng.random() < 0.5 else -1, 1)
        # A target that fills the image leaves room only for a smaller one.
        size = extent * np.exp(rng.normal(-0.1, 0.2)) * _SHRINK**number
        pose = pose_at(cutout, linear, size, centre)
        space = bounds(transform(pose, whole))
        angle = rng.uniform(0, 2 * np.pi)
        # More often at the side than above or below: most things stand on the same ground.
        toward = np.array([np.cos(angle), 0.5 * np.sin(angle)])
        # How far apart the centres of both boxes are when no pixel belongs to both, and up to a target's size more.
        apart = float(np.min((0.5 * (space[2:] + box[2:]) + 2) / np.maximum(np.abs(toward), 1e-9)))
        shift = centre + toward * (apart + rng.uniform(0, extent)) - (space[:2] + 0.5 * space[2:])
        space[:2] += shift
        seen = np.minimum(space[:2] + space[2:], (width, height)) - np.maximum(space[:2], 0)
        if (seen <= 0).any() or seen.prod() < _LEAST_SEEN * space[2:].prod():
            continue
        pose[:, 2] += shift
        layer = render(cutout, pose, (height, width))
        if layer is None or not layer.alpha.any():
            continue
        bright, gamma = np.exp(rng.normal(0, (0.1, 0.08)))
        blend(region, layer._replace(color=adjust(layer.color, bright, gamma, np.exp(rng.normal(0, 0.06, 3)))))
        return True
    return False
