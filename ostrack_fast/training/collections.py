"""Training pairs from the published collections of videos: LaSOT, GOT-10k and TrackingNet, sampled as published."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import Generator

from ..data.collections import LAYOUTS, Collection, Selection, read_collection
from ..data.images import image_from
from ..settings import check_ranges
from .crops import CameraConfig, CropConfig, Pair, View, crop_pair
from .dataset import Sources, SourceSettings
from .videos import LEAST_FRAMES, LEAST_VISIBLE, draw_frames

UNMOVED = CameraConfig(probability=0)


@dataclass(frozen=True)
class CollectionSettings(SourceSettings):
    """The section of a collection in a training file.

    Args:
        path: its folder, zip file(s) or LMDB database, in the layout it comes in; counts from `data_root`.
        split: its part: LaSOT's `train` (all but its 280 test sequences) or `all`, GOT-10k's `train` or `val`,
            TrackingNet's `all` or one chunk such as `TRAIN_3`; by default the whole of what is for training.
        only: a file of the names (for GOT-10k also the numbers) of the sequences wanted; counts from `data_root`.
        without: a file of the names of sequences left out, such as the 1,000 of GOT-10k that VOT forbids.
        partial: go on without sequences that are missing or cannot be used; they are counted on stderr.
        index: folder that keeps what a first reading of the collection found; counts from `data_root`.
        max_gap: largest distance of the two images, frames.
        camera: random camera of each image; none, as published, by default.
    """

    path: str
    split: str | None = None
    only: str | None = None
    without: str | None = None
    partial: bool = False
    index: str | None = None
    max_gap: int = 200
    camera: CameraConfig = UNMOVED

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(self, max_gap=(1, 1e6))


class CollectionVideos:
    """The clips of a collection of at least 20 frames with more than 4 visible targets, as a source of pairs.

    Raises:
        FileNotFoundError: no clip can be used.
    """

    def __init__(self, found: Collection, max_gap: int, camera: CameraConfig) -> None:
        self.max_gap, self.camera, self.storage = max_gap, camera, found.storage
        seen = [np.flatnonzero(clip.visible & (clip.boxes[:, 2:] > 1).all(1)) for clip in found.clips]
        used = [i for i, clip in enumerate(found.clips) if len(clip) >= LEAST_FRAMES and len(seen[i]) >= LEAST_VISIBLE]
        if not used:
            raise FileNotFoundError(
                f"{found.storage.path} has no video of {LEAST_FRAMES} images and {LEAST_VISIBLE} visible targets"
            )
        self.clips, self.visible = [found.clips[i] for i in used], [seen[i] for i in used]

    def view(self, clip: int, frame: int) -> View:
        """Image and box of one frame. Raises as `data.images.image_from`, FileNotFoundError for one that is gone."""
        name = self.clips[clip].frame(frame)
        image = image_from(self.storage.read(name), self.storage.path / name)
        return View(image, self.clips[clip].boxes[frame], None)

    def sample(self, rng: Generator, crops: CropConfig) -> Pair | None:
        """A random clip, and two of its frames."""
        clip = int(rng.integers(len(self.clips)))
        first, second = draw_frames(self.visible[clip], round(self.max_gap * crops.reach), rng)
        return crop_pair(self.view(clip, first), self.view(clip, second), crops, self.camera, rng)


class CollectionKind:
    """A source of the name of a layout."""

    Settings: type[Any] = CollectionSettings

    def __init__(self, name: str) -> None:
        self.name = name

    def build(self, settings: CollectionSettings, root: Path, sources: Sources) -> CollectionVideos:
        """What a training file's section describes."""
        split = LAYOUTS[self.name].splits[0] if settings.split is None else settings.split
        only, without, index = (
            None if value is None else root / value for value in (settings.only, settings.without, settings.index)
        )
        selection = Selection(split, only, without, settings.partial)
        found = read_collection(self.name, root / settings.path, selection, index)
        if found.problems:
            print(f"{found.storage.path}: without {len(found.problems)} sequences that cannot be used", file=sys.stderr)
        return CollectionVideos(found, settings.max_gap, settings.camera)


COLLECTIONS = {name: CollectionKind(name) for name in LAYOUTS}
