"""LaSOT (Fan et al. 2019): `CLASS/CLASS-N/{groundtruth.txt, full_occlusion.txt, out_of_view.txt, img/*.jpg}`."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import ClassVar

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

# The 280 test sequences, four of each of the 70 classes.
_TEST = """
airplane-1,9,13,15 basketball-1,6,7,11 bear-2,4,6,17 bicycle-2,7,9,18 bird-2,3,15,17 boat-3,4,12,17 book-3,10,11,19
bottle-1,12,14,18 bus-2,5,17,19 car-2,6,9,17 cat-1,3,18,20 cattle-2,7,12,13 spider-14,16,18,20 coin-3,6,7,18
crab-3,6,12,18 surfboard-12,4,5,8 cup-1,4,7,17 deer-4,8,10,14 dog-1,7,15,19 guitar-3,8,10,16 person-1,5,10,12
pig-2,10,13,18 rubicCube-1,6,14,19 swing-10,14,17,20 drone-13,15,2,7 pool-12,15,3,7 rabbit-10,13,17,19
racing-10,15,16,20 robot-1,19,5,8 sepia-13,16,6,8 sheep-3,5,7,9 skateboard-16,19,3,8 tank-14,16,6,9 tiger-12,18,4,6
train-1,11,20,7 truck-16,3,6,7 turtle-16,5,8,9 umbrella-17,19,2,9 yoyo-15,17,19,7 zebra-10,14,16,17
elephant-1,12,16,18 goldfish-3,7,8,10 hat-1,2,5,18 kite-4,6,10,15 motorcycle-1,3,9,18 mouse-1,8,9,17 flag-3,9,5,2
frog-3,4,20,9 gametarget-1,2,7,13 hand-2,3,9,16 helmet-5,11,19,13 licenseplate-6,12,13,15 electricfan-1,10,18,20
chameleon-3,6,11,20 crocodile-3,4,10,14 gecko-1,5,16,19 fox-2,3,5,20 giraffe-2,10,13,15 gorilla-4,6,9,13
hippo-1,7,9,20 horse-1,4,12,15 kangaroo-2,5,11,14 leopard-1,7,16,20 lion-1,5,12,20 lizard-1,3,6,13
microphone-2,6,14,16 monkey-3,4,9,17 shark-2,3,5,6 squirrel-8,11,13,19 volleyball-1,13,18,19
"""
ATTRIBUTES = (
    "illumination variation", "partial occlusion", "deformation", "motion blur", "camera motion", "rotation",
    "background clutter", "viewpoint change", "scale variation", "full occlusion", "fast motion", "out of view",
    "low resolution", "aspect ratio change",
)  # fmt: skip
_NAME = re.compile(r".+-\d+")


def expand(text: str) -> list[str]:
    """`airplane-1,9` as airplane-1, airplane-9."""
    pairs = (word.rsplit("-", 1) for word in text.split())
    return [f"{kind}-{number}" for kind, numbers in pairs for number in numbers.split(",")]


class Lasot(Benchmark):
    """LaSOT as downloaded, with or without the folders of classes, or the folder `annos` of its evaluation toolkit.

    The target is absent where it is fully occluded or out of view. A file `testing_set.txt` in the folder overrides the
    list of the test split.
    """

    name = "lasot"
    title = "LaSOT"
    protocol = "lasot"
    splits: ClassVar[tuple[str, ...]] = ("test", "train", "all")
    official: ClassVar[list[str]] = expand(_TEST)
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
    found = [path for path in folders(data) if _NAME.fullmatch(path.name)]
    kinds = [path for path in folders(data) if path not in found]
    found += [path for kind in kinds for path in folders(kind) if _NAME.fullmatch(path.name)]
    return {path.name: partial(_from_download, path, dataset) for path in found}


def _from_download(folder: Path, dataset: str) -> Sequence:
    boxes = read_raw_boxes(need(folder / "groundtruth.txt"))
    hidden = read_flags(folder / "full_occlusion.txt", len(boxes))
    outside = read_flags(folder / "out_of_view.txt", len(boxes))
    attributes = read_attributes(folder / "attributes.txt", ATTRIBUTES)
    truth = Truth(folder.name, boxes, hidden | outside, dataset=dataset, group=folder.name.rsplit("-", 1)[0])
    return Sequence(truth, images_in(folder / "img"), origin=1, attributes=attributes)


def _from_toolkit(path: Path, dataset: str) -> Sequence:
    boxes = read_raw_boxes(path)
    absent = read_flags(path.parent / "absent" / path.name, len(boxes))
    attributes = read_attributes(path.parent / "att" / path.name, ATTRIBUTES)
    truth = Truth(path.stem, boxes, absent, dataset=dataset, group=path.stem.rsplit("-", 1)[0])
    return Sequence(truth, list, origin=1, attributes=attributes)
