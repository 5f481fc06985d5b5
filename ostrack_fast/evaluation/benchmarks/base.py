"""What benchmarks have in common: sequences, and how missing and damaged parts of a download are told."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from ...data import layouts
from ...data.images import find_images, is_hidden
from ...data.storage import Folder
from ...data.truth import Array, read_numbers
from ...files import exists
from ..protocols import Truth

_SHOWN = 10


@dataclass(frozen=True, eq=False)
class Sequence:
    """A sequence of a benchmark: one target in one video.

    Args:
        truth: its boxes and flags; its name is the sequence's.
        list_frames: lists the image files, one a box, when it is called; scoring needs none.
        aliases: other names that toolkits give its result files.
        origin: what its boxes count pixels from, 0 or 1; result files count alike.
        attributes: names of the challenges it is annotated with.
    """

    truth: Truth
    list_frames: Callable[[], list[Path]]
    aliases: tuple[str, ...] = ()
    origin: int = 0
    attributes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The name that reports use."""
        return self.truth.name

    def frames(self) -> list[Path]:
        """The image files, one a box.

        Raises:
            FileNotFoundError: there are none. ValueError: there are more or fewer than boxes (but for test sets, which
            give the first box alone).
        """
        frames = self.list_frames()
        if not frames:
            raise FileNotFoundError(f"{self.name}: its images are missing")
        boxes = len(self.truth.boxes)
        if boxes not in (1, len(frames)):
            fewer = "truth" if boxes < len(frames) else "images"
            raise ValueError(f"{self.name}: {len(frames)} images for {boxes} boxes: is a part of the {fewer} missing?")
        return frames


@dataclass(frozen=True, eq=False)
class Loaded:
    """What a folder of data holds of a benchmark: sequences, the split they are, and remarks on what it lacks."""

    sequences: tuple[Sequence, ...]
    split: str
    notes: tuple[str, ...] = ()


class Benchmark(ABC):
    """Reads a benchmark's data as they are downloaded.

    Attributes:
        name: on the command line.
        title: as papers write it.
        protocol: the name of its official protocol.
        splits: that it has, the usual one first.
        counts: sequences in whole copies of splits, where no list of names says which a folder lacks.
        nested_results: each sequence has a folder of its own in a tracker's results, as the GOT-10k toolkit's.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    protocol: ClassVar[str]
    splits: ClassVar[tuple[str, ...]] = ("test",)
    counts: ClassVar[dict[str, int]] = {}
    nested_results: ClassVar[bool] = False

    def load(self, data: str | Path, split: str | None = None) -> Loaded:
        """The sequences of a split in a folder; without `split`, of the first of `splits` that the folder holds.

        Raises:
            FileNotFoundError: the folder, the split, or a file that belongs to a sequence is missing.
            ValueError: an unknown split, or a file that cannot be read; the message names it.
        """
        data = Path(data)
        if not (exists(data) and data.is_dir()):
            raise FileNotFoundError(f"{data} is not a folder: give the one that {self.title} was unpacked into")
        if split is not None and split not in self.splits:
            raise ValueError(f"{self.title} has no split {split!r}: choose one of {', '.join(self.splits)}")
        loaded = self._load(data, split)
        if not loaded.sequences:
            raise FileNotFoundError(f"{data} holds no sequence of {self.title}{f', split {split}' if split else ''}")
        whole, held = self.counts.get(loaded.split), len(loaded.sequences)
        if whole in (None, held) or loaded.notes:
            return loaded
        note = f"{self.title}, split {loaded.split}, has {whole} sequences, and {data} holds {held}"
        return replace(loaded, notes=(f"{note}: figures are no official ones",))

    @abstractmethod
    def _load(self, data: Path, split: str | None) -> Loaded: ...

    def wrong_layout(self, data: Path, expected: str) -> FileNotFoundError:
        """What to raise where a folder is no copy of the benchmark; `expected` says what one holds."""
        found = sorted(path.name for path in data.iterdir() if not is_hidden(path.name))
        shown = ", ".join(found[:_SHOWN]) + (", ..." if len(found) > _SHOWN else "")
        return FileNotFoundError(
            f"{data} is no copy of {self.title}: expected {expected}; it holds {shown or 'nothing'}"
        )


def load_all(names: Iterable[str], load: Callable[[str], Sequence], what: str) -> tuple[Sequence, ...]:
    """`load` of every name.

    Raises:
        FileNotFoundError, ValueError: what was raised for some of them, together.
    """
    loaded, problems = [], {}
    for name in names:
        try:
            loaded.append(load(name))
        except (OSError, ValueError) as error:
            problems[name] = error
    if problems:
        shown = list(problems.items())[:_SHOWN]
        lines = "".join(f"\n  {name}: {error}" for name, error in shown)
        more = f"\n  and {len(problems) - len(shown)} more" if len(problems) > len(shown) else ""
        kind = FileNotFoundError if all(isinstance(error, OSError) for error in problems.values()) else ValueError
        raise kind(f"{what}: {len(problems)} sequences are incomplete or damaged:{lines}{more}")
    return tuple(loaded)


def lacking(title: str, official: Iterable[str], found: Iterable[str]) -> tuple[str, ...]:
    """A remark on the official sequences that are not among those found; none when all are."""
    official, there = list(official), set(found)
    missing = [name for name in official if name not in there]
    if not missing:
        return ()
    shown = ", ".join(missing[:_SHOWN]) + (", ..." if len(missing) > _SHOWN else "")
    return (f"{title} has {len(official)} sequences, of which {len(missing)} are missing here: {shown}",)


def need(path: Path) -> Path:
    """The path. Raises FileNotFoundError if there is no such file."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing")
    return path


def folders(parent: Path) -> list[Path]:
    """The folders in a folder that may hold data, by name; none where it is missing."""
    if not parent.is_dir():
        return []
    return sorted(path for path in parent.iterdir() if path.is_dir() and not is_hidden(path.name))


def texts(parent: Path) -> dict[str, Path]:
    """The text files in a folder that may be data, by name without suffix; none where it is missing."""
    if not parent.is_dir():
        return {}
    return {path.stem: path for path in sorted(parent.glob("*.txt")) if not is_hidden(path.name)}


def first_folder(*candidates: Path) -> Path | None:
    """The first that is a folder."""
    return next((path for path in candidates if path.is_dir()), None)


def images_in(folder: Path) -> Callable[[], list[Path]]:
    """Lists the images of a folder, which may be missing, in natural order."""
    return lambda: find_images(folder) if folder.is_dir() else []


def read_flags(path: Path, frames: int) -> NDArray[np.bool_]:
    """(frames,) bool: which of a file's flags are set. Raises as `data.layouts.read_flags`."""
    return layouts.read_flags(Folder(path.parent), path.name, frames)


def read_attributes(path: Path, names: SequenceOfNames) -> tuple[str, ...]:
    """Those of the names whose number in the file is positive; none without a file."""
    if not path.is_file():
        return ()
    return tuple(name for name, flag in zip(names, read_numbers(path), strict=False) if flag > 0)


def no_target(boxes: Array) -> NDArray[np.bool_]:
    """Where a side of the true box is not positive: how data sets without flags say that the target is absent."""
    return np.asarray((boxes[:, 2:] <= 0).any(axis=1))


SequenceOfNames = tuple[str, ...]
