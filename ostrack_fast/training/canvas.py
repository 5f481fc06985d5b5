"""Cut-outs on a canvas: where to put one in a frame, its one warp, and the blend."""

from __future__ import annotations

from math import floor, log2, sqrt
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from ..data.images import Image
from .cutouts import Cutout
from .geometry import bounds, corners, transform, warp


def pose_at(cutout: Cutout, linear: NDArray, extent: float, center: NDArray) -> NDArray:
    """2x3 map that gives the outline's box sqrt(w*h) = extent and this centre."""
    box = bounds(cutout.outline @ linear.T)
    scale = extent / sqrt(box[2] * box[3])
    return np.column_stack((linear * scale, center - (box[:2] + 0.5 * box[2:]) * scale))


def place(
    cutout: Cutout, linear: NDArray, extent: float, center: NDArray, frame: NDArray, slack: float
) -> NDArray | None:
    """`pose_at` with the centre moved so that at most `slack` of the box, in each direction, leaves the frame."""
    pose = pose_at(cutout, linear, extent, center)
    box = bounds(transform(pose, cutout.outline))
    margin = (0.5 - slack) * box[2:] + 1
    if (2 * margin > frame).any():
        return None
    pose[:, 2] += np.clip(center, margin, frame - margin) - center
    return pose


def visible_box(outline: NDArray, frame: NDArray) -> NDArray | None:
    """Box of the part of a convex outline that lies in the frame."""
    box = bounds(outline)
    if (box[:2] >= 0).all() and (box[:2] + box[2:] <= frame).all():
        return box
    hull = cv2.convexHull(outline.astype(np.float32))
    area, inner = cv2.intersectConvexConvex(hull, corners((0, 0, *frame)).astype(np.float32))
    return bounds(inner[:, 0].astype(np.float64)) if area > 0 else None


class Layer(NamedTuple):
    """A rendered cut-out: where it lies on the canvas, its colours, and its alpha in [0, 1]."""

    rows: slice
    columns: slice
    color: Image
    alpha: NDArray[np.float32]


def render(cutout: Cutout, matrix: NDArray, shape: tuple[int, int]) -> Layer | None:
    """Warp a cut-out onto a canvas of `shape` (height, width); None when it falls outside.

    Args:
        matrix: 2x3, pixels of the cut-out to pixels of the canvas, pixel i covering [i, i + 1].
    """
    height, width = cutout.images[0].shape[:2]
    low = transform(matrix, corners((0, 0, width, height)))
    x1, y1 = np.maximum(np.floor(low.min(0)).astype(int), 0)
    x2, y2 = np.minimum(np.ceil(low.max(0)).astype(int), (shape[1], shape[0]))
    if x2 <= x1 or y2 <= y1:
        return None
    scale = sqrt(abs(matrix[0, 0] * matrix[1, 1] - matrix[0, 1] * matrix[1, 0]))
    level = min(max(floor(log2(1 / max(scale, 1e-6)) + 0.3), 0), len(cutout.images) - 1)
    image = cutout.images[level]
    local = matrix.copy()
    local[:, 0] *= width / image.shape[1]
    local[:, 1] *= height / image.shape[0]
    local[:, 2] -= (x1, y1)
    moved = warp(image, local, (int(x2 - x1), int(y2 - y1)))
    alpha = cv2.extractChannel(moved, 3) * np.float32(1 / 255)
    return Layer(slice(y1, y2), slice(x1, x2), cv2.cvtColor(moved, cv2.COLOR_RGBA2RGB), alpha)


def blend(canvas: Image, layer: Layer) -> None:
    """Lay a rendered cut-out over the canvas, in place."""
    below = np.ascontiguousarray(canvas[layer.rows, layer.columns])
    canvas[layer.rows, layer.columns] = cv2.blendLinear(layer.color, below, layer.alpha, 1 - layer.alpha)
