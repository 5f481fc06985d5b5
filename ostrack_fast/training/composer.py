"""Training pairs composed from cut-outs and photos: known motion, occlusion and distractors, at crop resolution.

A scene is a frame (a photo of known size), a target pasted in it twice, and what surrounds it. Only the two crops
are ever rendered, one warp for each layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import floor, log2, pi, sqrt
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from .augment import adjust
from .data import (
    GIB,
    CameraConfig,
    CocoImages,
    CropConfig,
    Image,
    ImageStore,
    Pair,
    VideoFolder,
    View,
    Window,
    around,
    blacken,
    bounds,
    compose,
    corners,
    crop_pair,
    draw_window,
    linear_map,
    list_images,
    mask_outline,
    read_image,
    transform,
    warp,
)

_MAX_CUTOUT = 224
_MASK_SIDE = 64


class Cutout(NamedTuple):
    """An object with soft alpha at halving resolutions, and the hull, in pixels of the first, of alpha > 0.5."""

    colors: tuple[Image, ...]
    alphas: tuple[NDArray[np.uint8], ...]
    outline: NDArray[np.float64]


@dataclass(frozen=True)
class CutoutGroup:
    """Cut-outs of one object: several where it comes from a video, in order of time; and the name of its kind."""

    cutouts: tuple[Cutout, ...]
    kind: str


class Layer(NamedTuple):
    """A rendered cut-out: where it lies on the canvas, its colours, and its alpha in [0, 1]."""

    rows: slice
    columns: slice
    color: Image
    alpha: NDArray[np.float32]


def make_cutout(color: Image, alpha: NDArray[np.uint8]) -> Cutout | None:
    """Trim to what is visible, soften, and build the smaller versions; None when fewer than 64 pixels are opaque."""
    if np.count_nonzero(alpha > 127) < 64:
        return None
    x, y, w, h = cv2.boundingRect((alpha > 12).astype(np.uint8))
    color, alpha = color[y : y + h, x : x + w], alpha[y : y + h, x : x + w]
    if max(w, h) > _MAX_CUTOUT:
        size = (max(2, round(w * _MAX_CUTOUT / max(w, h))), max(2, round(h * _MAX_CUTOUT / max(w, h))))
        color, alpha = (cv2.resize(a, size, interpolation=cv2.INTER_AREA) for a in (color, alpha))
    # A transparent margin lets the warp fade the border out; its colour is spread from inside, so that no fringe of
    # whatever hides behind alpha 0 shows.
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
    colors, alphas = [color], [alpha]
    while min(colors[-1].shape[:2]) >= 16:
        size = (colors[-1].shape[1] // 2, colors[-1].shape[0] // 2)
        colors.append(cv2.resize(colors[-1], size, interpolation=cv2.INTER_AREA))
        alphas.append(cv2.resize(alphas[-1], size, interpolation=cv2.INTER_AREA))
    return Cutout(tuple(colors), tuple(alphas), outline)


def folder_cutouts(folder: str | Path) -> list[CutoutGroup]:
    """Every image with an alpha channel under a folder; the kind is the name of its own folder.

    Raises:
        FileNotFoundError: when the folder is missing, empty, or has no image with alpha.
    """
    groups = []
    for path in list_images(Path(folder), recursive=True):
        image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        if image is None:
            raise ValueError(f"{path} is not an image OpenCV can read")
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
        tolerance: largest difference of neighbouring gray levels the flood passes.
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
    for image, category, box, polygons in coco.objects:
        if polygons is None or min(box[2:]) < min_side:
            continue
        color = coco.store[image]
        mask = np.zeros(color.shape[:2], dtype=np.uint8)
        cv2.fillPoly(mask, [np.round(p).astype(np.int32) for p in polygons], 255)
        made = make_cutout(color, cv2.blur(mask, (3, 3)))
        if made is not None:
            groups.append(CutoutGroup((made,), f"coco {category}"))
    return groups


def video_cutouts(videos: VideoFolder, every: int = 2) -> list[CutoutGroup]:
    """One group for each video that has masks, from every `every`-th frame."""
    groups = []
    for number, name in enumerate(videos.names):
        found = []
        for frame in videos.visible[number][::every]:
            mask = videos.mask(number, int(frame))
            if mask is not None:
                found.append(make_cutout(videos.view(number, int(frame)).image, cv2.blur(mask, (3, 3))))
        made = tuple(cutout for cutout in found if cutout is not None)
        if made:
            groups.append(CutoutGroup(made, f"video {name}"))
    return groups


def render(cutout: Cutout, matrix: NDArray, shape: tuple[int, int]) -> Layer | None:
    """Warp a cut-out onto a canvas of `shape` (height, width); None when it falls outside.

    Args:
        matrix: 2x3, pixels of the cut-out to pixels of the canvas, pixel i covering [i, i + 1].
    """
    height, width = cutout.alphas[0].shape
    low = transform(matrix, corners((0, 0, width, height)))
    x1, y1 = np.maximum(np.floor(low.min(0)).astype(int), 0)
    x2, y2 = np.minimum(np.ceil(low.max(0)).astype(int), (shape[1], shape[0]))
    if x2 <= x1 or y2 <= y1:
        return None
    scale = sqrt(abs(matrix[0, 0] * matrix[1, 1] - matrix[0, 1] * matrix[1, 0]))
    level = min(max(floor(log2(1 / max(scale, 1e-6)) + 0.3), 0), len(cutout.alphas) - 1)
    color, alpha = cutout.colors[level], cutout.alphas[level]
    local = matrix.copy()
    local[:, 0] *= width / alpha.shape[1]
    local[:, 1] *= height / alpha.shape[0]
    local[:, 2] -= (x1, y1)
    size = (int(x2 - x1), int(y2 - y1))
    return Layer(
        slice(y1, y2),
        slice(x1, x2),
        warp(color, local, size, cv2.BORDER_REPLICATE),
        warp(alpha, local, size) * np.float32(1 / 255),
    )


def blend(canvas: Image, layer: Layer) -> None:
    """Lay a rendered cut-out over the canvas, in place."""
    below = np.ascontiguousarray(canvas[layer.rows, layer.columns])
    canvas[layer.rows, layer.columns] = cv2.blendLinear(layer.color, below, layer.alpha, 1 - layer.alpha)


def _mask_bank(rng: Generator, count: int = 256) -> list[tuple[NDArray[np.uint8], NDArray[np.float64]]]:
    """Soft shapes (alpha, outline) of side `_MASK_SIDE`: superellipses and smooth random blobs."""
    masks = []
    axis = (np.arange(_MASK_SIDE) + 0.5) / _MASK_SIDE * 2 - 1
    x, y = np.meshgrid(axis, axis)
    angle, radius = np.arctan2(y, x), np.hypot(x, y)
    for i in range(count):
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
            masks.append((alpha, outline))
    return masks


def _textured_window(photo: Image, size: tuple[int, int], rng: Generator) -> tuple[int, int] | None:
    """Left and top of a window, (width, height) `size`, that is not almost even; None when four draws fail."""
    width, height = size
    for _ in range(4):
        x = int(rng.integers(0, photo.shape[1] - width + 1))
        y = int(rng.integers(0, photo.shape[0] - height + 1))
        if photo[y : y + height : 4, x : x + width : 4, 1].std() > 14:
            return x, y
    return None


_PHOTO_CAMERA = CameraConfig(probability=0.9, rotation=8.0, stretch=0.1, shear=0.06)


class PhotoRegions:
    """Any textured region of a photo as the target, seen twice through random cameras; nothing is pasted.

    Args:
        folders: folders of photos, searched recursively.
        camera: random camera of each crop.
        memory_limit: bytes of decoded photos to keep.
    """

    def __init__(
        self,
        folders: Sequence[str | Path],
        camera: CameraConfig = _PHOTO_CAMERA,
        memory_limit: int = GIB,
    ) -> None:
        self.camera = camera
        self.store = ImageStore([path for f in folders for path in list_images(Path(f), True)], memory_limit)

    def sample(self, rng: Generator, crops: CropConfig) -> Pair | None:
        photo = self.store[int(rng.integers(len(self.store)))]
        side = min(photo.shape[:2]) * np.exp(rng.uniform(np.log(0.1), np.log(0.45)))
        aspect = np.exp(0.4 * rng.standard_normal())
        w, h = int(min(side * aspect, photo.shape[1] - 1)), int(min(side / aspect, photo.shape[0] - 1))
        corner = _textured_window(photo, (w, h), rng) if min(w, h) >= 12 else None
        if corner is None:
            return None
        box = np.array([*corner, w, h], dtype=np.float64)
        # An ellipse inside the box: its bounding box, unlike that of a rectangle, hardly grows when it turns.
        turn = np.linspace(0, 2 * pi, 24, endpoint=False)
        outline = box[:2] + 0.5 * box[2:] * (1 + np.column_stack((np.cos(turn), np.sin(turn))))
        view = View(photo, box, outline)
        return crop_pair(view, view, crops, self.camera, rng)


@dataclass(frozen=True)
class ComposerConfig:
    """Distributions of the composed scenes.

    Args:
        size: smallest and largest sqrt(w*h) of the target over sqrt(W*H) of the frame, log-uniform.
        min_pixels: smallest sqrt(w*h) in pixels.
        frame_side: smallest and largest shorter side of the frame, log-uniform, pixels.
        photo_targets: probability that the target is a random shape cut from a photo.
        motion: standard deviation of the target's motion, in sqrt(w*h).
        rotation: standard deviation, degrees, of the target's turn; four times that in one pair of five.
        scale, stretch, shear: standard deviations of the target's log scale, half log aspect, shear.
        new_background: probability that the search image has another background.
        distractors: probabilities of 0, 1, 2, ... distractors in the search image.
        occlusion: probability of an occluder in the search image, covering at most `max_occlusion` of the target.
        camouflage: probability that the target's mean colour moves towards that of its background.
        edge: probability that the target may stick out of the frame.
    """

    size: tuple[float, float] = (0.035, 0.4)
    min_pixels: float = 14
    frame_side: tuple[float, float] = (200, 720)
    photo_targets: float = 0.25
    motion: float = 0.6
    rotation: float = 6.0
    scale: float = 0.12
    stretch: float = 0.07
    shear: float = 0.05
    new_background: float = 0.12
    distractors: tuple[float, ...] = (0.35, 0.3, 0.2, 0.15)
    occlusion: float = 0.3
    max_occlusion: float = 0.5
    camouflage: float = 0.3
    edge: float = 0.12


class _Look(NamedTuple):
    """Brightness, gamma and channel gains of one layer."""

    brightness: float
    gamma: float
    tint: NDArray


class Composer:
    """Pairs of pasted cut-outs.

    Args:
        cutouts: (groups, ratio) pairs: a set is drawn by ratio, then a group of it uniformly.
        backgrounds: (folder, ratio) pairs of photos, searched recursively, for backgrounds and for the textures of
            targets and occluders: a folder is drawn by ratio, then a photo of it uniformly.
        videos: a folder of videos whose frames serve as backgrounds too, the two of a pair from one video.
        config: distributions.
        memory_limit: bytes of decoded photos to keep.

    Raises:
        ValueError: without any cut-out or background.
        FileNotFoundError: for a missing or empty folder.
    """

    def __init__(
        self,
        cutouts: Sequence[tuple[Sequence[CutoutGroup], float]],
        backgrounds: Sequence[tuple[str | Path, float]],
        videos: VideoFolder | None = None,
        config: ComposerConfig = ComposerConfig(),
        memory_limit: int = GIB,
    ) -> None:
        sets = [(list(groups), ratio) for groups, ratio in cutouts if len(groups)]
        if not sets or not backgrounds:
            raise ValueError("a Composer needs at least one cut-out and one folder of backgrounds")
        self.config, self.videos = config, videos
        self.sets = [groups for groups, _ in sets]
        self._set_edges = _edges([ratio for _, ratio in sets])
        self._kinds: dict[str, list[CutoutGroup]] = {}
        for group in (g for groups in self.sets for g in groups):
            self._kinds.setdefault(group.kind, []).append(group)
        share = memory_limit // len(backgrounds)
        self.photos = [ImageStore(list_images(Path(folder), True), share) for folder, _ in backgrounds]
        self._photo_edges = _edges([ratio for _, ratio in backgrounds])
        self._masks = _mask_bank(np.random.default_rng(0))
        self._counts = _edges(config.distractors)

    def _group(self, rng: Generator) -> CutoutGroup:
        groups = self.sets[_choose(self._set_edges, rng)]
        return groups[rng.integers(len(groups))]

    def _photo(self, rng: Generator) -> Image:
        photos = self.photos[_choose(self._photo_edges, rng)]
        return photos[int(rng.integers(len(photos)))]

    def _photo_group(self, rng: Generator) -> CutoutGroup | None:
        """A random shape cut from a random photo."""
        photo = self._photo(rng)
        most = min(160, *photo.shape[:2])
        w, h = (int(v) for v in rng.integers(32, max(33, most), 2))
        corner = _textured_window(photo, (w, h), rng) if most > 32 else None
        if corner is None:
            return None
        mask, outline = self._masks[rng.integers(len(self._masks))]
        x, y = corner
        cutout = Cutout((photo[y : y + h, x : x + w],), (cv2.resize(mask, (w, h)),), outline * (w, h) / _MASK_SIDE)
        return CutoutGroup((cutout,), "photo")

    def _backgrounds(self, rng: Generator) -> tuple[Image, Image]:
        """The photos behind the template and the search image, mostly the same or of one video."""
        if self.videos is not None and rng.random() < 0.2:
            video = int(rng.integers(len(self.videos.names)))
            frames = rng.integers(len(self.videos.boxes[video]), size=2)
            return self.videos.view(video, frames[0]).image, self.videos.view(video, frames[1]).image
        first = self._photo(rng)
        if rng.random() < self.config.new_background:
            return first, self._photo(rng)
        return first, first

    def sample(self, rng: Generator, crops: CropConfig) -> Pair | None:
        c = self.config
        group = self._photo_group(rng) if rng.random() < c.photo_targets else self._group(rng)
        if group is None:
            return None
        backs = self._backgrounds(rng)
        height, width = backs[0].shape[:2]
        zoom = np.exp(rng.uniform(*np.log(c.frame_side))) / min(height, width)
        frame = np.array([width, height]) * min(zoom, 2.5)
        extent = np.exp(rng.uniform(*np.log(c.size))) * sqrt(frame.prod())
        if extent < c.min_pixels:
            return None
        first = int(rng.integers(len(group.cutouts)))
        second = int(np.clip(first + rng.integers(-30, 31), 0, len(group.cutouts) - 1))
        pose = linear_map(rng.normal(0, 0.12), rng.normal(0, 0.08), rng.normal(0, 0.05))
        if rng.random() < 0.5:
            pose = pose * (-1, 1)
        wide = 4 if rng.random() < 0.2 else 1
        moved = linear_map(
            rng.normal(0, c.rotation * wide * pi / 180), rng.normal(0, c.stretch), rng.normal(0, c.shear)
        )
        slack = 0.35 if rng.random() < c.edge else 0.0
        # Filmed objects are in the middle more often than at the border.
        center = frame * 0.5 * (rng.random(2) + rng.random(2))
        drift = rng.normal(0, c.motion, 2) * extent
        looks = self._looks(rng)
        out: list = []
        for search, cutout, linear, where in (
            (False, group.cutouts[first], pose, center),
            (True, group.cutouts[second], moved @ pose, center + drift),
        ):
            size = extent * (np.exp(rng.normal(0, c.scale)) if search else 1)
            placed = _place(cutout, linear, size, where, frame, slack)
            box = None if placed is None else _visible_box(transform(placed, cutout.outline), frame)
            drawn = None if box is None else draw_window(box, crops, search, rng)
            if placed is None or box is None or drawn is None:
                return None
            window, inside = drawn
            canvas = self._background(backs[search], frame, window, search, rng)
            self._fill(canvas, window, group, cutout, placed, box, looks, search, rng)
            blacken(canvas, window, frame)
            out += [canvas, inside]
        return Pair(*out)

    def _looks(self, rng: Generator) -> tuple[_Look, _Look]:
        """Lighting of the target in the template, and a slightly different one in the search image."""
        base = rng.normal(0, (0.12, 0.1, 0.05, 0.05, 0.05))
        later = base + rng.normal(0, (0.1, 0.06, 0.03, 0.03, 0.03))
        first, second = (_Look(float(np.exp(v[0])), float(np.exp(v[1])), np.exp(v[2:])) for v in (base, later))
        return first, second

    def _background(self, photo: Image, frame: NDArray, window: Window, search: bool, rng: Generator) -> Image:
        """The crop of the photo stretched over the frame; for the search image, of a slightly moved camera."""
        to_frame = np.diag(frame / photo.shape[1::-1])
        matrix = np.column_stack((to_frame, np.zeros(2)))
        if search:
            moved = linear_map(rng.normal(0, 0.03), scale=np.exp(rng.normal(0, 0.06)))
            camera = around(frame / 2, moved)
            camera[:, 2] += rng.normal(0, 0.03, 2) * frame
            matrix = compose(camera, matrix)
        matrix = compose(window.matrix(), matrix)
        scale = sqrt(abs(np.linalg.det(matrix[:, :2])))
        if scale < 0.4:
            # Bilinear sampling at less than half size would alias more than a camera does.
            half = (photo.shape[1] // 2, photo.shape[0] // 2)
            matrix[:, 0] *= photo.shape[1] / half[0]
            matrix[:, 1] *= photo.shape[0] / half[1]
            photo = cv2.resize(photo, half, interpolation=cv2.INTER_AREA)
        return warp(photo, matrix, (window.native, window.native), cv2.BORDER_REFLECT_101)

    def _fill(
        self,
        canvas: Image,
        window: Window,
        group: CutoutGroup,
        cutout: Cutout,
        placed: NDArray,
        box: NDArray,
        looks: tuple[_Look, _Look],
        search: bool,
        rng: Generator,
    ) -> None:
        """Distractors, target, occluder."""
        c = self.config
        to_canvas = window.matrix()
        extent = sqrt(box[2] * box[3])
        count = _choose(self._counts, rng)
        for _ in range(count if search else min(count, 1)):
            self._distract(canvas, to_canvas, group, cutout, box, extent, rng)
        target = render(cutout, compose(to_canvas, placed), canvas.shape[:2])
        if target is None:
            return
        look = looks[search]
        if rng.random() < c.camouflage:
            behind = cv2.mean(np.ascontiguousarray(canvas[target.rows, target.columns]))
            own = cv2.mean(target.color, (target.alpha > 0.5).astype(np.uint8))
            gain = (np.array(behind[:3]) + 20) / (np.array(own[:3]) + 20)
            look = look._replace(tint=look.tint * np.clip(gain, 0.4, 2.2) ** rng.uniform(0.3, 0.9))
        target = target._replace(color=adjust(target.color, *look))
        blend(canvas, target)
        if rng.random() < (c.occlusion if search else 0.1 * c.occlusion):
            self._occlude(canvas, to_canvas, target, box, extent, rng)

    def _distract(
        self,
        canvas: Image,
        to_canvas: NDArray,
        group: CutoutGroup,
        cutout: Cutout,
        box: NDArray,
        extent: float,
        rng: Generator,
    ) -> None:
        """Paste another object beside the target: of its kind, a recoloured and turned copy, or any."""
        choice = rng.random()
        turn, tint = rng.normal(0, 0.15), np.exp(rng.normal(0, 0.08, 3))
        if choice < 0.25:
            other, turn, tint = cutout, rng.uniform(0.7, 2 * pi - 0.7), np.exp(rng.normal(0, 0.45, 3))
        else:
            alike = self._kinds.get(group.kind, ()) if choice < 0.6 else ()
            found = alike[rng.integers(len(alike))] if len(alike) > 1 else self._group(rng)
            if found is group:
                return
            other = found.cutouts[rng.integers(len(found.cutouts))]
        size = extent * np.exp(rng.normal(-0.05, 0.35))
        distance = max(rng.uniform(0.9, 2.6) * extent, 0.55 * (size + max(box[2:])))
        angle = rng.uniform(0, 2 * pi)
        where = box[:2] + 0.5 * box[2:] + distance * np.array([np.cos(angle), np.sin(angle)])
        linear = linear_map(turn, rng.normal(0, 0.08)) * (rng.choice((-1, 1)), 1)
        layer = render(other, compose(to_canvas, _pose(other, linear, size, where)), canvas.shape[:2])
        if layer is not None:
            bright, gamma = np.exp(rng.normal(0, (0.15, 0.1)))
            blend(canvas, layer._replace(color=adjust(layer.color, bright, gamma, tint)))

    def _occlude(
        self, canvas: Image, to_canvas: NDArray, target: Layer, box: NDArray, extent: float, rng: Generator
    ) -> None:
        """Paste something over a part of the target, unless it would cover more than allowed."""
        group = self._photo_group(rng) if rng.random() < 0.5 else self._group(rng)
        if group is None:
            return
        cutout = group.cutouts[rng.integers(len(group.cutouts))]
        angle = rng.uniform(0, 2 * pi)
        toward = np.array([np.cos(angle), np.sin(angle)])
        where = box[:2] + 0.5 * box[2:] + toward * box[2:] * rng.uniform(0.3, 0.7)
        linear = linear_map(rng.normal(0, 0.5), rng.normal(0, 0.3))
        pose = _pose(cutout, linear, extent * rng.uniform(0.5, 1.1), where)
        layer = render(cutout, compose(to_canvas, pose), canvas.shape[:2])
        if layer is None:
            return
        cover = np.zeros(canvas.shape[:2], dtype=np.float32)
        cover[layer.rows, layer.columns] = layer.alpha
        hidden = float((cover[target.rows, target.columns] * target.alpha).sum())
        if hidden <= self.config.max_occlusion * float(target.alpha.sum()):
            blend(canvas, layer)


def _edges(ratios: Sequence[float]) -> NDArray:
    """Cumulative shares.

    Raises:
        ValueError: for a negative ratio, or when all are 0.
    """
    values = np.array(ratios, dtype=np.float64)
    if (values < 0).any() or not values.sum() > 0:
        raise ValueError(f"ratios must not be negative, and one must be positive: got {values.tolist()}")
    return np.cumsum(values / values.sum())


def _choose(edges: NDArray, rng: Generator) -> int:
    return min(int(np.searchsorted(edges, rng.random(), side="right")), len(edges) - 1)


def _pose(cutout: Cutout, linear: NDArray, extent: float, center: NDArray) -> NDArray:
    """2x3 map that gives the outline's box sqrt(w*h) = extent and this centre."""
    box = bounds(cutout.outline @ linear.T)
    scale = extent / sqrt(box[2] * box[3])
    return np.column_stack((linear * scale, center - (box[:2] + 0.5 * box[2:]) * scale))


def _place(
    cutout: Cutout, linear: NDArray, extent: float, center: NDArray, frame: NDArray, slack: float
) -> NDArray | None:
    """`_pose` with the centre moved so that at most `slack` of the box, in each direction, leaves the frame."""
    pose = _pose(cutout, linear, extent, center)
    box = bounds(transform(pose, cutout.outline))
    margin = (0.5 - slack) * box[2:] + 1
    if (2 * margin > frame).any():
        return None
    pose[:, 2] += np.clip(center, margin, frame - margin) - center
    return pose


def _visible_box(outline: NDArray, frame: NDArray) -> NDArray | None:
    """Box of the part of a convex outline that lies in the frame."""
    box = bounds(outline)
    if (box[:2] >= 0).all() and (box[:2] + box[2:] <= frame).all():
        return box
    hull = cv2.convexHull(outline.astype(np.float32))
    area, inner = cv2.intersectConvexConvex(hull, corners((0, 0, *frame)).astype(np.float32))
    return bounds(inner[:, 0].astype(np.float64)) if area > 0 else None
