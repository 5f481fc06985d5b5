"""What a COCO json file holds, kept in a file that is read in seconds."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
import zlib
from pathlib import Path

import numpy as np

from ..files import write_atomically
from .coco import Annotation, read_annotations

_VERSION = 1


def read_indexed(images: Path, annotations: Path, index: Path) -> list[Annotation]:
    """As `coco.read_annotations`, whose result is kept in the folder `index` until the json file changes.

    Raises:
        FileNotFoundError, ValueError: as `read_annotations`; also for a folder of label files.
    """
    if not annotations.is_file():
        raise FileNotFoundError(f"{annotations} is no COCO json file: an index of anything else is not kept")
    state = annotations.stat()
    key = json.dumps([_VERSION, str(annotations.resolve()), state.st_size, state.st_mtime_ns])
    path = index / f"coco-{hashlib.sha256(key.encode()).hexdigest()[:12]}.npz"
    found = _load(path, images) if path.is_file() else None
    if found is None:
        found = read_annotations(images, annotations)
        _store(path, images, found)
    return found


def _store(path: Path, images: Path, found: list[Annotation]) -> None:
    names = sorted({one.image.relative_to(images).as_posix() for one in found})
    number = {name: i for i, name in enumerate(names)}
    polygons = [polygon for one in found for polygon in one.outline]
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        names=np.frombuffer(json.dumps(names).encode(), dtype=np.uint8),
        image=np.array([number[one.image.relative_to(images).as_posix()] for one in found], dtype=np.int64),
        category=np.array([one.category for one in found], dtype=np.int64),
        box=np.array([one.box for one in found], dtype=np.float64).reshape(-1, 4),
        polygons=np.array([len(one.outline) for one in found], dtype=np.int64),
        points=np.array([len(polygon) for polygon in polygons], dtype=np.int64),
        outline=np.concatenate([*polygons, np.empty((0, 2))]),
    )
    write_atomically(path, lambda temporary: Path(temporary).write_bytes(buffer.getvalue()))


def _load(path: Path, images: Path) -> list[Annotation] | None:
    """What `_store` wrote; None for a file that is damaged, which is then written again."""
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            names = [images / name for name in json.loads(arrays["names"].tobytes())]
            image, category, box = (arrays[name] for name in ("image", "category", "box"))
            polygons, points, outline = (arrays[name] for name in ("polygons", "points", "outline"))
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, zlib.error, EOFError):
        return None
    parts = np.split(outline, np.cumsum(points)[:-1]) if len(points) else []
    edges = np.cumsum([0, *polygons]).tolist()
    rows = zip(image.tolist(), category.tolist(), box, edges[:-1], edges[1:], strict=True)
    return [Annotation(names[i], kind, one, tuple(parts[start:stop])) for i, kind, one, start, stop in rows]
