"""The published collections of training videos: LaSOT, GOT-10k and TrackingNet, in the layouts they come in."""

from __future__ import annotations

import hashlib
import io
import json
import re
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..files import write_atomically
from .images import IMAGE_SUFFIXES
from .storage import Storage, open_storage
from .truth import Array, parse_boxes, parse_lines, present, read_lines

_VERSION = 1
_SHOWN = 5


@dataclass(frozen=True, eq=False)
class Clip:
    """A video of a collection.

    Args:
        name: of the sequence.
        images: its frames' names in the storage, as a format of the frame's number.
        first: number of the first frame.
        boxes: (n,4) float64 xywh in pixels; NaN where a box is absent or degenerate.
        visible: (n,) bool, whether the target can be seen in a frame, as the collection says.
    """

    name: str
    images: str
    first: int
    boxes: Array
    visible: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.boxes)

    def frame(self, index: int) -> str:
        """Name in the storage of a frame, counted from 0."""
        return self.images.format(self.first + index)


class Place(NamedTuple):
    """Where a sequence's images and its ground truth lie in a storage."""

    images: str
    truth: str


class Layout(ABC):
    """A collection's layout.

    Attributes:
        splits: the names of its parts; the first is the default.
        frame, first: name of an image by its number, and the first number.
        described: where the files should be, for messages.
    """

    splits: tuple[str, ...]
    frame: str
    first: int
    described: str

    def name(self, number: int, split: str) -> str | None:
        """The sequence of a number counted from 0; None where the collection does not number its sequences."""
        return None

    @abstractmethod
    def places(self, folders: Counter[str], split: str) -> Iterator[tuple[str, Place]]:
        """The sequences among the folders that hold images, by name."""

    @abstractmethod
    def visible(self, storage: Storage, place: Place, frames: int) -> NDArray[np.bool_]:
        """Where the target can be seen; boxes that are absent are taken care of elsewhere."""


class Lasot(Layout):
    """LaSOT: hidden where `full_occlusion.txt` or `out_of_view.txt` says so; `list` names the 1,120 for training."""

    splits = ("all",)
    frame, first = "{:08d}.jpg", 1
    described = "CLASS/CLASS-N/img/00000001.jpg, CLASS/CLASS-N/groundtruth.txt"

    def places(self, folders: Counter[str], split: str) -> Iterator[tuple[str, Place]]:
        for folder in folders:
            base = folder.removesuffix("/img")
            if base != folder:
                yield base.rsplit("/", 1)[-1], Place(folder, f"{base}/groundtruth.txt")

    def visible(self, storage: Storage, place: Place, frames: int) -> NDArray[np.bool_]:
        base = place.truth.rsplit("/", 1)[0]
        flags = [_flags(storage, f"{base}/{name}", frames) for name in ("full_occlusion.txt", "out_of_view.txt")]
        return (flags[0] == 0) & (flags[1] == 0)


class Got10k(Layout):
    """GOT-10k: hidden where `absence.label` says so or `cover.label` says that nothing of the target is uncovered."""

    splits = ("train", "val")
    frame, first = "{:08d}.jpg", 1
    described = "train/GOT-10k_Train_000001/00000001.jpg, train/GOT-10k_Train_000001/groundtruth.txt (val likewise)"

    def name(self, number: int, split: str) -> str | None:
        return f"GOT-10k_{split.title()}_{number + 1:06d}"

    def places(self, folders: Counter[str], split: str) -> Iterator[tuple[str, Place]]:
        for folder in folders:
            name = folder.rsplit("/", 1)[-1]
            if name.lower().startswith(f"got-10k_{split}_"):
                yield name, Place(folder, f"{folder}/groundtruth.txt")

    def visible(self, storage: Storage, place: Place, frames: int) -> NDArray[np.bool_]:
        absent = _flags(storage, f"{place.images}/absence.label", frames)
        cover = _flags(storage, f"{place.images}/cover.label", frames)
        return (absent == 0) & (cover > 0)


class TrackingNet(Layout):
    """TrackingNet: 12 chunks of videos, all targets visible; `all` wants every chunk, `TRAIN_3` that one alone."""

    splits = ("all", *(f"TRAIN_{i}" for i in range(12)))
    frame, first = "{}.jpg", 0
    described = "TRAIN_0/frames/VIDEO/0.jpg, TRAIN_0/anno/VIDEO.txt, ... TRAIN_11"

    def places(self, folders: Counter[str], split: str) -> Iterator[tuple[str, Place]]:
        found = set()
        for folder in folders:
            match = re.fullmatch(r"(?:.*/)?(TRAIN_\d+)/frames/([^/]+)", folder)
            if match and split in ("all", match[1]):
                found.add(match[1])
                yield match[2], Place(folder, f"{folder[: -len('/frames/' + match[2])]}/anno/{match[2]}.txt")
        missing = [chunk for chunk in self.splits[1:] if split in ("all", chunk) and chunk not in found]
        if missing:
            raise FileNotFoundError(f"the chunks {', '.join(missing)} are missing")

    def visible(self, storage: Storage, place: Place, frames: int) -> NDArray[np.bool_]:
        return np.ones(frames, dtype=bool)


LAYOUTS: dict[str, Layout] = {"lasot": Lasot(), "got10k": Got10k(), "trackingnet": TrackingNet()}


def _flags(storage: Storage, name: str, frames: int) -> NDArray[np.int64]:
    """The whole numbers of a file, between commas or on lines of their own, one a frame."""
    words = re.split(r"[,\s]+", storage.read(name).decode("ascii", "replace").strip())
    try:
        values = np.array(words, dtype=np.float64).astype(np.int64)
    except ValueError:
        raise ValueError(f"{storage.path / name} does not hold numbers alone") from None
    if len(values) != frames:
        raise ValueError(f"{storage.path / name} has {len(values)} numbers for {frames} frames")
    return values


@dataclass(frozen=True)
class Selection:
    """Which sequences of a collection.

    Args:
        split: one of the layout's.
        only: a file of the names wanted, one a line; for GOT-10k also of their numbers, counted from 0, as the field's
            splits of it for VOT are written. None for all.
        without: a file of names that are left out, such as the 1,000 sequences of GOT-10k that VOT forbids.
        partial: go on without sequences that are missing or cannot be used.
    """

    split: str
    only: Path | None = None
    without: Path | None = None
    partial: bool = False


class Collection(NamedTuple):
    """The storage of a collection, its clips by name, and what is wrong with the sequences left out."""

    storage: Storage
    clips: list[Clip]
    problems: dict[str, str]


def read_collection(kind: str, path: str | Path, selection: Selection, index: str | Path | None = None) -> Collection:
    """The wanted clips of a collection.

    Args:
        kind: a key of `LAYOUTS`.
        path: its folder, zip file(s) or LMDB database.
        index: folder that keeps what was found, so that the next time takes seconds; delete its file when the data
            changes. None for none.

    Raises:
        FileNotFoundError: the collection, its lists or parts of it are missing; the message says which and where they
            should be. ValueError: a split that it has not, or files that cannot be read.
    """
    layout = LAYOUTS[kind]
    if selection.split not in layout.splits:
        raise ValueError(f"split={selection.split!r} must be one of {', '.join(layout.splits)}")
    storage = open_storage(path)
    key = json.dumps([_VERSION, kind, str(Path(path).resolve()), selection.split])
    cache = Path(index) / f"{kind}-{hashlib.sha256(key.encode()).hexdigest()[:12]}.npz" if index is not None else None
    stored = _load(cache) if cache is not None and cache.is_file() else None
    clips, problems = stored if stored is not None else _scan(layout, storage, selection.split)
    if stored is None and cache is not None:
        _store(cache, clips, problems)
    return _select(layout, Collection(storage, clips, problems), selection)


def _scan(layout: Layout, storage: Storage, split: str) -> tuple[list[Clip], dict[str, str]]:
    """All sequences of a split that can be used, and what is wrong with the others."""
    folders: Counter[str] = Counter()
    for name in storage.names():
        folder, _, file = name.rpartition("/")
        folders[folder] += f".{file.rpartition('.')[2].lower()}" in IMAGE_SUFFIXES
    folders = Counter({folder: count for folder, count in folders.items() if count})
    clips, problems = [], {}
    try:
        places = sorted(layout.places(folders, split))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{storage.path}: {error}; expected {layout.described}") from None
    for name, place in places:
        try:
            clips.append(_clip(layout, storage, name, place, folders[place.images]))
        except (OSError, ValueError) as error:
            problems[name] = str(error)
    return clips, problems


def _clip(layout: Layout, storage: Storage, name: str, place: Place, images: int) -> Clip:
    where = str(storage.path / place.truth)
    boxes = parse_boxes(parse_lines(storage.read(place.truth), where), where)
    if len(boxes) != images:
        raise ValueError(f"{where} has {len(boxes)} lines for the {images} images in {storage.path / place.images}")
    visible = layout.visible(storage, place, len(boxes)) & present(boxes)
    return Clip(name, f"{place.images}/{layout.frame}", layout.first, boxes, visible)


def _select(layout: Layout, found: Collection, selection: Selection) -> Collection:
    path, names = found.storage.path, sorted([*(clip.name for clip in found.clips), *found.problems])
    wanted = names
    if selection.only is not None:
        # A number that stands for no sequence stays what it is, and is then missing.
        lines = _read_list(selection.only)
        wanted = [(layout.name(int(one), selection.split) if one.isdecimal() else None) or one for one in lines]
    if selection.without is not None:
        unwanted = set(_read_list(selection.without))
        wanted = [name for name in wanted if name not in unwanted]
    clips = {clip.name: clip for clip in found.clips}
    problems = {
        name: found.problems.get(name, f"missing: expected {layout.described}") for name in wanted if name not in clips
    }
    if not wanted or (problems and not (selection.partial and len(problems) < len(wanted))):
        lines = [f"\n  {name}: {problem}" for name, problem in [*problems.items()][:_SHOWN]]
        more = f"\n  and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        what = f"{len(problems)} of {len(wanted)} sequences cannot be used" if wanted else "no sequence was found"
        raise FileNotFoundError(f"{path}: {what}; expected {layout.described}{''.join(lines)}{more}")
    return Collection(found.storage, [clips[name] for name in wanted if name in clips], problems)


def _read_list(path: Path) -> list[str]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: a list of sequences, one name a line")
    return [line.strip() for line in read_lines(path) if line.strip()]


def _store(path: Path, clips: list[Clip], problems: dict[str, str]) -> None:
    head = {
        "clips": [(clip.name, clip.images, clip.first, len(clip)) for clip in clips], "problems": problems
    }  # fmt: skip
    boxes = [clip.boxes for clip in clips] or [np.empty((0, 4))]
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        head=np.frombuffer(json.dumps(head).encode(), dtype=np.uint8),
        boxes=np.concatenate(boxes),
        visible=np.concatenate([clip.visible for clip in clips] or [np.empty(0, bool)]),
    )
    write_atomically(path, lambda temporary: Path(temporary).write_bytes(buffer.getvalue()))


def _load(path: Path) -> tuple[list[Clip], dict[str, str]] | None:
    """What `_store` wrote; None for a file that is damaged, which is then written again."""
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            head = json.loads(arrays["head"].tobytes())
            boxes, visible = arrays["boxes"], arrays["visible"]
        edges = np.cumsum([0, *(one[3] for one in head["clips"])])
        clips = [
            Clip(name, images, first, boxes[start:stop], visible[start:stop])
            for (name, images, first, _), start, stop in zip(head["clips"], edges[:-1], edges[1:], strict=True)
        ]
        return clips, head["problems"]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, zlib.error, EOFError):
        return None
