"""The published collections of training videos, LaSOT, GOT-10k and TrackingNet: their clips, lists and index."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
import zlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..files import write_atomically
from .images import IMAGE_SUFFIXES
from .layouts import LAYOUTS, Layout, Place
from .storage import Storage, open_storage
from .truth import Array, parse_boxes, present, read_lines

# Of the index: one that an older version wrote is read no more.
_VERSION = 2
_SHOWN = 5


@dataclass(frozen=True, eq=False)
class Clip:
    """A video of a collection.

    Args:
        name: of the sequence.
        images: its frames' names in the storage, as a format of the frame's number.
        first: number of the first frame.
        boxes: (n,4) float64 xywh in pixels counted from 0; NaN where a box is absent or degenerate.
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
    for place in places:
        try:
            clips.append(_clip(layout, storage, place, folders[place.images]))
        except (OSError, ValueError) as error:
            problems[place.name] = str(error)
    return clips, problems


def _clip(layout: Layout, storage: Storage, place: Place, images: int) -> Clip:
    where = storage.path / place.truth
    boxes = parse_boxes(storage.read(place.truth), where, images)
    if len(boxes) != images:
        raise ValueError(f"{where} has {len(boxes)} lines for the {images} images in {storage.path / place.images}")
    visible = layout.visible(storage, place, images) & present(boxes)
    boxes[:, :2] -= layout.origin
    return Clip(place.name, f"{place.images}/{layout.frame}", layout.first, boxes, visible)


def _select(layout: Layout, found: Collection, selection: Selection) -> Collection:
    path, names = found.storage.path, sorted([*(clip.name for clip in found.clips), *found.problems])
    wanted = names
    if selection.only is not None:
        # A number that stands for no sequence stays what it is, and is then missing.
        lines = _read_list(selection.only)
        wanted = [(layout.numbered(int(one), selection.split) if one.isdecimal() else None) or one for one in lines]
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
