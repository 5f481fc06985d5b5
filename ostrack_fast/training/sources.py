"""The data section of a training file: which sources, from which folders, in which shares.

data_root: /data                                # paths below count from here
data:
  videos: {path: davis_train, share: 2}         # NAME/img + groundtruth_rect.txt, masks optional; more: other folders
  coco: {images: coco/train2017.zip, annotations: coco/instances.json, share: 2}  # or the folder of the images
  lasot: {path: lasot, only: training_set.txt}  # likewise got10k and trackingnet: folders, zip files or LMDB
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
    scene: {occlusion: 0.3}                     # composer.ComposerConfig

`SOURCES` names the class of each; its `Settings` documents the other keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from ..settings import bind, check_known
from .coco import CocoImages
from .collections import COLLECTIONS
from .composer import Composer
from .dataset import Source, Sources, SourceSettings
from .photos import PhotoRegions
from .videos import VideoFolder


class SourceKind(Protocol):
    """A class of sources. To add one, write it in a file of its own and name it in `SOURCES`."""

    Settings: type[Any]
    """A `SourceSettings` dataclass: the keys of the source's section."""

    def build(self, settings: Any, root: Path, sources: Sources) -> Source:
        """Make the source; paths in `settings` count from `root`, and `sources` are those built before."""


SOURCES: dict[str, SourceKind] = {
    "videos": VideoFolder,
    "coco": CocoImages,
    **COLLECTIONS,
    "photos": PhotoRegions,
    "composer": Composer,
}
"""Kinds of sources, in the order they are built: the composer uses those before it."""


def bind_sources(section: Mapping[str, Any], where: str) -> dict[str, SourceSettings]:
    """The data section as settings by kind, checked; nothing is read yet.

    Raises:
        ValueError: an unknown source, or what `settings.bind` refuses; the message starts with `where`.
    """
    check_known(section, SOURCES, "sources", where)
    if not section:
        raise ValueError(f"{where}: no source; give at least one of {', '.join(SOURCES)}")
    kinds = [name for name in SOURCES if name in section]
    return {name: bind(SOURCES[name].Settings, section[name], f"{where}: {name}") for name in kinds}


def build_sources(settings: Mapping[str, SourceSettings], root: Path) -> list[tuple[Source, float]]:
    """The sources and their shares.

    Raises:
        FileNotFoundError, ValueError: files that are missing or cannot be used.
    """
    built: dict[str, Source] = {}
    for name, one in settings.items():
        built[name] = SOURCES[name].build(one, root, built)
    return [(source, settings[name].share) for name, source in built.items()]
