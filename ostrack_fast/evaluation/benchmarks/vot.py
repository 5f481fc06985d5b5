"""VOT-style folders (Kristan et al.): `list.txt`, `NAME/groundtruth.txt` of polygons, rectangles or masks."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ...data.images import find_images
from ...data.truth import parse_number, read_lines
from ..protocols import Truth
from .base import Benchmark, Loaded, Sequence, first_folder, folders, images_in, load_all, need


class Vot(Benchmark):
    """Sequences in VOT's layout, as boxes: upright ones around polygons and masks.

    VOT itself scores regions with restarts, in its own toolkit, which runs our tracker through TraX
    (`ostrack_fast.adapters.vot`). The figures here are of one pass over each sequence.
    """

    name = "vot"
    title = "VOT"
    protocol = "folder"

    def _load(self, data: Path, split: str | None) -> Loaded:
        root = data / "sequences" if (data / "sequences").is_dir() else data
        listed = root / "list.txt"
        if listed.is_file():
            names = [line.strip() for line in read_lines(listed) if line.strip()]
        else:
            names = [path.name for path in folders(root) if (path / "groundtruth.txt").is_file()]
        if not names:
            raise self.wrong_layout(data, "list.txt, NAME/groundtruth.txt and NAME/color/*.jpg")
        return Loaded(load_all(names, lambda name: _load_one(root / name), str(root)), "test")


def _load_one(folder: Path) -> Sequence:
    path = need(folder / "groundtruth.txt")
    lines = [line.strip() for line in read_lines(path)]
    while lines and not lines[-1]:
        lines.pop()
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            rows.append(_mask_box(line) if line.startswith("m") else _region_box(line))
        except (ValueError, OverflowError) as error:
            raise ValueError(f"{path}, line {number}: {line[:80]!r} is no rectangle, polygon or mask") from error
    if not rows:
        raise ValueError(f"{path} is empty")
    images = first_folder(folder / "color") or folder
    frames = images_in(images) if find_images(images) else list
    return Sequence(Truth(folder.name, np.array(rows), dataset="vot"), frames)


def _region_box(line: str) -> list[float]:
    """x,y,w,h of a rectangle of four numbers or around a polygon of six or more; NaN for a single number or none."""
    values = [parse_number(word.strip()) for word in line.split(",") if word.strip()]
    if len(values) < 2:
        return [np.nan] * 4
    if len(values) == 4:
        return values
    if len(values) % 2 or len(values) < 6:
        raise ValueError("an odd number of coordinates")
    x, y = values[::2], values[1::2]
    return [min(x), min(y), max(x) - min(x), max(y) - min(y)]


def _mask_box(line: str) -> list[float]:
    """The box around a mask: m left, top, width, height of its frame, then lengths of runs of 0 and 1 by turns."""
    left, top, width, height, *runs = (int(word) for word in line[1:].split(","))
    if min(runs, default=0) < 0:
        raise ValueError("a run of negative length")
    if width <= 0 or height <= 0:
        return [np.nan] * 4
    # From the ends of the runs alone: a line may claim a frame of any size.
    columns, rows, begin = [], [], 0
    for number, run in enumerate(runs):
        end = min(begin + run, width * height)
        if number % 2 and begin < end:
            first, last = divmod(begin, width), divmod(end - 1, width)
            rows += [first[0], last[0]]
            columns += [first[1], last[1]] if first[0] == last[0] else [0, width - 1]
        begin = end
    if not rows:
        return [np.nan] * 4
    size = max(columns) + 1 - min(columns), max(rows) + 1 - min(rows)
    return [float(left + min(columns)), float(top + min(rows)), float(size[0]), float(size[1])]
