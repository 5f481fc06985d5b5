"""2x3 affine maps, xywh boxes and outlines, in coordinates where pixel i covers [i, i + 1]."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..data.images import Image


def linear_map(rotation: float = 0.0, stretch: float = 0.0, shear: float = 0.0, scale: float = 1.0) -> NDArray:
    """2x2 matrix: aspect changed by exp(2 * stretch) at equal area, sheared, rotated (radians), scaled."""
    c, s = np.cos(rotation), np.sin(rotation)
    a, b = np.exp(stretch), np.exp(-stretch)
    return scale * np.array([[c, -s], [s, c]]) @ np.array([[a, shear * b], [0.0, b]])


def around(center: ArrayLike, linear: NDArray) -> NDArray:
    """The 2x3 map with this 2x2 linear part that keeps `center` in place."""
    fixed = np.asarray(center, dtype=np.float64)
    return np.column_stack((linear, fixed - linear @ fixed))


def compose(a: NDArray, b: NDArray) -> NDArray:
    """The 2x3 map that applies b, then a."""
    out = a[:, :2] @ b
    out[:, 2] += a[:, 2]
    return out


def transform(matrix: NDArray, points: NDArray) -> NDArray:
    """Apply a 2x3 map to (n, 2) points."""
    return points @ matrix[:, :2].T + matrix[:, 2]


def bounds(points: NDArray) -> NDArray:
    """Tight xywh box of (n, 2) points."""
    low, high = points.min(0), points.max(0)
    return np.concatenate((low, high - low))


def corners(box: Sequence[float] | NDArray) -> NDArray:
    """(4, 2) corners of an xywh box."""
    x, y, w, h = box
    return np.array([[x, y], [x + w, y], [x + w, y + h], [x, y + h]], dtype=np.float64)


def mask_outline(mask: NDArray) -> NDArray | None:
    """(n, 2) convex hull, at pixel edges, of what is non-zero; None for less than 4 pixels."""
    y, x = np.nonzero(mask)
    if len(x) < 4:
        return None
    # Only the ends of each row can lie on the hull; pixel i covers [i, i + 1].
    rows, start = np.unique(y, return_index=True)
    left, right = x[start], x[np.append(start[1:], len(x)) - 1] + 1
    points = np.concatenate([np.column_stack((side, rows + d)) for side in (left, right) for d in (0, 1)])
    return cv2.convexHull(points.astype(np.float32))[:, 0].astype(np.float64)


def warp(image: Image, matrix: NDArray, size: tuple[int, int], border: int = cv2.BORDER_CONSTANT) -> Image:
    """Warp to `size` (width, height) by a 2x3 matrix in coordinates where pixel i covers [i, i + 1]."""
    shifted = matrix.copy()
    shifted[:, 2] += 0.5 * (matrix[:, 0] + matrix[:, 1]) - 0.5
    return cv2.warpAffine(image, shifted, size, flags=cv2.INTER_LINEAR, borderMode=border)
