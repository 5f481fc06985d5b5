"""Several starts in every sequence: how much of a figure comes from the frame that trackers were started on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..data.truth import present
from .benchmarks import Loaded, Sequence

_MARK = "@"


def several_starts(loaded: Loaded, count: int) -> Loaded:
    """Every sequence `count` times: whole, and from later frames to its end, evenly spaced.

    OTB's temporal robustness evaluation (TRE; Wu et al. 2013, section 4), with `count` starts in place of its 20. A
    start is at the first frame from there on that has a target; one with no frame after it is left out. The whole
    sequence keeps its name, so that results of a run with one start serve for a run with several; the others are called
    NAME@FRAME, frames counted from 0.
    """
    if count < 2:
        return loaded
    return replace(loaded, sequences=tuple(part for each in loaded.sequences for part in _parts(each, count)))


def video_of(name: str) -> str:
    """The sequence's name without the start."""
    video, mark, frame = name.rpartition(_MARK)
    return video if mark and frame.isdecimal() else name


def start_of(name: str) -> int:
    """The frame that a sequence of `several_starts` begins at."""
    return 0 if video_of(name) == name else int(name.rpartition(_MARK)[2])


def by_start(names: list[str]) -> list[list[str]]:
    """The sequences that are the first, second, ... start of their videos; a single list where there is one start."""
    videos: dict[str, list[str]] = {}
    for name in sorted(names, key=start_of):
        videos.setdefault(video_of(name), []).append(name)
    most = max(map(len, videos.values()))
    return [[starts[index] for starts in videos.values() if index < len(starts)] for index in range(most)]


def _parts(sequence: Sequence, count: int) -> list[Sequence]:
    truth = sequence.truth
    visible = present(truth.boxes)
    if truth.absent is not None:
        visible &= ~truth.absent
    parts, taken = [sequence], {0}
    for number in range(1, count):
        later = np.flatnonzero(visible[number * len(visible) // count :])
        start = int(later[0]) + number * len(visible) // count if len(later) else len(visible)
        if start < len(visible) - 1 and start not in taken:
            taken.add(start)
            parts.append(_from(sequence, start))
    return parts


def _from(sequence: Sequence, start: int) -> Sequence:
    truth = sequence.truth
    later = replace(
        truth,
        name=f"{truth.name}{_MARK}{start}",
        boxes=truth.boxes[start:],
        absent=None if truth.absent is None else truth.absent[start:],
        cover=None if truth.cover is None else truth.cover[start:],
    )
    return replace(sequence, truth=later, list_frames=lambda: sequence.list_frames()[start:], aliases=())
