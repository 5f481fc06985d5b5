"""The data section of a training file: which sources, from which folders, in which shares.

data_root: /data                                # paths below count from here
data:
  videos: {path: davis_train, share: 2}         # NAME/img + groundtruth_rect.txt, masks optional
  coco: {images: coco/images, annotations: coco/instances.json, share: 2}
  photos: {folders: [photos], share: 1}         # any textured region of any photo
  composer:                                     # cut-outs pasted on backgrounds
    share: 5
    cutouts:
      - {kind: alpha, path: cutouts, share: 3}  # images with an alpha channel
      - {kind: plain, path: objects, share: 2}  # objects before an even background
      - {kind: whole, path: faces, share: 1}    # photos that their object fills
      - {kind: coco, share: 4}                  # outlines of the coco source above
      - {kind: videos, share: 3}                # masks of the videos source above
    backgrounds:
      - {path: photos, share: 2}
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from .coco import CocoImages
from .composer import Composer
from .config import TrainConfig
from .cutouts import (
    CutoutGroup,
    coco_cutouts,
    folder_cutouts,
    plain_background_cutouts,
    video_cutouts,
    whole_cutouts,
)
from .dataset import DataConfig, PairDataset, Source
from .photos import PhotoRegions
from .videos import VideoFolder

_FOLDER_CUTOUTS: dict[str, Callable[[Path], list[CutoutGroup]]] = {
    "alpha": folder_cutouts,
    "plain": plain_background_cutouts,
    "whole": whole_cutouts,
}


def build_dataset(cfg: TrainConfig) -> PairDataset:
    """The pairs of a run, its samples numbered from 0 to `cfg.total_pairs`.

    Raises:
        ValueError: for an unknown source or a missing key. FileNotFoundError: for a missing or empty folder.
    """
    section, root = dict(cfg.data), Path(cfg.data_root)
    unknown = set(section) - {"videos", "coco", "photos", "composer"}
    if unknown:
        raise ValueError(f"data: unknown sources {sorted(unknown)}; known: videos, coco, photos, composer")
    sources: dict[str, Source] = {}
    for name in ("videos", "coco", "photos", "composer"):
        if name in section:
            try:
                sources[name] = _build(name, section[name], root, sources)
            except KeyError as error:
                raise ValueError(f"data: {name}: the setting {error} is missing") from error
    mixed = [(source, float(section[name].get("share", 1))) for name, source in sources.items()]
    return PairDataset(mixed, DataConfig(cfg.crops, cfg.augment, cfg.seed, cfg.total_pairs))


def _build(name: str, values: dict[str, Any], root: Path, earlier: dict[str, Source]) -> Source:
    if name == "videos":
        return VideoFolder(root / values["path"])
    if name == "coco":
        return CocoImages(root / values["images"], root / values["annotations"])
    if name == "photos":
        return PhotoRegions([root / folder for folder in values["folders"]])
    cutouts = [(_cutouts(item, root, earlier), float(item.get("share", 1))) for item in values["cutouts"]]
    backgrounds = [(root / item["path"], float(item.get("share", 1))) for item in values["backgrounds"]]
    videos = earlier.get("videos")
    return Composer(cutouts, backgrounds, videos if isinstance(videos, VideoFolder) else None)


def _cutouts(item: dict[str, Any], root: Path, earlier: dict[str, Source]) -> list[CutoutGroup]:
    kind = item["kind"]
    if kind in _FOLDER_CUTOUTS:
        return _FOLDER_CUTOUTS[kind](root / item["path"])
    source = earlier.get(kind)
    if isinstance(source, CocoImages):
        return coco_cutouts(source)
    if isinstance(source, VideoFolder):
        return video_cutouts(source)
    raise ValueError(
        f"data: composer: cut-outs of kind {kind!r}: choose {', '.join(_FOLDER_CUTOUTS)}, "
        "or name a source (coco, videos) that the data section has too"
    )
