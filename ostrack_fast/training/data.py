"""Training pairs: a template crop and a later search crop of the same target, from folders of images the user names.

Sample i is a function of (seed, i) alone, whatever the number of workers, so resuming a run needs only a counter.
Decoded images stay in memory and are shared with the workers by forking.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import sqrt
from pathlib import Path
from typing import NamedTuple, Protocol

import cv2
import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import ArrayLike, NDArray
from torch.utils.data import DataLoader, Dataset, Sampler

from ..boxes import crop_window
from .augment import Augment, AugmentConfig, flip_box

Image = NDArray[np.uint8]
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
GIB = 1024**3


@dataclass(frozen=True)
class CropConfig:
    """Sizes and jitter of the crops. The defaults are those of the published 256 model.

    Args:
        template_size, search_size: side of the crops, pixels.
        template_factor, search_factor: side of the crop over sqrt(w*h) of the target.
        center_jitter, scale_jitter: (template, search). The crop is made around a box of size
            w, h times exp(scale_jitter * N(0, 1)), each its own, and of centre moved by up to
            half of center_jitter times sqrt(w*h) of that box.
    """

    template_size: int = 128
    search_size: int = 256
    template_factor: float = 2.0
    search_factor: float = 4.0
    center_jitter: tuple[float, float] = (0.0, 3.0)
    scale_jitter: tuple[float, float] = (0.0, 0.25)

    def __post_init__(self) -> None:
        if min(self.template_size, self.search_size) < 16:
            raise ValueError(f"crops of {self.template_size} and {self.search_size} pixels: both need at least 16")
        if min(self.template_factor, self.search_factor) <= 0:
            raise ValueError("template_factor and search_factor must be positive")
        if min(*self.center_jitter, *self.scale_jitter) < 0:
            raise ValueError("center_jitter and scale_jitter must not be negative")


class Pair(NamedTuple):
    """Two square uint8 RGB crops of any side, and the target in them: xywh over the side of the final crop."""

    template: Image
    template_box: NDArray[np.float32]
    search: Image
    search_box: NDArray[np.float32]


class Source(Protocol):
    """What `PairDataset` mixes."""

    def sample(self, rng: Generator, crops: CropConfig) -> Pair | None:
        """One pair, or None when this draw has no usable target: the caller draws again."""


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
    draw = np.exp(rng.standard_normal(2) * crops.scale_jitter[search])
    jw, jh = w * draw[0], h * draw[1]
    reach = sqrt(jw * jh) * crops.center_jitter[search]
    shift = reach * (rng.random(2) - 0.5)
    cx, cy = x + 0.5 * w, y + 0.5 * h
    jx, jy = cx + shift[0], cy + shift[1]
    left, top, side = crop_window((jx - 0.5 * jw, jy - 0.5 * jh, jw, jh), factor)
    scale = size / side
    bx, by = (size - 1) / 2 + (cx - jx) * scale, (size - 1) / 2 + (cy - jy) * scale
    if side < 8 or not (0 <= bx <= size - 1 and 0 <= by <= size - 1):
        return None
    inside = np.array([bx - 0.5 * w * scale, by - 0.5 * h * scale, w * scale, h * scale]) / size
    return Window(left, top, side, size), inside.astype(np.float32)


def cut(image: Image, window: Window) -> Image:
    """The window's native crop, black outside the image.

    As in the published `sample_target`, the last column and row of the image are never read.
    """
    left, top, side, size = window
    height, width = image.shape[0] - 1, image.shape[1] - 1
    x1, y1, x2, y2 = max(left, 0), max(top, 0), min(left + side, width), min(top + side, height)
    if x1 == left and y1 == top and x2 == left + side and y2 == top + side:
        crop = image[y1:y2, x1:x2]
    else:
        crop = np.zeros((side, side, 3), dtype=np.uint8)
        if x2 > x1 and y2 > y1:
            crop[y1 - top : y2 - top, x1 - left : x2 - left] = image[y1:y2, x1:x2]
    return cv2.resize(crop, (size, size)) if side > size else crop


def blacken(crop: Image, window: Window, frame: Sequence[float]) -> None:
    """Make a native crop black, in place, where it lies outside a frame of (width, height) pixels."""
    low, high = np.round(transform(window.matrix(), np.array([[0.0, 0.0], frame]))).astype(int)
    crop[: max(low[1], 0)] = 0
    crop[:, : max(low[0], 0)] = 0
    crop[max(high[1], 0) :] = 0
    crop[:, max(high[0], 0) :] = 0


def warp(image: Image, matrix: NDArray, size: tuple[int, int], border: int = cv2.BORDER_CONSTANT) -> Image:
    """Warp to `size` (width, height) by a 2x3 matrix in coordinates where pixel i covers [i, i + 1]."""
    shifted = matrix.copy()
    shifted[:, 2] += 0.5 * (matrix[:, 0] + matrix[:, 1]) - 0.5
    return cv2.warpAffine(image, shifted, size, flags=cv2.INTER_LINEAR, borderMode=border)


def compose(a: NDArray, b: NDArray) -> NDArray:
    """The 2x3 map that applies b, then a."""
    out = a[:, :2] @ b
    out[:, 2] += a[:, 2]
    return out


def transform(matrix: NDArray, points: NDArray) -> NDArray:
    """Apply a 2x3 map to (n, 2) points."""
    return points @ matrix[:, :2].T + matrix[:, 2]


def around(center: ArrayLike, linear: NDArray) -> NDArray:
    """The 2x3 map with this 2x2 linear part that keeps `center` in place."""
    fixed = np.asarray(center, dtype=np.float64)
    return np.column_stack((linear, fixed - linear @ fixed))


def bounds(points: NDArray) -> NDArray:
    """Tight xywh box of (n, 2) points."""
    low, high = points.min(0), points.max(0)
    return np.concatenate((low, high - low))


def corners(box: Sequence[float] | NDArray) -> NDArray:
    """(4, 2) corners of an xywh box."""
    x, y, w, h = box
    return np.array([[x, y], [x + w, y], [x + w, y + h], [x, y + h]], dtype=np.float64)


def linear_map(rotation: float = 0.0, stretch: float = 0.0, shear: float = 0.0, scale: float = 1.0) -> NDArray:
    """2x2 matrix: aspect changed by exp(2 * stretch) at equal area, sheared, rotated (radians), scaled."""
    c, s = np.cos(rotation), np.sin(rotation)
    a, b = np.exp(stretch), np.exp(-stretch)
    return scale * np.array([[c, -s], [s, c]]) @ np.array([[a, shear * b], [0.0, b]])


def read_image(path: Path) -> Image:
    """(h, w, 3) uint8 RGB.

    Raises:
        ValueError: when the file cannot be decoded.
    """
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise ValueError(f"{path} is not an image OpenCV can read")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def list_images(folder: Path, recursive: bool = False) -> list[Path]:
    """Sorted image files of a folder.

    Raises:
        FileNotFoundError: when the folder is missing or has no image.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder")
    found = sorted(p for p in folder.glob("**/*" if recursive else "*") if p.suffix.lower() in IMAGE_SUFFIXES)
    if not found:
        raise FileNotFoundError(f"{folder} holds no image ({', '.join(IMAGE_SUFFIXES)})")
    return found


class ImageStore:
    """Decoded images by number: in memory up to a limit, decoded on demand beyond it."""

    def __init__(self, paths: Sequence[Path], memory_limit: int) -> None:
        self.paths = list(paths)
        self._images: list[Image | None] = []
        used = 0
        for path in self.paths:
            image = read_image(path) if used < memory_limit else None
            used += 0 if image is None else image.nbytes
            self._images.append(image)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Image:
        image = self._images[index]
        return read_image(self.paths[index]) if image is None else image


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


def crop_view(view: View, crops: CropConfig, search: bool, camera: CameraConfig, rng: Generator) -> tuple | None:
    """Crop and normalized box of a view seen through a random camera; None when the draw is not usable."""
    if rng.random() >= camera.probability:
        drawn = draw_window(view.box, crops, search, rng)
        return None if drawn is None else (cut(view.image, drawn[0]), drawn[1])
    rotation, stretch, shear = rng.standard_normal(3) * (camera.rotation * np.pi / 180, camera.stretch, camera.shear)
    outline = view.outline
    if outline is None:
        outline, rotation, shear = corners(view.box), 0.0, 0.0
    moved = around(view.box[:2] + 0.5 * view.box[2:], linear_map(rotation, stretch, shear))
    drawn = draw_window(bounds(transform(moved, outline)), crops, search, rng)
    if drawn is None:
        return None
    window, box = drawn
    # Mirrored beyond its border, then black where the unmoved image ends: a real frame has upright edges.
    crop = warp(view.image, compose(window.matrix(), moved), (window.native, window.native), cv2.BORDER_REFLECT_101)
    blacken(crop, window, view.image.shape[1::-1])
    return crop, box


def crop_pair(template: View, search: View, crops: CropConfig, camera: CameraConfig, rng: Generator) -> Pair | None:
    """Crops of two views of one target, or None when a crop is not usable."""
    first = crop_view(template, crops, False, camera, rng)
    second = crop_view(search, crops, True, camera, rng) if first is not None else None
    return None if first is None or second is None else Pair(*first, *second)


def read_boxes(path: Path) -> NDArray[np.float64]:
    """(n, 4) xywh boxes of a ground-truth file: comma, tab or space between numbers, `nan` where absent.

    Raises:
        FileNotFoundError: when the file is missing.
        ValueError: for a line that does not hold four numbers, naming it.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: one x,y,w,h line for each image")
    boxes = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if not line.strip():
            continue
        try:
            values = [float(part) for part in line.replace(",", " ").split()]
        except ValueError as error:
            raise ValueError(f"{path}:{number}: {line!r} is not four numbers") from error
        if len(values) != 4:
            raise ValueError(f"{path}:{number}: {line!r} has {len(values)} numbers, not x,y,w,h")
        boxes.append(values)
    return np.array(boxes, dtype=np.float64).reshape(-1, 4)


def mask_outline(mask: NDArray, smallest: int = 4) -> NDArray | None:
    """(n, 2) convex hull, at pixel edges, of what is non-zero; None for less than `smallest` pixels."""
    y, x = np.nonzero(mask)
    if len(x) < smallest:
        return None
    # Only the ends of each row can lie on the hull; pixel i covers [i, i + 1].
    rows, start = np.unique(y, return_index=True)
    left, right = x[start], x[np.append(start[1:], len(x)) - 1] + 1
    points = np.concatenate([np.column_stack((side, rows + d)) for side in (left, right) for d in (0, 1)])
    return cv2.convexHull(points.astype(np.float32))[:, 0].astype(np.float64)


class VideoFolder:
    """Videos: NAME/img/* images and NAME/groundtruth_rect.txt, sampled as published.

    A video is drawn uniformly among those of at least 20 images with more than 4 visible targets, then a template
    image, then a search image up to `max_gap` later; the interval grows by 5 while it has no visible target.
    With NAME/mask/* (white where the target is) the camera may rotate.

    Args:
        root: the folder of the videos.
        max_gap: largest distance of the two images.
        camera: random camera of each image.
        memory_limit: bytes of decoded images to keep; the others are decoded on demand.

    Raises:
        FileNotFoundError: when the folder, images or ground truth are missing, or no video is long enough.
        ValueError: for unreadable images, bad lines, and a number of lines other than that of the images.
    """

    def __init__(
        self,
        root: str | Path,
        max_gap: int = 200,
        camera: CameraConfig = CameraConfig(),
        memory_limit: int = 3 * GIB,
    ) -> None:
        self.max_gap, self.camera = max_gap, camera
        root = Path(root)
        if not root.is_dir():
            raise FileNotFoundError(f"{root} is not a folder")
        self.names: list[str] = []
        self.boxes: list[NDArray] = []
        self.visible: list[NDArray] = []
        self.outlines: list[list[NDArray | None]] = []
        self._masks: list[list[Path]] = []
        self.starts: list[int] = []
        paths: list[Path] = []
        for folder in sorted(p for p in root.iterdir() if (p / "img").is_dir()):
            images, boxes = list_images(folder / "img"), read_boxes(folder / "groundtruth_rect.txt")
            if len(images) != len(boxes):
                raise ValueError(f"{folder} has {len(images)} images but {len(boxes)} boxes")
            visible = np.flatnonzero(np.isfinite(boxes).all(1) & (boxes[:, 2:] > 1).all(1))
            if len(images) < 20 or len(visible) <= 4:
                continue
            self.names.append(folder.name)
            self.boxes.append(boxes)
            self.visible.append(visible)
            self._masks.append(self._list_masks(folder / "mask", len(images)))
            masks = (read_image(path)[..., 0] for path in self._masks[-1])
            self.outlines.append([mask_outline(mask > 127) for mask in masks] or [None] * len(images))
            self.starts.append(len(paths))
            paths += images
        if not paths:
            raise FileNotFoundError(
                f"{root} has no usable video: NAME/img/* and NAME/groundtruth_rect.txt, 20 images, 5 visible targets"
            )
        self.store = ImageStore(paths, memory_limit)

    @staticmethod
    def _list_masks(folder: Path, count: int) -> list[Path]:
        masks = list_images(folder) if folder.is_dir() else []
        if len(masks) not in (0, count):
            raise ValueError(f"{folder} has {len(masks)} masks for {count} images")
        return masks

    def view(self, video: int, frame: int) -> View:
        """Image, box and outline of one frame."""
        return View(self.store[self.starts[video] + frame], self.boxes[video][frame], self.outlines[video][frame])

    def mask(self, video: int, frame: int) -> Image | None:
        """(h, w) uint8 mask of one frame, read from disk; None for a video without masks."""
        paths = self._masks[video]
        return np.ascontiguousarray(read_image(paths[frame])[..., 0]) if paths else None

    def sample(self, rng: Generator, crops: CropConfig) -> Pair | None:
        video = int(rng.integers(len(self.names)))
        visible = self.visible[video]
        first = int(visible[rng.integers(len(visible) - 1)])
        gap, later = self.max_gap, visible[:0]
        while not len(later):
            later = visible[(visible > first) & (visible <= first + gap)]
            gap += 5
        second = int(later[rng.integers(len(later))])
        return crop_pair(self.view(video, first), self.view(video, second), crops, self.camera, rng)


class CocoImages:
    """Still images with boxes: both crops come from one image, each with its own jitter and camera.

    Args:
        images: folder of the images.
        annotations: a COCO `instances_*.json`, or a folder with, for each image, STEM.box.txt (class cx cy w h,
            normalized) and, where there are outlines, STEM.poly.txt (class x y x y ..., normalized).
        min_side: smaller boxes, in either direction, are left out; pixels.
        camera: random camera of each crop.
        memory_limit: bytes of decoded images to keep; the others are decoded on demand.

    Raises:
        FileNotFoundError: when images or annotations are missing or no box is left.
        ValueError: for unreadable images or annotations.
    """

    def __init__(
        self,
        images: str | Path,
        annotations: str | Path,
        min_side: float = 16,
        camera: CameraConfig = CameraConfig(),
        memory_limit: int = GIB,
    ) -> None:
        self.camera = camera
        images, annotations = Path(images), Path(annotations)
        if annotations.is_dir():
            found = _read_yolo(images, annotations)
        elif annotations.is_file():
            found = _read_coco(images, annotations)
        else:
            raise FileNotFoundError(f"{annotations} is neither a COCO json file nor a folder of label files")
        paths = sorted({path for path, *_ in found})
        number = {path: i for i, path in enumerate(paths)}
        self.objects = [
            (number[path], category, np.asarray(box, dtype=np.float64), outline)
            for path, category, box, outline in found
            if min(box[2:]) >= min_side
        ]
        if not self.objects:
            raise FileNotFoundError(f"{annotations} has no box of at least {min_side} pixels")
        self.store = ImageStore(paths, memory_limit)

    def sample(self, rng: Generator, crops: CropConfig) -> Pair | None:
        image, _, box, outline = self.objects[rng.integers(len(self.objects))]
        view = View(self.store[image], box, None if outline is None else np.concatenate(outline))
        return crop_pair(view, view, crops, self.camera, rng)


def _read_coco(images: Path, annotations: Path) -> list[tuple]:
    try:
        document = json.loads(annotations.read_text())
        names = {entry["id"]: images / entry["file_name"] for entry in document["images"]}
        found = []
        for entry in document["annotations"]:
            if entry.get("iscrowd"):
                continue
            polygons = entry.get("segmentation") or []
            points = [np.reshape(p, (-1, 2)).astype(np.float64) for p in polygons] if isinstance(polygons, list) else []
            found.append((names[entry["image_id"]], entry["category_id"], entry["bbox"], points or None))
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{annotations} is not a COCO instances file: {error!r}") from error
    return found


def _read_yolo(images: Path, labels: Path) -> list[tuple]:
    found = []
    for path in list_images(images):
        boxes, polygons = labels / f"{path.stem}.box.txt", labels / f"{path.stem}.poly.txt"
        if not boxes.is_file():
            continue
        height, width = read_image(path).shape[:2]
        outlines = [np.reshape(row[1:], (-1, 2)) * (width, height) for row in _read_rows(polygons)]
        for row in _read_rows(boxes):
            if len(row) != 5:
                raise ValueError(f"{boxes}: a line has {len(row)} numbers, not class cx cy w h")
            w, h = row[3] * width, row[4] * height
            box = np.array([row[1] * width - 0.5 * w, row[2] * height - 0.5 * h, w, h])
            # The two files do not pair their lines, so an outline belongs to the box it fills.
            match = [o for o in outlines if np.abs(bounds(o) - box).max() <= 2]
            found.append((path, int(row[0]), box, match[:1] or None))
    return found


def _read_rows(path: Path) -> list[NDArray]:
    lines = path.read_text().splitlines() if path.is_file() else []
    try:
        return [np.array(line.split(), dtype=np.float64) for line in lines if line.strip()]
    except ValueError as error:
        raise ValueError(f"{path} holds something other than numbers: {error}") from error


@dataclass(frozen=True)
class DataConfig:
    """What turns sources into samples.

    Args:
        crops: sizes and jitter.
        augment: augmentation of every pair.
        seed: changes every sample.
        length: number of samples; `PairDataset` accepts indices below it.
    """

    crops: CropConfig = field(default_factory=CropConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    seed: int = 0
    length: int = 1_000_000


class PairDataset(Dataset):
    """A mix of sources as a map-style dataset: sample i depends on (seed, i) alone.

    Args:
        sources: (source, ratio) pairs; a source is drawn with probability ratio over the sum of the ratios.
        config: crops, augmentation, seed and length.

    Items are dicts: `template` (Z, Z, 3) and `search` (X, X, 3) uint8 RGB tensors, `template_box` and `search_box`
    (4,) float32 xywh over the side of the crop.

    Raises:
        ValueError: without a source or with a ratio that is not positive.
        RuntimeError: when 100 draws in a row give no usable pair.
    """

    def __init__(self, sources: Sequence[tuple[Source, float]], config: DataConfig = DataConfig()) -> None:
        if not sources:
            raise ValueError("a PairDataset needs at least one (source, ratio)")
        ratios = np.array([ratio for _, ratio in sources], dtype=np.float64)
        if not (ratios > 0).all():
            raise ValueError(f"ratios must be positive, got {ratios.tolist()}: leave unwanted sources out")
        self.sources = [source for source, _ in sources]
        self.config = config
        self._edges = np.cumsum(ratios / ratios.sum())
        self._augment = Augment(config.augment)

    def __len__(self) -> int:
        return self.config.length

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        rng = np.random.default_rng(np.random.SeedSequence((self.config.seed, index)))
        crops = self.config.crops
        for _ in range(100):
            which = min(int(np.searchsorted(self._edges, rng.random(), side="right")), len(self.sources) - 1)
            pair = self.sources[which].sample(rng, crops)
            if pair is not None:
                break
        else:
            raise RuntimeError("100 draws gave no usable pair: are the boxes in pixels, and the targets large enough?")
        images, flips = self._augment((pair.template, pair.search), rng)
        item = {}
        for name, image, box, size, flip in (
            ("template", images[0], pair.template_box, crops.template_size, flips[0]),
            ("search", images[1], pair.search_box, crops.search_size, flips[1]),
        ):
            if image.shape[0] != size:
                image = cv2.resize(image, (size, size))
            item[name] = torch.from_numpy(np.ascontiguousarray(image))
            item[f"{name}_box"] = torch.from_numpy(flip_box(box) if flip else box)
        return item


class _From(Sampler):
    """Indices from `start` to the end of the dataset, in order."""

    def __init__(self, start: int, stop: int) -> None:
        self.start, self.stop = start, stop

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.start, self.stop))

    def __len__(self) -> int:
        return self.stop - self.start


def _start_worker(worker: int) -> None:
    # Ctrl-C reaches every process of the terminal, but it is the trainer that ends the run, after a last checkpoint.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    cv2.setNumThreads(0)
    torch.set_num_threads(1)


def make_loader(dataset: PairDataset, batch_size: int, workers: int = 0, start: int = 0) -> DataLoader:
    """Batches of samples start, start + 1, ... in order; an incomplete last batch is dropped.

    To resume, pass as `start` the number of samples already seen. Workers are forked, so that they share the images
    in memory. Without workers, OpenCV's threads are left as they are.

    Raises:
        ValueError: for a start outside the dataset.
    """
    if not 0 <= start <= len(dataset):
        raise ValueError(f"start={start} lies outside the {len(dataset)} samples")
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=_From(start, len(dataset)),
        num_workers=workers,
        worker_init_fn=_start_worker,
        persistent_workers=workers > 0,
        multiprocessing_context="fork" if workers else None,
        prefetch_factor=4 if workers else None,
        drop_last=True,
        # Its own, as starting an iteration draws a number: a resumed run must not see another random state.
        generator=torch.Generator(),
    )
