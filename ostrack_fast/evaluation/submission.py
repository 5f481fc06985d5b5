"""Zip files for the evaluation servers of GOT-10k and TrackingNet, checked as the servers check them.

| benchmark | in the zip file |
|---|---|
| got10k | `SEQUENCE/SEQUENCE_001.txt` (more repetitions: `_002`, `_003`) and `SEQUENCE/SEQUENCE_time.txt` |
| trackingnet | `SEQUENCE.txt` |

Every box file has four numbers between commas for every frame, the first frame's among them. GOT-10k's times are
seconds, a line a frame and a column a repetition.
"""

from __future__ import annotations

import math
import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from ..data.storage import DAMAGED
from ..data.truth import Array, read_numbers, read_raw_boxes
from ..files import write_atomically
from .benchmarks import find_benchmark
from .results import Results, find_results

_SHOWN = 10
_OFFICIAL = {"got10k": 180, "trackingnet": 511}
# A box file of the longest test sequence has a hundredth of it.
_MOST_BYTES = 1 << 24
# A fixed date: the same results make the same file.
_DATE = (2020, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class Expected:
    """A sequence of the test set: its number of frames, and the box that trackers are started with."""

    name: str
    frames: int
    first: Array


def make_submission(benchmark: str, data: str | Path, results: str | Path, path: str | Path) -> list[str]:
    """Write a tracker's results as the server's zip file, and check it.

    Args:
        benchmark: "got10k" or "trackingnet".
        data: the benchmark's folder, which says what the test set is.
        results: the tracker's folder of result files.
        path: of the zip file; it is written atomically, and only if there is nothing to complain of but the
            number of sequences.

    Returns:
        Remarks: how many of the official sequences `data` lacks.

    Raises:
        FileNotFoundError: data or results are missing. ValueError: what the server would refuse, all of it.
    """
    expected, notes = expected_sequences(benchmark, data)
    loaded = find_benchmark(benchmark).load(data, _test_split(benchmark))
    (found, *others) = find_results([results], loaded.sequences)
    if others:
        raise ValueError(f"{results} holds the results of several trackers ({found.name}, {others[0].name}): give one")
    members = _members(benchmark, found, expected)

    def write(temporary: str) -> None:
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, text in sorted(members.items()):
                archive.writestr(zipfile.ZipInfo(name, _DATE), text, zipfile.ZIP_DEFLATED)
        problems = check_submission(benchmark, expected, temporary)
        if problems:
            raise ValueError(_listed(results, problems))

    write_atomically(path, write, ".zip")
    return notes


def expected_sequences(benchmark: str, data: str | Path) -> tuple[list[Expected], list[str]]:
    """The test set in a folder, and remarks on what it lacks. Raises ValueError for a benchmark without a server."""
    if benchmark not in _OFFICIAL:
        raise ValueError(f"{benchmark} takes no zip file: those of {' and '.join(_OFFICIAL)} are known")
    loaded = find_benchmark(benchmark).load(data, _test_split(benchmark))
    expected = [Expected(each.name, len(each.frames()), each.truth.boxes[0]) for each in loaded.sequences]
    notes = []
    if len(expected) != _OFFICIAL[benchmark]:
        notes.append(f"the test set has {_OFFICIAL[benchmark]} sequences, and {data} holds {len(expected)}")
    return expected, notes


def check_submission(benchmark: str, expected: list[Expected], path: str | Path) -> list[str]:
    """What the server would refuse in a zip file; nothing when it is right.

    Raises:
        ValueError: it is no zip file, or a damaged one.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if any(entry.file_size > _MOST_BYTES for entry in archive.infolist()):
                raise ValueError(f"{path} holds a file of more than {_MOST_BYTES:,} bytes: that is no box file")
            if (damaged := archive.testzip()) is not None:
                raise ValueError(f"{path} is damaged at {damaged}")
            # The toolkit packs with a leading "./".
            members = {
                name.removeprefix("./"): archive.read(name).decode("utf-8", "replace") for name in _files_in(archive)
            }
    except FileNotFoundError:
        raise
    except DAMAGED as error:
        raise ValueError(f"{path} is no zip file that can be read: {error}") from None
    check = _check_got10k if benchmark == "got10k" else _check_trackingnet
    return check(expected, members)


def _files_in(archive: zipfile.ZipFile) -> list[str]:
    return [name for name in archive.namelist() if not name.endswith("/") and "__MACOSX" not in name]


def _test_split(benchmark: str) -> str:
    return {"got10k": "test", "trackingnet": "TEST"}[benchmark]


def _members(benchmark: str, results: Results, expected: list[Expected]) -> dict[str, str]:
    """{name in the zip file: text}."""
    members = {}
    for each in expected:
        files = results.files[each.name]
        if benchmark == "trackingnet":
            members[f"{each.name}.txt"] = _boxes_text(files[0])
            continue
        for number, file in enumerate(files, 1):
            members[f"{each.name}/{each.name}_{number:03}.txt"] = _boxes_text(file)
        times = files[0].parent / f"{each.name}_time.txt"
        if not times.is_file():
            raise FileNotFoundError(f"{times} is missing: GOT-10k wants the seconds of every frame")
        seconds = read_numbers(times).reshape(each.frames, -1) if _fits(times, each.frames) else None
        if seconds is None:
            raise ValueError(f"{times} does not hold a number for each of the {each.frames} frames")
        members[f"{each.name}/{each.name}_time.txt"] = "".join(
            ",".join(f"{value:.8f}" for value in row) + "\n" for row in seconds
        )
    return members


def _fits(times: Path, frames: int) -> bool:
    count = len(read_numbers(times))
    return count > 0 and count % frames == 0


def _boxes_text(path: Path) -> str:
    return "".join(",".join(f"{value:.3f}" for value in row) + "\n" for row in read_raw_boxes(path))


def _check_got10k(expected: list[Expected], members: dict[str, str]) -> list[str]:
    problems = []
    for each in expected:
        pattern = re.compile(rf"{re.escape(each.name)}/{re.escape(each.name)}_\d{{3}}\.txt")
        runs = [name for name in members if pattern.fullmatch(name)]
        if not runs:
            problems.append(f"{each.name}/{each.name}_001.txt is missing")
        for name in runs:
            problems += _check_boxes(name, members[name], each)
        times = f"{each.name}/{each.name}_time.txt"
        if times not in members:
            problems.append(f"{times} is missing")
        else:
            rows = [line.split(",") for line in members[times].split()]
            if len(rows) != each.frames or any(len(row) != max(1, len(runs)) for row in rows):
                problems.append(f"{times}: expected {each.frames} lines of {max(1, len(runs))} numbers")
            elif not all(_is_duration(word) for row in rows for word in row):
                problems.append(f"{times} holds something else than seconds")
    known = {each.name for each in expected}
    return problems + _strangers(members, lambda name: PurePosixPath(name).parts[0] in known)


def _is_duration(word: str) -> bool:
    try:
        return 0 <= float(word) < math.inf
    except ValueError:
        return False


def _check_trackingnet(expected: list[Expected], members: dict[str, str]) -> list[str]:
    problems = []
    for each in expected:
        # The server takes the file whose path contains the name, in whatever folder, and wants exactly one.
        found = [name for name in members if f"{each.name}.txt" in name]
        if len(found) != 1:
            problems.append(f"{each.name}.txt is {'there twice' if found else 'missing'}")
        for name in found[:1]:
            problems += _check_boxes(name, members[name], each)
    known = {f"{each.name}.txt" for each in expected}
    return problems + _strangers(members, lambda name: PurePosixPath(name).name in known)


def _strangers(members: dict[str, str], known: Callable[[str], bool]) -> list[str]:
    return [f"{name} belongs to no sequence of the test set" for name in members if not known(name)]


def _check_boxes(name: str, text: str, expected: Expected) -> list[str]:
    rows = text.strip().splitlines()
    if len(rows) != expected.frames:
        return [f"{name} has {len(rows)} boxes for {expected.frames} frames"]
    try:
        boxes = np.array([[float(value) for value in row.split(",")] for row in rows])
    except ValueError as error:
        return [f"{name}: {error}"]
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        return [f"{name}: a line is not four numbers between commas"]
    if not np.isfinite(boxes).all():
        return [f"{name}: frame {int(np.flatnonzero(~np.isfinite(boxes).all(axis=1))[0]) + 1} is no finite box"]
    if np.abs(boxes[0] - expected.first).max() > 1:
        return [f"{name}: the first box {rows[0]} is not the one that is given, {expected.first.tolist()}"]
    return []


def _listed(path: str | Path, problems: list[str]) -> str:
    more = f"\n  and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
    return f"{path}: the server would refuse this:" + "".join(f"\n  {each}" for each in problems[:_SHOWN]) + more


def refuse(path: str | Path, problems: list[str]) -> None:
    """Raise ValueError, which lists the problems, if there are any."""
    if problems:
        raise ValueError(_listed(path, problems))
