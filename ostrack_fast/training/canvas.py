"""A cut-out on a canvas: how it is made, where to put it in a frame, its one warp, and the blend."""

from __future__ import annotations

from math import floor, log2, sqrt
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from ..data.images import Image
from .geometry import bounds, corners, mask_outline, transform, warp

_MAX_CUTOUT = 224


class Cutout(NamedTuple):
    """An object with soft alpha at halving resolutions, and the hull, in pixels of the first, of alpha > 0.5.

    The images are (h, w, 4) uint8 RGBA: one warp then moves both, and OpenCV warps four channels faster than three.
    """

    images: tuple[Image, ...]
    outline: NDArray[np.float64]


def make_cutout(color: Image, alpha: NDArray[np.uint8]) -> Cutout | None:
    """Trim to what is visible, soften, and build the smaller versions; None when fewer than 64 pixels are opaque."""
    if np.count_nonzero(alpha > 127) < 64:
        return None
    x, y, w, h = cv2.boundingRect((alpha > 12).astype(np.uint8))
    color, alpha = color[y : y + h, x : x + w], alpha[y : y + h, x : x + w]
    if max(w, h) > _MAX_CUTOUT:
        size = (max(2, round(w * _MAX_CUTOUT / max(w, h))), max(2, round(h * _MAX_CUTOUT / max(w, h))))
        color, alpha = (cv2.resize(a, size, interpolation=cv2.INTER_AREA) for a in (color, alpha))
    # A transparent margin keeps the black beyond the image out of the warp's interpolation; its colour is spread from
    # inside, so that no fringe of whatever hides behind alpha 0 shows.
    color = cv2.copyMakeBorder(color, 2, 2, 2, 2, cv2.BORDER_REPLICATE)
    alpha = cv2.copyMakeBorder(alpha, 2, 2, 2, 2, cv2.BORDER_CONSTANT, value=0)
    weight = (alpha > 127).astype(np.float32)
    spread = cv2.blur(color.astype(np.float32) * weight[..., None], (7, 7))
    total = cv2.blur(weight, (7, 7))
    near = (weight == 0) & (total > 1e-3)
    color[near] = (spread[near] / total[near][:, None]).astype(np.uint8)
    outline = mask_outline(alpha > 127)
    if outline is None:
        return None
    images = [with_alpha(color, alpha)]
    while min(images[-1].shape[:2]) >= 16:
        size = (images[-1].shape[1] // 2, images[-1].shape[0] // 2)
        images.append(cv2.resize(images[-1], size, interpolation=cv2.INTER_AREA))
    return Cutout(tuple(images), outline)


def with_alpha(color: Image, alpha: NDArray[np.uint8]) -> Image:
    """(h, w, 3) RGB and (h, w) alpha as one (h, w, 4) image."""
    image = cv2.cvtColor(color, cv2.COLOR_RGB2RGBA)
    image[..., 3] = alpha
    return image


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
