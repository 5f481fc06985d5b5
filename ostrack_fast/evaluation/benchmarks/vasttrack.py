"""VastTrack (Peng et al. 2024): `CLASS/CLASS-N/{Groundtruth.txt, imgs/*.jpg}`, or `annos` of its MATLAB toolkit."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from ...data.truth import read_lines, read_raw_boxes
from ..protocols import Truth
from .base import (
    Benchmark,
    Loaded,
    Sequence,
    first_folder,
    folders,
    images_in,
    lacking,
    load_all,
    need,
    no_target,
    read_attributes,
    read_flags,
    texts,
)

_ATTRIBUTES = (
    "low resolution", "scale variation", "fast motion", "aspect ratio change", "illumination variation",
    "invisibility", "deformation", "rotation", "background clutter", "motion blur",
)  # fmt: skip
_TRUTHS = ("Groundtruth.txt", "groundtruth.txt")
_LISTS = ("testing_set.txt", "vasttrack_test_list.txt", "test_list.txt")


class VastTrack(Benchmark):
    """VastTrack's test set. Where there are no flags the target is absent where the true box is 0,0,0,0.

    A list of the test sequences beside the classes (`testing_set.txt`, `vasttrack_test_list.txt`) is used if present.
    """

    name = "vasttrack"
    title = "VastTrack"
    protocol = "lasot"
    counts: ClassVar[dict[str, int]] = {"test": 3500}

    def _load(self, data: Path, split: str | None) -> Loaded:
        for annos in (data, data / "annos"):
            if (annos / "absent").is_dir() and (truths := texts(annos)):
                load = lambda name: _from_toolkit(truths[name])  # noqa: E731
                return Loaded(load_all(truths, load, str(annos)), "test")
        candidates = [path for kind in folders(data) for path in folders(kind)] + folders(data)
        found = {path.name: path for path in candidates if _is_sequence(path)}
        if not found:
            raise self.wrong_layout(data, "CLASS/CLASS-N/Groundtruth.txt")
        listed = next((data / name for name in _LISTS if (data / name).is_file()), None)
        official = [line.strip() for line in read_lines(listed) if line.strip()] if listed else sorted(found)
        names = [name for name in official if name in found]
        notes = lacking(f"{self.title}'s test set", official, found)
        return Loaded(load_all(names, lambda name: _from_download(found[name]), str(data)), "test", notes)


def _is_sequence(folder: Path) -> bool:
    named = any((folder / name).is_file() for name in _TRUTHS)
    return named or (folder.name.startswith(f"{folder.parent.name}-") and folder.name.rsplit("-", 1)[1].isdecimal())


def _from_download(folder: Path) -> Sequence:
    truth = next((folder / name for name in _TRUTHS if (folder / name).is_file()), folder / _TRUTHS[0])
    boxes = read_raw_boxes(need(truth))
    absent = no_target(boxes)
    for name in ("full_occlusion.txt", "out_of_view.txt"):
        if (folder / name).is_file():
            absent = absent | read_flags(folder / name, len(boxes))
    images = first_folder(folder / "imgs", folder / "img") or folder
    return Sequence(Truth(folder.name, boxes, absent, dataset="vasttrack"), images_in(images))


def _from_toolkit(path: Path) -> Sequence:
    boxes = read_raw_boxes(path)
    absent = read_flags(path.parent / "absent" / path.name, len(boxes))
    attributes = read_attributes(path.parent / "att" / path.name, _ATTRIBUTES)
    return Sequence(Truth(path.stem, boxes, absent, dataset="vasttrack"), list, attributes=attributes)
