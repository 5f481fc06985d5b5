"""Boxes and outlines in still images: COCO's `instances_*.json`, or a folder of label files."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..files import read_json
from .images import find_images, read_image
from .truth import LARGEST, Array, read_lines


class Annotation(NamedTuple):
    """An object in an image.

    Args:
        image: the file.
        category: number of its kind.
        box: (4,) float64 xywh, pixels.
        outline: (n,2) float64 points each, pixels; empty where the object has no polygon.
    """

    image: Path
    category: int
    box: Array
    outline: tuple[NDArray[np.float64], ...]


def read_annotations(images: Path, annotations: Path) -> list[Annotation]:
    """All objects but crowds.

    Args:
        images: folder of the images; with a json file also a zip file or an LMDB database, which is not looked into.
        annotations: a COCO json file; or a folder with, for each image, STEM.box.txt (class cx cy w h, normalized) and,
            where there are outlines, STEM.poly.txt (class x y x y ..., normalized).

    Raises:
        FileNotFoundError: the annotations or the folder of images are missing.
        ValueError: something in them cannot be read; the message names file and entry.
    """
    if annotations.is_file() and images.exists():
        return _read_json(images, annotations)
    if not images.is_dir():
        raise FileNotFoundError(f"{images} is not a folder of images")
    if annotations.is_dir():
        return _read_label_folder(images, annotations)
    raise FileNotFoundError(f"{annotations} is neither a COCO json file nor a folder of label files")


def _read_json(images: Path, path: Path) -> list[Annotation]:
    try:
        document = read_json(path)
        names = {entry["id"]: images / _file_name(entry["file_name"]) for entry in document["images"]}
        entries = [entry for entry in document["annotations"] if not entry.get("iscrowd")]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{path} is not a COCO instances file: {error!r}") from None
    found = []
    for number, entry in enumerate(entries):
        try:
            found.append(_annotation(names[entry["image_id"]], entry))
        except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
            name = entry.get("id", f"at position {number}") if isinstance(entry, dict) else f"at position {number}"
            raise ValueError(f"{path} is not a COCO instances file: annotation {name}: {error!r}") from None
    return found


def _annotation(image: Path, entry: dict[str, Any]) -> Annotation:
    box = np.asarray(entry["bbox"], dtype=np.float64)
    if box.shape != (4,) or not (np.abs(box) <= LARGEST).all():
        raise ValueError(f"bbox {entry['bbox']!r:.80} is not four numbers x,y,w,h")
    # A mapping is a run-length mask, which has no polygon.
    polygons = entry.get("segmentation") or []
    polygons = [p for p in polygons if p != []] if isinstance(polygons, list) else []
    outline = tuple(np.reshape(p, (-1, 2)).astype(np.float64) for p in polygons)
    return Annotation(image, int(entry["category_id"]), box, _checked(outline))


def _file_name(name: str) -> str:
    if Path(name).is_absolute() or re.search("[\0\ud800-\udfff]", name):
        raise ValueError(f"file_name {name!r:.80} is no name of a file in the folder of images")
    return name


def _checked(outline: tuple[NDArray[np.float64], ...]) -> tuple[NDArray[np.float64], ...]:
    # A comparison with NaN is false.
    if not all((np.abs(points) <= LARGEST).all() for points in outline):
        raise ValueError(f"segmentation: a point lies further than {LARGEST:g} pixels away")
    return outline


def _read_label_folder(images: Path, labels: Path) -> list[Annotation]:
    found = []
    for path in find_images(images):
        boxes, polygons = labels / f"{path.stem}.box.txt", labels / f"{path.stem}.poly.txt"
        if not boxes.is_file():
            continue
        height, width = read_image(path).shape[:2]
        outlines = [np.reshape(row[1:], (-1, 2)) * (width, height) for row in _read_rows(polygons, 3)]
        for row in _read_rows(boxes):
            if len(row) != 5:
                raise ValueError(f"{boxes}: a line has {len(row)} numbers, not class cx cy w h")
            w, h = row[3] * width, row[4] * height
            box = np.array([row[1] * width - 0.5 * w, row[2] * height - 0.5 * h, w, h])
            # The two files do not pair their lines, so an outline belongs to the box it fills.
            match = [o for o in outlines if np.abs(_bounds(o) - box).max() <= 2]
            found.append(Annotation(path, int(row[0]), box, tuple(match[:1])))
    return found


def _bounds(points: NDArray) -> NDArray:
    return np.concatenate((points.min(0), np.ptp(points, axis=0)))


def _read_rows(path: Path, least: int = 1) -> list[NDArray]:
    """Finite numbers of each line that holds any; with `least` over 1, an odd number of them, class and points."""
    rows = []
    for number, line in enumerate(read_lines(path) if path.is_file() else [], 1):
        if not line.strip():
            continue
        try:
            row = np.array(line.split(), dtype=np.float64)
        except ValueError:
            raise ValueError(f"{path}, line {number}: {line.strip()[:80]!r} is not numbers") from None
        if not np.isfinite(row).all() or len(row) < least or (least > 1 and len(row) % 2 == 0):
            raise ValueError(f"{path}, line {number}: {line.strip()[:80]!r} is not a class and its normalized numbers")
        rows.append(row)
    return rows
