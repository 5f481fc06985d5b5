"""GOT-10k (Huang et al. 2019): `val/list.txt`, `val/NAME/{groundtruth.txt, cover.label, meta_info.ini, *.jpg}`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import ClassVar

from ...data.images import find_images, read_image
from ...data.layouts import Got10kLayout
from ...data.storage import Folder
from ...data.truth import read_lines, read_raw_boxes
from ..protocols import Truth
from .base import Benchmark, Loaded, Sequence, folders, images_in, load_all, need

_LAYOUT = Got10kLayout()
_RESOLUTION = re.compile(r"resolution:\s*\(\s*([1-9]\d{0,5})\s*,\s*([1-9]\d{0,5})\s*\)")
_CLASS = re.compile(r"object_class:\s*(.*\S)")


class Got10k(Benchmark):
    """GOT-10k; `data` is the folder of the splits or that of one. The truth of `test` is on the server alone.

    A frame's `cover` says how much of the target is visible; a file of another length is refused.
    """

    name = "got10k"
    title = "GOT-10k"
    protocol = "got10k"
    splits = ("val", "test")
    counts: ClassVar[dict[str, int]] = {"val": 180, "test": 180}
    nested_results = True

    def _load(self, data: Path, split: str | None) -> Loaded:
        for each in (split,) if split else self.splits:
            if (data / each / "list.txt").is_file() or _sequences_in(data / each):
                return self._load_split(data / each, each)
        held = _split_of(data)
        if held and split in (None, held):
            return self._load_split(data, held)
        raise self.wrong_layout(data, f"{split or 'val'}/list.txt and {split or 'val'}/GOT-10k_.../groundtruth.txt")

    def _load_split(self, folder: Path, split: str) -> Loaded:
        listed = folder / "list.txt"
        names = [line.strip() for line in read_lines(listed)] if listed.is_file() else _sequences_in(folder)
        return Loaded(load_all(filter(None, names), lambda name: _load_one(folder / name, split), str(folder)), split)


def _sequences_in(folder: Path) -> list[str]:
    return [place.name for place in _LAYOUT.places((path.name for path in folders(folder)), "all")]


def _split_of(folder: Path) -> str | None:
    """The split that a folder of sequences is, by their names."""
    names = _sequences_in(folder)
    if (folder / "list.txt").is_file():
        names = read_lines(folder / "list.txt") + names
    kinds = {place.part for place in _LAYOUT.places(names, "all")}
    return kinds.pop() if len(kinds) == 1 else None


def _load_one(folder: Path, split: str) -> Sequence:
    storage, place = Folder(folder.parent), _LAYOUT.place(folder.name)
    boxes = read_raw_boxes(need(storage.path / place.truth))
    labelled = split == "val" or (folder / "cover.label").is_file()
    cover = _LAYOUT.cover(storage, place, len(boxes)) if labelled else None
    size, group = _about(folder)
    return Sequence(Truth(place.name, boxes, None, cover, size, group=group), images_in(folder))


def _about(folder: Path) -> tuple[tuple[int, int] | None, str]:
    """The frames' width and height, and the class of the target, from `meta_info.ini` or the first frame."""
    meta = folder / "meta_info.ini"
    text = "\n".join(read_lines(meta)) if meta.is_file() else ""
    kind = _CLASS.search(text)
    group = kind[1] if kind else ""
    if found := _RESOLUTION.search(text):
        return (int(found[1]), int(found[2])), group
    frames = find_images(folder)
    if not frames:
        raise FileNotFoundError(f"{meta} with the line resolution: (width, height) is missing, and so are the images")
    height, width = read_image(frames[0]).shape[:2]
    return (width, height), group
