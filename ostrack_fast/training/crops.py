"""The two crops of a training pair: sizes and jitter, the window around a target, and the camera it is seen through."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import exp, sqrt
from typing import NamedTuple

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from ..boxes import crop_window
from ..data.images import Image
from ..ops.crop import crop_pixels
from ..settings import check_ranges
from .geometry import around, bounds, compose, corners, linear_map, transform, warp

_FAR_JITTER = 0.5
_TRIES = 8
# Of the larger side of an image: further away no window shows a target.
_FAR = 100
# The box of a search crop without the target: nothing learns from it, but it must be one.
_ANYWHERE = np.array([0.25, 0.25, 0.5, 0.5], dtype=np.float32)


@dataclass(frozen=True)
class CropConfig:
    """Sizes and jitter of the crops. The defaults are those of the published 256 model.

    Args:
        template_size, search_size: side of the crops, pixels.
        template_factor, search_factor: side of the crop over sqrt(w*h) of the target.
        center_jitter, scale_jitter: (template, search). The crop is made around a box of size
            w, h times exp(scale_jitter * N(0, 1)), each its own, and of centre moved by up to
            half of center_jitter times sqrt(w*h) of that box.
        far: probability that a search crop's scale has the jitter 0.5 instead: a tracker whose box drifts sees its
            target much too large or too small.
        absent: probability that the target is not in the search crop, which shows another part of its surroundings.
        gap_growth: share of the run over which `reach` grows from a tenth to 1: easy pairs first.
        reach: share of the largest distance between a video's two images that a pair may have.
    """

    template_size: int = 128
    search_size: int = 256
    template_factor: float = 2.0
    search_factor: float = 4.0
    center_jitter: tuple[float, float] = (0.0, 3.0)
    scale_jitter: tuple[float, float] = (0.0, 0.25)
    far: float = 0.0
    absent: float = 0.0
    gap_growth: float = 0.0
    reach: float = 1.0

    def __post_init__(self) -> None:
        if min(self.template_size, self.search_size) < 16:
            raise ValueError(f"crops of {self.template_size} and {self.search_size} pixels: both need at least 16")
        check_ranges(
            self, template_size=(16, 4096), search_size=(16, 4096), template_factor=(0.1, 100),
            search_factor=(0.1, 100), center_jitter=(0, 100), scale_jitter=(0, 10), far=(0, 1), absent=(0, 0.9),
            gap_growth=(0, 1), reach=(1e-3, 1),
        )  # fmt: skip


class Pair(NamedTuple):
    """Two square uint8 RGB crops of any side, and the target in them: xywh over the side of the final crop.

    If the search crop does not show the target, `present` is False and `search_box` means nothing.
    """

    template: Image
    template_box: NDArray[np.float32]
    search: Image
    search_box: NDArray[np.float32]
    present: bool = True


class Window(NamedTuple):
    """A square crop of an image: left, top, side in image pixels, and the size it is resized to."""

    left: int
    top: int
    side: int
    size: int

    @property
    def native(self) -> int:
        """Side at which to work: the crop's own resolution, unless it is shrunk anyway."""
        return min(self.side, self.size)

    def matrix(self) -> NDArray[np.float64]:
        """2x3 map from image to native crop, in coordinates where pixel i covers [i, i + 1]."""
        scale = self.native / self.side
        return np.array([[scale, 0, -self.left * scale], [0, scale, -self.top * scale]])


def draw_window(
    box: Sequence[float] | NDArray, crops: CropConfig, search: bool, rng: Generator
) -> tuple[Window, NDArray[np.float32]] | None:
    """Jitter the xywh box, put the crop around it; the window and the true box in it (normalized, see `Pair`).

    None when the target's centre falls outside the crop or the crop is less than 8 pixels wide.
    Source: published `_get_jittered_box`, `sample_target` and `transform_image_to_crop`.
    """
    factor = crops.search_factor if search else crops.template_factor
    size = crops.search_size if search else crops.template_size
    x, y, w, h = (float(v) for v in box)
    jitter = crops.scale_jitter[search]
    if search and crops.far and rng.random() < crops.far:
        jitter = _FAR_JITTER
    # Plain floats: NumPy's take several times as long one at a time.
    jw, jh = (side * exp(jitter * draw) for side, draw in zip((w, h), rng.standard_normal(2).tolist(), strict=True))
    reach = sqrt(jw * jh) * crops.center_jitter[search]
    cx, cy = x + 0.5 * w, y + 0.5 * h
    jx, jy = (c + reach * (draw - 0.5) for c, draw in zip((cx, cy), rng.random(2).tolist(), strict=True))
    left, top, side = crop_window((jx - 0.5 * jw, jy - 0.5 * jh, jw, jh), factor)
    scale = size / side
    bx, by = (size - 1) / 2 + (cx - jx) * scale, (size - 1) / 2 + (cy - jy) * scale
    if side < 8 or not (0 <= bx <= size - 1 and 0 <= by <= size - 1):
        return None
    inside = np.array([bx - 0.5 * w * scale, by - 0.5 * h * scale, w * scale, h * scale]) / size
    return Window(left, top, side, size), inside.astype(np.float32)


def cut(image: Image, window: Window) -> Image:
    """The window's native crop, as the op `crop` reads it: black outside the image and at its last column and row."""
    return crop_pixels(image, window.left, window.top, window.side, window.native)


def in_frame(window: Window, frame: Sequence[float]) -> tuple[slice, slice]:
    """Rows and columns of a native crop that show a frame of (width, height) pixels."""
    n = window.native
    scale = n / window.side
    rows, columns = (
        slice(*(min(max(round((edge - start) * scale), 0), n) for edge in (0, extent)))
        for start, extent in ((window.top, frame[1]), (window.left, frame[0]))
    )
    return rows, columns


def blacken(crop: Image, window: Window, frame: Sequence[float]) -> None:
    """Make a native crop black, in place, where it lies outside a frame of (width, height) pixels."""
    rows, columns = in_frame(window, frame)
    crop[: rows.start] = 0
    crop[rows.stop :] = 0
    crop[:, : columns.start] = 0
    crop[:, columns.stop :] = 0


class View(NamedTuple):
    """An image, the target's xywh box in it, and, where known, points whose hull is the target's outline."""

    image: Image
    box: NDArray
    outline: NDArray | None


@dataclass(frozen=True)
class CameraConfig:
    """Random camera of a real image, drawn for each image of a pair. A box without an outline is never rotated.

    Args:
        probability: of any change at all.
        rotation: standard deviation, degrees. stretch: of half the log aspect ratio. shear: of the shear.
    """

    probability: float = 0.5
    rotation: float = 5.0
    stretch: float = 0.06
    shear: float = 0.04

    def __post_init__(self) -> None:
        check_ranges(self, probability=(0, 1), rotation=(0, 180), stretch=(0, 2), shear=(0, 2))


DEFAULT_CAMERA = CameraConfig()


class Crop(NamedTuple):
    """A native crop of a view, the window that it shows, and the target's box in it (normalized, see `Pair`)."""

    image: Image
    box: NDArray[np.float32]
    window: Window


def crop_view(view: View, crops: CropConfig, search: bool, camera: CameraConfig, rng: Generator) -> Crop | None:
    """Crop of a view seen through a random camera; None when the draw is not usable."""
    height, width = view.image.shape[:2]
    x, y, w, h = view.box
    if x >= width or y >= height or x + w <= 0 or y + h <= 0:
        return None  # an annotation outside its image: the crop would be black
    if rng.random() >= camera.probability:
        drawn = draw_window(view.box, crops, search, rng)
        return None if drawn is None else Crop(cut(view.image, drawn[0]), drawn[1], drawn[0])
    rotation, stretch, shear = rng.standard_normal(3) * (camera.rotation * np.pi / 180, camera.stretch, camera.shear)
    outline = view.outline
    if outline is None:
        outline, rotation, shear = corners(view.box), 0.0, 0.0
    moved = around(view.box[:2] + 0.5 * view.box[2:], linear_map(rotation, stretch, shear))
    drawn = draw_window(bounds(transform(moved, outline)), crops, search, rng)
    if drawn is None:
        return None
    window, box = drawn
    if max(abs(window.left), abs(window.top), window.side) > _FAR * max(width, height):
        return None  # OpenCV mirrors the image once for each of its lengths: for a wrong box it takes minutes
    # Mirrored beyond its border, then black where the unmoved image ends: a real frame has upright edges.
    crop = warp(view.image, compose(window.matrix(), moved), (window.native, window.native), cv2.BORDER_REFLECT_101)
    blacken(crop, window, view.image.shape[1::-1])
    return Crop(crop, box, window)


def crop_elsewhere(view: View, crops: CropConfig, rng: Generator) -> Image | None:
    """A search crop of the view that shows nothing of the target's box; None when a few draws find none."""
    height, width = view.image.shape[:2]
    x, y, w, h = view.box
    for _ in range(_TRIES):
        centre = rng.random(2) * (width, height)
        drawn = draw_window((*(centre - 0.5 * view.box[2:]), w, h), crops, True, rng)
        if drawn is None:
            continue
        left, top, side, _ = drawn[0]
        if x >= left + side or x + w <= left or y >= top + side or y + h <= top:
            return cut(view.image, drawn[0])
    return None


def crop_pair(
    template: View,
    search: View,
    crops: CropConfig,
    camera: CameraConfig,
    rng: Generator,
    beside: Callable[[Image, NDArray], None] | None = None,
) -> Pair | None:
    """Crops of two views of one target, or None when a crop is not usable.

    Args:
        beside: changes a search crop that shows the target, in place: what of it lies in the image, and the target's
            xywh box in pixels of that.
    """
    first = crop_view(template, crops, False, camera, rng)
    if first is None:
        return None
    if crops.absent and rng.random() < crops.absent:
        elsewhere = crop_elsewhere(search, crops, rng)
        return None if elsewhere is None else Pair(first.image, first.box, elsewhere, _ANYWHERE, False)
    second = crop_view(search, crops, True, camera, rng)
    if second is None:
        return None
    if beside is not None:
        rows, columns = in_frame(second.window, search.image.shape[1::-1])
        box = second.box * np.float64(second.window.native)
        beside(second.image[rows, columns], box - (columns.start, rows.start, 0, 0))
    return Pair(first.image, first.box, second.image, second.box)
