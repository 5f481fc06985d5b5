"""Result files of trackers, in the layouts of the field's toolkits.

| layout | a tracker's folder holds |
|---|---|
| own, pytracking, pysot, LaSOT and TrackingNet | `SEQUENCE.txt` |
| got10k | `SEQUENCE/SEQUENCE_001.txt`, one file for each repetition |

Numbers may stand between commas, tabs or spaces. Times and scores beside them (`SEQUENCE_time.txt`) are passed over.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ..files import exists
from .benchmarks import Sequence

_SHOWN = 10
_DEPTH = 5
"""Folders below the one given: results/TRACKER/PARAMETERS/DATASET and one more."""


@dataclass(frozen=True)
class Results:
    """A tracker's result files: at least one for every sequence, by the sequence's name."""

    name: str
    folder: Path
    files: dict[str, list[Path]]


def check_is_folder(path: str | Path) -> None:
    """Raise FileNotFoundError unless the path is a folder."""
    if not (exists(path) and Path(path).is_dir()):
        raise FileNotFoundError(f"{path} is not a folder of results")


def find_results(paths: Iterable[str | Path], sequences: Iterable[Sequence]) -> list[Results]:
    """The trackers in folders of results.

    Args:
        paths: folders, each a tracker's own (which gives it its name) or one that holds several trackers' folders.
        sequences: those that results are needed for.

    Raises:
        FileNotFoundError: a folder is missing, holds no result of any of the sequences, or lacks some.
        ValueError: two trackers of the same name.
    """
    sequences = list(sequences)
    found: list[Results] = []
    for path in map(Path, paths):
        check_is_folder(path)
        trackers = list(_trackers_in(path, sequences, _DEPTH))
        if not trackers:
            names = ", ".join(sequence.name for sequence in sequences[:3])
            raise FileNotFoundError(
                f"{path} holds no results of these sequences ({names}, ...): expected SEQUENCE.txt or "
                "SEQUENCE/SEQUENCE_001.txt"
            )
        found += [_complete(_name(folder, path), folder, files, sequences) for folder, files in trackers]
    return _distinct(found)


def _trackers_in(folder: Path, sequences: list[Sequence], depth: int) -> Iterator[tuple[Path, dict[str, list[Path]]]]:
    """(folder, {sequence: files}) of each folder at or below this one that has results of its own."""
    entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    names = {entry.name.lower(): Path(entry.path) for entry in entries if entry.is_file()}
    # An exact name wins over one that differs in capitals (PySOT's jogging_1 for Jogging-1).
    names.update({entry.name: Path(entry.path) for entry in entries if entry.is_file()})
    inner = {entry.name: Path(entry.path) for entry in entries if entry.is_dir() and not entry.name.startswith(".")}
    files = {sequence.name: own for sequence in sequences if (own := _files_of(sequence, names, inner))}
    if files:
        yield folder, files
        return
    if depth:
        for path in inner.values():
            yield from _trackers_in(path, sequences, depth - 1)


def _files_of(sequence: Sequence, files: dict[str, Path], folders: dict[str, Path]) -> list[Path]:
    for name in (sequence.name, *sequence.aliases):
        for spelling in (f"{name}.txt", f"{name}.txt".lower()):
            if spelling in files:
                return [files[spelling]]
        if name in folders:
            runs = re.compile(rf"{re.escape(name)}(_\d+)?\.txt")
            found = sorted(path for path in folders[name].iterdir() if runs.fullmatch(path.name))
            if found:
                return found
    return []


def _complete(name: str, folder: Path, files: dict[str, list[Path]], sequences: list[Sequence]) -> Results:
    missing = [sequence.name for sequence in sequences if sequence.name not in files]
    if missing:
        shown = ", ".join(missing[:_SHOWN]) + (", ..." if len(missing) > _SHOWN else "")
        raise FileNotFoundError(f"{folder} lacks the results of {len(missing)} of {len(sequences)} sequences: {shown}")
    return Results(name, folder, files)


def _name(folder: Path, given: Path) -> str:
    """Of a tracker: its folder's name, from the folder that was given on."""
    below = folder.relative_to(given).as_posix()
    return folder.resolve().name if below == "." else below


def _distinct(found: list[Results]) -> list[Results]:
    """The trackers, those of equal names called by their whole paths."""
    names = [each.name for each in found]
    renamed = [
        each if names.count(each.name) == 1 else Results(each.folder.as_posix(), each.folder, each.files)
        for each in found
    ]
    if len({each.name for each in renamed}) < len(renamed):
        twice = next(each.name for each in renamed if [one.name for one in renamed].count(each.name) > 1)
        raise ValueError(f"{twice} is given twice")
    return renamed
