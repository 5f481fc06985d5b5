"""Training pairs from still images with boxes and outlines."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.random import Generator

from ..data.coco import read_annotations
from ..data.images import GIB, Image, ImageStore
from ..settings import check_ranges
from .crops import DEFAULT_CAMERA, CameraConfig, CropConfig, Pair, View, crop_pair
from .dataset import Sources, SourceSettings


@dataclass(frozen=True)
class CocoSettings(SourceSettings):
    """The section `coco` of a training file.

    Args:
        images, annotations: see `data.coco.read_annotations`; count from `data_root`.
        min_side: smaller boxes, in either direction, are left out; pixels.
        camera: random camera of each crop.
        memory_gib: decoded images to keep, GiB; the others are decoded on demand.
    """

    images: str
    annotations: str
    min_side: float = 16.0
    camera: CameraConfig = DEFAULT_CAMERA
    memory_gib: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(self, min_side=(1, 1e4), memory_gib=(0, 1e4))


class CocoImages:
    """Still images with boxes: both crops come from one image, each with its own jitter and camera.

    Args:
        images, annotations: see `data.coco.read_annotations`.
        min_side, camera: see `CocoSettings`.
        memory_limit: bytes of decoded images to keep; the others are decoded on demand.

    Raises:
        FileNotFoundError: when images or annotations are missing or no box is left.
        ValueError: for unreadable images or annotations.
    """

    Settings = CocoSettings

    def __init__(
        self,
        images: str | Path,
        annotations: str | Path,
        min_side: float = 16,
        camera: CameraConfig = DEFAULT_CAMERA,
        memory_limit: int = GIB,
    ) -> None:
        self.camera = camera
        found = read_annotations(Path(images), Path(annotations))
        self.objects = [one for one in found if min(one.box[2:]) >= min_side]
        if not self.objects:
            raise FileNotFoundError(f"{annotations} has no box of at least {min_side} pixels")
        paths = sorted({one.image for one in self.objects})
        self._number = {path: i for i, path in enumerate(paths)}
        self._store = ImageStore(paths, memory_limit)

    @classmethod
    def build(cls, settings: CocoSettings, root: Path, sources: Sources) -> CocoImages:
        """What a training file's section describes."""
        limit = round(settings.memory_gib * GIB)
        return cls(root / settings.images, root / settings.annotations, settings.min_side, settings.camera, limit)

    def image(self, number: int) -> Image:
        """The image of an object."""
        return self._store[self._number[self.objects[number].image]]

    def sample(self, rng: Generator, crops: CropConfig) -> Pair | None:
        """A random object."""
        number = int(rng.integers(len(self.objects)))
        one = self.objects[number]
        view = View(self.image(number), one.box, np.concatenate(one.outline) if one.outline else None)
        return crop_pair(view, view, crops, self.camera, rng)
