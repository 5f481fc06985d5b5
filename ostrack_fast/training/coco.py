"""Training pairs from still images with boxes and outlines: COCO files, or a folder of label files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from .crops import DEFAULT_CAMERA, CameraConfig, CropConfig, Pair, View, crop_pair
from .geometry import bounds
from .images import GIB, ImageStore, list_images, read_image


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
        camera: CameraConfig = DEFAULT_CAMERA,
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
