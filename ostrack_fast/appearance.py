"""What a target looks like, apart from the network: the colours inside its box.

A histogram of CIE Lab colours, weighted by an Epanechnikov kernel so that the middle of the box counts most, compared
by the Bhattacharyya coefficient (Comaniciu, Ramesh and Meer, "Kernel-based object tracking", PAMI 2003). It does not
depend on pose, and tells apart what the network takes for the same kind of thing.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import cv2
import numpy as np
from numpy.typing import NDArray

_SIDE = 32
_MIDDLE = np.linspace(-1, 1, _SIDE)
_KERNEL = np.clip(1 - (_MIDDLE[:, None] ** 2 + _MIDDLE[None, :] ** 2), 0, None).ravel()
# Bins of lightness, and of each of the two colour axes, whose range in photographs is about a third of OpenCV's.
_BINS = np.array([10, 18, 18])
_SCALE = np.array([8, 24, 24]) / 255
_OFFSET = np.array([0.5, -3.5, -3.5])


def colours(frame: np.ndarray, box: Sequence[float]) -> NDArray[np.float64]:
    """The colours of a frame (h,w,3) uint8 RGB inside an xywh box, as a histogram (3240,) whose sum is 1.

    Between bins a pixel counts in both, so that a little more light changes little.
    """
    x, y, w, h = box
    into = np.array([[w / _SIDE, 0, x + w / (2 * _SIDE) - 0.5], [0, h / _SIDE, y + h / (2 * _SIDE) - 0.5]])
    how = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    patch = cv2.warpAffine(frame, into, (_SIDE, _SIDE), flags=how, borderMode=cv2.BORDER_REPLICATE)
    lab = cv2.cvtColor(cv2.GaussianBlur(patch, (3, 3), 0), cv2.COLOR_RGB2LAB).reshape(-1, 3)
    place = (lab * _SCALE + _OFFSET).clip(0, _BINS - 1.01)
    low = place.astype(int)
    share = place - low
    histogram = np.zeros(int(_BINS.prod()))
    for corner in product((0, 1), repeat=3):
        weight = _KERNEL * np.where(corner, share, 1 - share).prod(1)
        histogram += np.bincount(np.ravel_multi_index((low + corner).T, tuple(_BINS)), weight, len(histogram))
    return histogram / histogram.sum()


def likeness(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """How alike two histograms are: 0, nothing in common, to 1, equal."""
    return float(np.sqrt(a * b).sum())
