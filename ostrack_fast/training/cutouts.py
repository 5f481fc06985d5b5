"""Cut-outs: objects with soft alpha, from images with alpha, even backgrounds, outlines, masks and random shapes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import pi
from pathlib import Path

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from ..data.images import Image, decode_image, list_images, read_image
from ..settings import nearest
from .canvas import Cutout, make_cutout, with_alpha
from .coco import CocoImages
from .dataset import Sources, SourceSettings
from .geometry import mask_outline
from .photos import textured_window
from .videos import VideoFolder

_SHAPE_SIDE = 64
Shape = tuple[NDArray[np.uint8], NDArray[np.float64]]


@dataclass(frozen=True)
class CutoutGroup:
    """Cut-outs of one object: several where it comes from a video, in order of time; and the name of its kind."""

    cutouts: tuple[Cutout, ...]
    kind: str


def folder_cutouts(folder: str | Path) -> list[CutoutGroup]:
    """Every image with an alpha channel under a folder; the kind is the name of its own folder.

    Raises:
        FileNotFoundError: when the folder is missing, empty, or has no image with alpha.
        ValueError: for an image that cannot be decoded.
    """
    groups = []
    for path in list_images(Path(folder), recursive=True):
        image = decode_image(path, cv2.IMREAD_UNCHANGED)
        if image.ndim != 3 or image.shape[2] != 4 or image.dtype != np.uint8 or image[..., 3].min() > 127:
            continue
        made = make_cutout(np.ascontiguousarray(image[..., 2::-1]), np.ascontiguousarray(image[..., 3]))
        if made is not None:
            groups.append(CutoutGroup((made,), path.parent.name))
    if not groups:
        raise FileNotFoundError(f"{folder} holds no image with an alpha channel")
    return groups


def plain_background_cutouts(folder: str | Path, tolerance: int = 12) -> list[CutoutGroup]:
    """Objects photographed before an even background: what a flood from the image border does not reach.

    Images whose border is not even, or whose object fills less than 8 % or more than 85 %, are left out; the kind is
    the name of the image's folder. Returns an empty list when no image qualifies.

    Args:
        tolerance: half the largest difference from the border's median colour, in gray levels of a channel, that
            still counts as background.
    """
    groups = []
    for path in list_images(Path(folder), recursive=True):
        image = read_image(path)
        border = np.concatenate((image[0], image[-1], image[:, 0], image[:, -1])).astype(np.int16)
        ground = np.median(border, axis=0)
        even = np.abs(border - ground).max(1) <= 2 * tolerance
        if even.mean() < 0.9:
            continue
        padded = cv2.copyMakeBorder(image, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=ground.tolist())
        reached = np.zeros((padded.shape[0] + 2, padded.shape[1] + 2), dtype=np.uint8)
        flags = 4 | (255 << 8) | cv2.FLOODFILL_MASK_ONLY | cv2.FLOODFILL_FIXED_RANGE
        cv2.floodFill(padded, reached, (0, 0), 0, (2 * tolerance,) * 3, (2 * tolerance,) * 3, flags)
        solid = cv2.morphologyEx(255 - reached[2:-2, 2:-2], cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
        _, labels, stats, _ = cv2.connectedComponentsWithStats(solid)
        if len(stats) < 2:
            continue
        largest = 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA]))
        if not 0.08 <= stats[largest, cv2.CC_STAT_AREA] / solid.size <= 0.85:
            continue
        made = make_cutout(image, cv2.blur(np.where(labels == largest, 255, 0).astype(np.uint8), (3, 3)))
        if made is not None:
            groups.append(CutoutGroup((made,), path.parent.name))
    return groups


def whole_cutouts(folder: str | Path) -> list[CutoutGroup]:
    """Whole photos as soft-edged ellipses or rounded rectangles, for photos that their object fills (faces)."""
    groups = []
    for number, path in enumerate(list_images(Path(folder), recursive=True)):
        image = read_image(path)
        axes = ((np.arange(n) + 0.5) / n * 2 - 1 for n in image.shape[1::-1])
        x, y = np.meshgrid(*axes)
        power = 2 if number % 2 else 5
        inside = 0.96 - (np.abs(x) ** power + np.abs(y) ** power) ** (1 / power)
        made = make_cutout(image, np.clip(127.5 + 1500 * inside, 0, 255).astype(np.uint8))
        if made is not None:
            groups.append(CutoutGroup((made,), path.parent.name))
    return groups


def coco_cutouts(coco: CocoImages, min_side: float = 40) -> list[CutoutGroup]:
    """Objects of at least `min_side` pixels with an outline; the kind is the category."""
    groups = []
    for number, (_, category, box, polygons) in enumerate(coco.objects):
        if not polygons or min(box[2:]) < min_side:
            continue
        color = coco.image(number)
        mask = np.zeros(color.shape[:2], dtype=np.uint8)
        cv2.fillPoly(mask, [np.round(p).astype(np.int32) for p in polygons], 255)
        made = make_cutout(color, cv2.blur(mask, (3, 3)))
        if made is not None:
            groups.append(CutoutGroup((made,), f"coco {category}"))
    return groups


def video_cutouts(videos: VideoFolder) -> list[CutoutGroup]:
    """One group for each video that has masks, see `VideoFolder.cutouts`."""
    groups = []
    for number, name in enumerate(videos.names):
        made = tuple(videos.cutouts(number).values())
        if made:
            groups.append(CutoutGroup(made, f"video {name}"))
    return groups


@dataclass(frozen=True)
class CutoutSettings(SourceSettings):
    """A set of cut-outs in a training file.

    Args:
        kind: one of `CUTOUTS`, or a source (`coco`, `videos`) that the training file has too.
        path: the folder of the images; counts from `data_root`. Only for the kinds of `CUTOUTS`.
    """

    kind: str
    path: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kind not in (*CUTOUTS, *_FROM_SOURCES):
            raise ValueError(
                f"kind={self.kind!r} is not known; did you mean {nearest(self.kind, (*CUTOUTS, *_FROM_SOURCES))!r}? "
                f"Known: {', '.join(CUTOUTS)} (with a path); {', '.join(_FROM_SOURCES)} (the source of that name)"
            )
        if (self.path is None) == (self.kind in CUTOUTS):
            raise ValueError(f"cut-outs of kind {self.kind} need {'a' if self.kind in CUTOUTS else 'no'} path")


CUTOUTS: dict[str, Callable[[Path], list[CutoutGroup]]] = {
    "alpha": folder_cutouts,
    "plain": plain_background_cutouts,
    "whole": whole_cutouts,
}
"""Kinds of cut-outs that come from a folder of images."""
_FROM_SOURCES = ("coco", "videos")


def make_cutouts(settings: CutoutSettings, root: Path, sources: Sources) -> list[CutoutGroup]:
    """The cut-outs a training file describes.

    Raises:
        FileNotFoundError, ValueError: as the function of the kind; also where the source they come from is missing.
    """
    if settings.path is not None:
        return CUTOUTS[settings.kind](root / settings.path)
    source = sources.get(settings.kind)
    if isinstance(source, CocoImages):
        return coco_cutouts(source)
    if isinstance(source, VideoFolder):
        return video_cutouts(source)
    raise ValueError(f"cut-outs of kind {settings.kind!r} need a source {settings.kind!r} in the data section")


def random_shapes(rng: Generator) -> list[Shape]:
    """256 soft shapes (alpha, outline) for `photo_cutout`: superellipses and smooth random blobs."""
    shapes = []
    axis = (np.arange(_SHAPE_SIDE) + 0.5) / _SHAPE_SIDE * 2 - 1
    x, y = np.meshgrid(axis, axis)
    angle, radius = np.arctan2(y, x), np.hypot(x, y)
    for i in range(256):
        if i % 2:
            power = rng.choice((2, 2, 3, 6, 12))
            inside = 0.94 - (np.abs(x) ** power + np.abs(y) ** power) ** (1 / power)
        else:
            edge = 0.75 + sum(rng.normal() * 0.28 / k * np.cos(k * angle + rng.uniform(0, 2 * pi)) for k in range(2, 7))
            inside = np.clip(edge, 0.2, 0.94) - radius
        alpha = np.clip(127.5 + inside * rng.choice((300, 1500, 4000)), 0, 255).astype(np.uint8)
        alpha[[0, -1]] = alpha[:, [0, -1]] = 0
        outline = mask_outline(alpha > 127)
        if outline is not None:
            shapes.append((alpha, outline))
    return shapes


def photo_cutout(photo: Image, shapes: list[Shape], rng: Generator) -> Cutout | None:
    """One of the shapes, stretched at random, cut from a textured place of a photo; None when none is found."""
    most = min(160, *photo.shape[:2])
    w, h = (int(v) for v in rng.integers(32, max(33, most), 2))
    corner = textured_window(photo, (w, h), rng) if most > 32 else None
    if corner is None:
        return None
    mask, outline = shapes[int(rng.integers(len(shapes)))]
    x, y = corner
    alpha = cv2.resize(mask, (w, h))
    alpha[[0, -1]] = alpha[:, [0, -1]] = 0
    return Cutout((with_alpha(photo[y : y + h, x : x + w], alpha),), outline * (w, h) / _SHAPE_SIDE)
