"""The layouts that LaSOT, GOT-10k and TrackingNet come in, which training and evaluation read through the same classes.

A layout says where a sequence's images and annotations are among the files of a `Storage`, what images are called, what
coordinates count from, and in which frames the target can be seen.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .storage import Storage
from .truth import parse_numbers

# LaSOT's 280 test sequences, four of each of its 70 classes.
_LASOT_TEST = """
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


class Place(NamedTuple):
    """Where a sequence is in a storage.

    Args:
        name: of the sequence.
        images: folder of its images.
        truth: file of its boxes.
        part: the split or chunk that it belongs to; "" where its path does not say.
    """

    name: str
    images: str
    truth: str
    part: str


class Layout(ABC):
    """A dataset's layout.

    Attributes:
        title: as papers write it.
        splits: names of what training may use; the first is the default, and `all` means every part.
        pattern: a regular expression of the folder of a sequence's images, with the groups `base`, `name` and, where
            paths say it, `part`.
        truth: the file of its boxes, as a format of `base` and `name`.
        frame, first: name of an image as a format of its number, and the first number.
        origin: what boxes count pixels from, 0 or 1.
        described: where the files should be, for messages.
    """

    title: ClassVar[str]
    splits: ClassVar[tuple[str, ...]]
    pattern: ClassVar[str]
    truth: ClassVar[str] = "{base}/groundtruth.txt"
    frame: ClassVar[str]
    first: ClassVar[int]
    origin: ClassVar[int] = 0
    described: ClassVar[str]

    def place(self, images: str) -> Place:
        """The sequence whose images are in a folder.

        Raises:
            ValueError: the folder is not called as this layout's are.
        """
        match = re.fullmatch(self.pattern, images)
        if match is None:
            raise ValueError(f"{images} is no folder of images of {self.title}: expected {self.described}")
        groups = match.groupdict(default="")
        part = self.part(groups["name"], groups.get("part", ""))
        return Place(groups["name"], images, self.truth.format(**groups), part)

    def part(self, name: str, written: str) -> str:
        """The split or chunk of a sequence; `written` is what its path says."""
        return written

    def places(self, folders: Iterable[str], split: str) -> Iterator[Place]:
        """The sequences of a split whose images are in these folders; folders of other names are passed over.

        Raises:
            FileNotFoundError: a part of the split has none, in a dataset that comes in parts.
        """
        found = (self.place(folder) for folder in folders if re.fullmatch(self.pattern, folder))
        return (place for place in found if split in ("all", place.part))

    def numbered(self, number: int, split: str) -> str | None:
        """Name of the sequence of a number counted from 0; None where the dataset does not number its sequences."""
        return None

    @abstractmethod
    def visible(self, storage: Storage, place: Place, frames: int) -> NDArray[np.bool_]:
        """(frames,) bool: where the annotations beside the boxes say that the target can be seen.

        Raises:
            OSError: such a file is missing. ValueError: it holds no numbers, or too few of them.
        """


class LasotLayout(Layout):
    """LaSOT (Fan et al. 2019), with or without the folders of classes; its extension lies in the same layout.

    The target is hidden where `full_occlusion.txt` or `out_of_view.txt` says so. `train` is all but the 280 test
    sequences.
    """

    title = "LaSOT"
    splits = ("train", "all")
    pattern = r"(?P<base>(?:.*/)?(?P<name>[^/]+-\d+))/img"
    frame, first, origin = "{:08d}.jpg", 1, 1
    described = "CLASS/CLASS-N/img/00000001.jpg, CLASS/CLASS-N/groundtruth.txt"
    test: ClassVar[tuple[str, ...]] = tuple(
        f"{kind}-{number}"
        for kind, numbers in (word.rsplit("-", 1) for word in _LASOT_TEST.split())
        for number in numbers.split(",")
    )

    def part(self, name: str, written: str) -> str:
        return "test" if name in self.test else "train"

    def visible(self, storage: Storage, place: Place, frames: int) -> NDArray[np.bool_]:
        base = place.truth.rpartition("/")[0]
        occluded, outside = (
            read_flags(storage, f"{base}/{name}.txt", frames) for name in ("full_occlusion", "out_of_view")
        )
        return (occluded == 0) & (outside == 0)


class Got10kLayout(Layout):
    """GOT-10k (Huang et al. 2019): `absence.label` says where the target is absent, `cover.label` how much is visible.

    The truth of `test` is on the server alone: its files hold the first box.
    """

    title = "GOT-10k"
    splits = ("train", "val")
    pattern = r"(?P<base>(?:.*/)?(?P<name>GOT-10k_(?P<part>[A-Za-z]+)_\d+))"
    frame, first = "{:08d}.jpg", 1
    described = "train/GOT-10k_Train_000001/00000001.jpg, train/GOT-10k_Train_000001/groundtruth.txt (val likewise)"

    def part(self, name: str, written: str) -> str:
        return written.lower()

    def numbered(self, number: int, split: str) -> str | None:
        return f"GOT-10k_{split.title()}_{number + 1:06d}"

    def cover(self, storage: Storage, place: Place, frames: int) -> NDArray[np.int64]:
        """(frames,): how much of the target is visible, 0 (nothing) to 8. Raises as `visible`; also for more frames."""
        name = f"{place.images}/cover.label"
        cover = parse_numbers(storage.read(name), storage.path / name)
        if len(cover) != frames:
            raise ValueError(f"{storage.path / name} has {len(cover)} numbers for {frames} boxes")
        # A comparison with NaN is false.
        if not ((cover >= 0) & (cover <= 8)).all():
            raise ValueError(f"{storage.path / name} holds a number that is not one of 0 to 8")
        return cover.astype(np.int64)

    def visible(self, storage: Storage, place: Place, frames: int) -> NDArray[np.bool_]:
        absent = read_flags(storage, f"{place.images}/absence.label", frames)
        return (absent == 0) & (self.cover(storage, place, frames) > 0)


class TrackingNetLayout(Layout):
    """TrackingNet (Mueller et al. 2018): 12 chunks of training videos and a test set, all targets visible.

    The split `all` wants each of the 12 chunks, `TRAIN_3` that one alone. The truth of `TEST` is on the server: its
    files hold the first box.
    """

    title = "TrackingNet"
    splits = ("all", *(f"TRAIN_{i}" for i in range(12)))
    pattern = r"(?P<base>(?:(?:.*/)?(?P<part>TRAIN_\d+|TEST)/)?)frames/(?P<name>[^/]+)"
    truth = "{base}anno/{name}.txt"
    frame, first = "{}.jpg", 0
    described = "TRAIN_0/frames/VIDEO/0.jpg, TRAIN_0/anno/VIDEO.txt, ... TRAIN_11"

    def places(self, folders: Iterable[str], split: str) -> Iterator[Place]:
        chunks = self.splits[1:] if split == "all" else (split,)
        found = [place for place in super().places(folders, "all") if place.part in chunks]
        missing = [chunk for chunk in chunks if all(place.part != chunk for place in found)]
        if missing:
            raise FileNotFoundError(f"the chunks {', '.join(missing)} are missing")
        return iter(found)

    def visible(self, storage: Storage, place: Place, frames: int) -> NDArray[np.bool_]:
        return np.ones(frames, dtype=bool)


LAYOUTS: dict[str, Layout] = {"lasot": LasotLayout(), "got10k": Got10kLayout(), "trackingnet": TrackingNetLayout()}


def read_flags(storage: Storage, name: str, frames: int) -> NDArray[np.bool_]:
    """(frames,) bool: which of a file's flags, 0 or 1 and at least one a frame, are set.

    Raises:
        OSError: there is no such file. ValueError: it holds something else, or fewer of them.
    """
    flags = parse_numbers(storage.read(name), storage.path / name)
    if len(flags) < frames:
        raise ValueError(f"{storage.path / name} has {len(flags)} flags for {frames} frames")
    if not np.isin(flags, (0, 1)).all():
        raise ValueError(f"{storage.path / name} holds a number that is no flag, 0 or 1")
    return np.asarray(flags[:frames] != 0)
