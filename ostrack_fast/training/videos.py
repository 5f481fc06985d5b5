"""Training pairs from videos with ground truth, sampled as published."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from .crops import DEFAULT_CAMERA, CameraConfig, CropConfig, Pair, View, crop_pair
from .geometry import mask_outline
from .images import GIB, Image, ImageStore, list_images, read_image


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
        camera: CameraConfig = DEFAULT_CAMERA,
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
