"""Training pairs composed from cut-outs and photos: known motion, occlusion and distractors, at crop resolution.

A scene is a frame (a photo of known size), a target pasted in it twice, and what surrounds it. Only the two crops
are ever rendered, one warp for each layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import pi, sqrt
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from ..data.images import GIB, Image, ImageStore, list_images
from ..settings import check_ranges
from .augment import adjust
from .canvas import Cutout, Layer, blend, place, pose_at, render, visible_box
from .choice import Choice
from .crops import CropConfig, Pair, Window, blacken, draw_window
from .cutouts import CutoutGroup, CutoutSettings, make_cutouts, photo_cutout, random_shapes
from .dataset import Sources, SourceSettings
from .geometry import around, compose, linear_map, transform, warp
from .videos import VideoFolder


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

    def __post_init__(self) -> None:
        check_ranges(
            self, size=(1e-3, 1), min_pixels=(1, 1e4), frame_side=(16, 1e4), photo_targets=(0, 1), motion=(0, 100),
            rotation=(0, 180), scale=(0, 5), stretch=(0, 2), shear=(0, 2), new_background=(0, 1), distractors=(0, 1e6),
            occlusion=(0, 1), max_occlusion=(0, 1), camouflage=(0, 1), edge=(0, 1),
        )  # fmt: skip
        for name in ("size", "frame_side"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name}={getattr(self, name)} must be the smallest and the largest")
        Choice(self.distractors)


@dataclass(frozen=True)
class BackgroundSettings(SourceSettings):
    """A folder of photos; counts from `data_root`."""

    path: str


@dataclass(frozen=True)
class ComposerSettings(SourceSettings):
    """The section `composer` of a training file.

    Args:
        cutouts: what is pasted.
        backgrounds: folders of photos, searched recursively.
        scene: distributions.
        memory_gib: decoded photos to keep, GiB; the others are decoded on demand.
    """

    cutouts: tuple[CutoutSettings, ...]
    backgrounds: tuple[BackgroundSettings, ...]
    scene: ComposerConfig = ComposerConfig()
    memory_gib: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(self, memory_gib=(0, 1e4))


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

    Settings = ComposerSettings

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
        self._choose_set = Choice([ratio for _, ratio in sets])
        self._kinds: dict[str, list[CutoutGroup]] = {}
        for group in (g for groups in self.sets for g in groups):
            self._kinds.setdefault(group.kind, []).append(group)
        share = memory_limit // len(backgrounds)
        self.photos = [ImageStore(list_images(Path(folder), True), share) for folder, _ in backgrounds]
        self._choose_photos = Choice([ratio for _, ratio in backgrounds])
        self._shapes = random_shapes(np.random.default_rng(0))
        self._counts = Choice(config.distractors)

    @classmethod
    def build(cls, settings: ComposerSettings, root: Path, sources: Sources) -> Composer:
        """What a training file's section describes; cut-outs and backgrounds may come from the sources built before."""
        cutouts = [(make_cutouts(one, root, sources), one.share) for one in settings.cutouts]
        backgrounds = [(root / one.path, one.share) for one in settings.backgrounds]
        videos = sources.get("videos")
        return cls(
            cutouts, backgrounds, videos if isinstance(videos, VideoFolder) else None, settings.scene,
            round(settings.memory_gib * GIB),
        )  # fmt: skip

    def _group(self, rng: Generator) -> CutoutGroup:
        groups = self.sets[self._choose_set(rng)]
        return groups[rng.integers(len(groups))]

    def _photo(self, rng: Generator) -> Image:
        photos = self.photos[self._choose_photos(rng)]
        return photos[int(rng.integers(len(photos)))]

    def _photo_group(self, rng: Generator) -> CutoutGroup | None:
        """A random shape cut from a random photo."""
        cutout = photo_cutout(self._photo(rng), self._shapes, rng)
        return None if cutout is None else CutoutGroup((cutout,), "photo")

    def _backgrounds(self, rng: Generator) -> tuple[Image, Image]:
        """The photos behind the template and the search image, mostly the same or of one video."""
        if self.videos is not None and rng.random() < 0.2:
            video = int(rng.integers(len(self.videos.names)))
            frames = rng.integers(self.videos.length(video), size=2)
            return self.videos.view(video, frames[0]).image, self.videos.view(video, frames[1]).image
        first = self._photo(rng)
        if rng.random() < self.config.new_background:
            return first, self._photo(rng)
        return first, first

    def sample(self, rng: Generator, crops: CropConfig) -> Pair | None:
        """A random scene."""
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
        gone = bool(crops.absent) and rng.random() < crops.absent
        out: list[tuple[Image, NDArray]] = []
        for search, cutout, linear, where in (
            (False, group.cutouts[first], pose, center),
            (True, group.cutouts[second], moved @ pose, center + drift),
        ):
            size = extent * (np.exp(rng.normal(0, c.scale)) if search else 1)
            placed = place(cutout, linear, size, where, frame, slack)
            box = None if placed is None else visible_box(transform(placed, cutout.outline), frame)
            drawn = None if box is None else draw_window(box, crops, search, rng)
            if placed is None or box is None or drawn is None:
                return None
            window, inside = drawn
            canvas = self._background(backs[search], frame, window, search, rng)
            self._fill(canvas, window, group, cutout, placed, box, looks, search, rng, gone and search)
            blacken(canvas, window, frame)
            out.append((canvas, inside))
        return Pair(*out[0], *out[1], not gone)

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
        scale = sqrt(abs(matrix[0, 0] * matrix[1, 1] - matrix[0, 1] * matrix[1, 0]))
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
        gone: bool,
    ) -> None:
        """Distractors, and the target with its occluder unless it is gone."""
        c = self.config
        to_canvas = window.matrix()
        extent = sqrt(box[2] * box[3])
        count = self._counts(rng)
        for _ in range(count if search else min(count, 1)):
            self._distract(canvas, to_canvas, group, cutout, box, extent, rng)
        target = None if gone else render(cutout, compose(to_canvas, placed), canvas.shape[:2])
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
        linear = linear_map(turn, rng.normal(0, 0.08)) * ((-1, 1)[rng.integers(2)], 1)
        layer = render(other, compose(to_canvas, pose_at(other, linear, size, where)), canvas.shape[:2])
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
        pose = pose_at(cutout, linear, extent * rng.uniform(0.5, 1.1), where)
        layer = render(cutout, compose(to_canvas, pose), canvas.shape[:2])
        if layer is None:
            return
        cover = np.zeros(canvas.shape[:2], dtype=np.float32)
        cover[layer.rows, layer.columns] = layer.alpha
        hidden = float((cover[target.rows, target.columns] * target.alpha).sum())
        if hidden <= self.config.max_occlusion * float(target.alpha.sum()):
            blend(canvas, layer)
