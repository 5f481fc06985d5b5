"""LaSOT (Fan et al. 2019): `CLASS/CLASS-N/{groundtruth.txt, full_occlusion.txt, out_of_view.txt, img/*.jpg}`."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import ClassVar

from ...data.layouts import LAYOUTS, LasotLayout, Place
from ...data.storage import Folder
from ...data.truth import read_lines, read_raw_boxes
from ..protocols import Truth
from .base import (
    Benchmark,
    Loaded,
    Sequence,
    folders,
    images_in,
    lacking,
    load_all,
    need,
    read_attributes,
    read_flags,
    texts,
)

_LAYOUT = LAYOUTS["lasot"]
ATTRIBUTES = (
    "illumination variation", "partial occlusion", "deformation", "motion blur", "camera motion", "rotation",
    "background clutter", "viewpoint change", "scale variation", "full occlusion", "fast motion", "out of view",
    "low resolution", "aspect ratio change",
)  # fmt: skip
_NAME = re.compile(r".+-\d+")


class Lasot(Benchmark):
    """LaSOT as downloaded, with or without the folders of classes, or the folder `annos` of its evaluation toolkit.

    The target is absent where it is fully occluded or out of view. A file `testing_set.txt` in the folder overrides the
    list of the test split.
    """

    name = "lasot"
    title = "LaSOT"
    protocol = "lasot"
    splits: ClassVar[tuple[str, ...]] = ("test", "train", "all")
    official: ClassVar[list[str]] = list(LasotLayout.test)
    dataset: ClassVar[str] = "lasot"

    def _load(self, data: Path, split: str | None) -> Loaded:
        readers = find_sequences(data, self.dataset)
        if not readers:
            raise self.wrong_layout(data, "CLASS/CLASS-N/groundtruth.txt beside full_occlusion.txt and out_of_view.txt")
        official = self._official(data)
        notes: tuple[str, ...] = ()
        test = [name for name in official if name in readers]
        if split in ("train", "all") or not test:
            held = split or "all"
            names = [name for name in sorted(readers) if held == "all" or name not in official]
        else:
            held, names, notes = "test", test, lacking(f"{self.title}'s test set", official, readers)
        return Loaded(load_all(names, lambda name: readers[name](), str(data)), held, notes)

    def _official(self, data: Path) -> list[str]:
        for listed in (data / "testing_set.txt", data.parent / "sequence_evaluation_config" / "testing_set.txt"):
            if listed.is_file():
                return [line.strip() for line in read_lines(listed) if line.strip()]
        return self.official


def find_sequences(data: Path, dataset: str) -> dict[str, Callable[[], Sequence]]:
    """{name: a function that reads the sequence}, of a folder in the data set's layout or in its toolkit's."""
    flat = texts(data)
    if (data / "absent").is_dir() and flat:
        names = filter(_NAME.fullmatch, flat)
        return {name: partial(_from_toolkit, flat[name], dataset) for name in names}
    if (data / "annos" / "absent").is_dir():
        return find_sequences(data / "annos", dataset)
    inside = [path for kind in folders(data) for path in (kind, *folders(kind))]
    images = (f"{path.relative_to(data).as_posix()}/img" for path in inside)
    return {place.name: partial(_from_download, data, place, dataset) for place in _LAYOUT.places(images, "all")}


def _from_download(data: Path, place: Place, dataset: str) -> Sequence:
    truth_file = need(data / place.truth)
    boxes = read_raw_boxes(truth_file)
    absent = ~_LAYOUT.visible(Folder(data), place, len(boxes))
    attributes = read_attributes(truth_file.parent / "attributes.txt", ATTRIBUTES)
    truth = Truth(place.name, boxes, absent, dataset=dataset, group=place.name.rsplit("-", 1)[0])
    return Sequence(truth, images_in(data / place.images), origin=_LAYOUT.origin, attributes=attributes)


def _from_toolkit(path: Path, dataset: str) -> Sequence:
    boxes = read_raw_boxes(path)
    absent = read_flags(path.parent / "absent" / path.name, len(boxes))
    attributes = read_attributes(path.parent / "att" / path.name, ATTRIBUTES)
    truth = Truth(path.stem, boxes, absent, dataset=dataset, group=path.stem.rsplit("-", 1)[0])
    return Sequence(truth, list, origin=_LAYOUT.origin, attributes=attributes)
