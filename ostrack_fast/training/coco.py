"""Training pairs from still images with boxes and outlines."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.random import Generator

from ..data.coco import read_annotations
from ..data.coco_index import read_indexed
from ..data.images import GIB, Image, ImageStore, image_from, read_image
from ..data.storage import Storage, open_packed
from ..settings import check_ranges
from .crops import DEFAULT_CAMERA, CameraConfig, CropConfig, Pair, View, crop_pair
from .dataset import Sources, SourceSettings


@dataclass(frozen=True)
class CocoSettings(SourceSettings):
    """The section `coco` of a training file.

    Args:
        images: their folder or, with a json file, the zip file or LMDB database of such a folder: COCO's own zip files
            serve as they are. Counts from `data_root`.
        annotations: see `data.coco.read_annotations`; counts from `data_root`.
        index: folder that keeps what a first reading of the json file found; counts from `data_root`.
        min_side: smaller boxes, in either direction, are left out; pixels.
        camera: random camera of each crop.
        memory_gib: decoded images to keep, GiB; the others are decoded on demand.
    """

    images: str
    annotations: str
    min_side: float = 16.0
    camera: CameraConfig = DEFAULT_CAMERA
    memory_gib: float = 1.0
    index: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(self, min_side=(1, 1e4), memory_gib=(0, 1e4))


class CocoImages:
    """Still images with boxes: both crops come from one image, each with its own jitter and camera.

    Args:
        images, annotations, min_side, camera, index: see `CocoSettings`.
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
        index: str | Path | None = None,
    ) -> None:
        self.camera = camera
        images, annotations = Path(images), Path(annotations)
        storage = open_packed(images)
        if index is None:
            found = read_annotations(images, annotations)
        else:
            found = read_indexed(images, annotations, Path(index))
        self.objects = [one for one in found if min(one.box[2:]) >= min_side]
        if not self.objects:
            raise FileNotFoundError(f"{annotations} has no box of at least {min_side} pixels")
        paths = sorted({one.image for one in self.objects})
        self._number = {path: i for i, path in enumerate(paths)}
        read = read_image if storage is None else _packed_reader(storage, images)
        self._store = ImageStore(paths, memory_limit, read)

    @classmethod
    def build(cls, settings: CocoSettings, root: Path, sources: Sources) -> CocoImages:
        """What a training file's section describes."""
        limit = round(settings.memory_gib * GIB)
        index = None if settings.index is None else root / settings.index
        where = root / settings.images, root / settings.annotations
        return cls(*where, settings.min_side, settings.camera, limit, index)

    def image(self, number: int) -> Image:
        """The image of an object."""
        return self._store[self._number[self.objects[number].image]]

    def sample(self, rng: Generator, crops: CropConfig) -> Pair | None:
        """A random object."""
        number = int(rng.integers(len(self.objects)))
        one = self.objects[number]
        view = View(self.image(number), one.box, np.concatenate(one.outline) if one.outline else None)
        return crop_pair(view, view, crops, self.camera, rng)


def _packed_reader(storage: Storage, images: Path) -> Callable[[Path], Image]:
    """Decodes images by their paths below `images`, whatever folders of the storage they are in.

    Raises as `data.images.image_from`; FileNotFoundError for one that is not there.
    """
    inside = {name: name for name in storage.names()}
    # COCO's file names are those in train2017.zip without the folder train2017.
    inside = {name.rpartition("/")[2]: name for name in inside} | inside

    def read(path: Path) -> Image:
        name = path.relative_to(images).as_posix()
        return image_from(storage.read(inside.get(name, name)), path)

    return read
