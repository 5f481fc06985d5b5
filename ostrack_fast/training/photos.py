"""Training pairs from photos without any annotation: regions that hold some texture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import pi
from pathlib import Path

import numpy as np
from numpy.random import Generator

from ..data.images import GIB, Image, ImageStore, list_images
from ..settings import check_ranges
from .crops import CameraConfig, CropConfig, Pair, View, crop_pair
from .dataset import Sources, SourceSettings

_PHOTO_CAMERA = CameraConfig(probability=0.9, rotation=8.0, stretch=0.1, shear=0.06)


@dataclass(frozen=True)
class PhotoSettings(SourceSettings):
    """The section `photos` of a training file.

    Args:
        folders: of photos, searched recursively; count from `data_root`.
        camera: random camera of each crop.
        memory_gib: decoded photos to keep, GiB; the others are decoded on demand.
    """

    folders: tuple[str, ...]
    camera: CameraConfig = _PHOTO_CAMERA
    memory_gib: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(self, memory_gib=(0, 1e4))
        if not self.folders:
            raise ValueError("folders must name at least one folder of photos")


class PhotoRegions:
    """Any textured region of a photo as the target, seen twice through random cameras; nothing is pasted.

    Args:
        folders: folders of photos, searched recursively.
        camera: random camera of each crop.
        memory_limit: bytes of decoded photos to keep.
    """

    Settings = PhotoSettings

    def __init__(
        self,
        folders: Sequence[str | Path],
        camera: CameraConfig = _PHOTO_CAMERA,
        memory_limit: int = GIB,
    ) -> None:
        self.camera = camera
        self.store = ImageStore([path for f in folders for path in list_images(Path(f), True)], memory_limit)

    @classmethod
    def build(cls, settings: PhotoSettings, root: Path, sources: Sources) -> PhotoRegions:
        """What a training file's section describes."""
        return cls([root / folder for folder in settings.folders], settings.camera, round(settings.memory_gib * GIB))

    def sample(self, rng: Generator, crops: CropConfig) -> Pair | None:
        """A random region of a random photo."""
        photo = self.store[int(rng.integers(len(self.store)))]
        side = min(photo.shape[:2]) * np.exp(rng.uniform(np.log(0.1), np.log(0.45)))
        aspect = np.exp(0.4 * rng.standard_normal())
        w, h = int(min(side * aspect, photo.shape[1] - 1)), int(min(side / aspect, photo.shape[0] - 1))
        corner = textured_window(photo, (w, h), rng) if min(w, h) >= 12 else None
        if corner is None:
            return None
        box = np.array([*corner, w, h], dtype=np.float64)
        # An ellipse inside the box: its bounding box, unlike that of a rectangle, hardly grows when it turns.
        turn = np.linspace(0, 2 * pi, 24, endpoint=False)
        outline = box[:2] + 0.5 * box[2:] * (1 + np.column_stack((np.cos(turn), np.sin(turn))))
        view = View(photo, box, outline)
        return crop_pair(view, view, crops, self.camera, rng)


def textured_window(photo: Image, size: tuple[int, int], rng: Generator) -> tuple[int, int] | None:
    """Left and top of a window, (width, height) `size`, that is not almost even; None when four draws fail."""
    width, height = size
    for _ in range(4):
        x = int(rng.integers(0, photo.shape[1] - width + 1))
        y = int(rng.integers(0, photo.shape[0] - height + 1))
        if photo[y : y + height : 4, x : x + width : 4, 1].std() > 14:
            return x, y
    return None
