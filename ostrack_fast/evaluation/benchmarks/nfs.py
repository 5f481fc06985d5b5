"""NFS, Need for Speed (Kiani Galoogahi et al. 2017), at 30 and at 240 frames a second."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np

from ...data.truth import Array, parse_number, read_lines, read_raw_boxes
from ..protocols import Truth
from .base import Benchmark, Loaded, Sequence, folders, images_in, load_all, need, texts

# Each annotated frame stands for eight of the 240 frames a second.
_RATIO = 8


class Nfs(Benchmark):
    """NFS as downloaded, `NAME/30/NAME.txt` beside `NAME/30/NAME/*.jpg`, or as PyTracking lays it out.

    The download's annotations are VATIC's: track, left, top, right, bottom, frame, lost, occluded, generated, label. Of
    a file for 30 frames a second that has a line for each of the 240, every eighth is taken; one image or box too many
    at the end is left out. PyTracking's layout, `anno/nfs_NAME.txt` and `sequences/NAME/*.jpg`, has the 30 alone.
    """

    name = "nfs"
    title = "NFS"
    protocol = "otb"
    splits = ("30", "240")
    counts: ClassVar[dict[str, int]] = {"30": 100, "240": 100}

    def _load(self, data: Path, split: str | None) -> Loaded:
        truths = texts(data / "anno")
        if truths and split in (None, "30"):
            return Loaded(load_all(truths, lambda stem: _from_pytracking(data, truths[stem]), str(data)), "30")
        for each in (split,) if split else self.splits:
            found = {path.name: path / each for path in folders(data) if (path / each).is_dir()}
            if found:
                return Loaded(load_all(found, lambda name: _from_download(found[name], name), str(data)), each)  # noqa: B023
        expected = f"NAME/{split or 30}/NAME.txt, or anno/nfs_NAME.txt and sequences/NAME/*.jpg"
        raise self.wrong_layout(data, expected)


def _from_pytracking(data: Path, path: Path) -> Sequence:
    name = path.stem.removeprefix("nfs_")
    truth = Truth(name, read_raw_boxes(path), dataset="nfs")
    return Sequence(truth, images_in(data / "sequences" / name), (f"nfs_{name}",))


def _from_download(folder: Path, name: str) -> Sequence:
    boxes = _read_vatic(need(folder / f"{name}.txt"))
    list_frames = images_in(folder / name)
    frames = list_frames()
    if len(boxes) > len(frames) + 1 and abs(len(boxes[::_RATIO]) - len(frames)) <= 1:
        boxes = boxes[::_RATIO]
    if frames and abs(len(frames) - len(boxes)) == 1:
        frames = frames[: len(boxes)]
        boxes = boxes[: len(frames)]
    return Sequence(Truth(name, boxes, dataset="nfs"), lambda: frames, (f"nfs_{name}",))


def _read_vatic(path: Path) -> Array:
    rows = []
    for number, line in enumerate(read_lines(path), 1):
        if not line.strip():
            continue
        try:
            left, top, right, bottom = map(parse_number, line.split()[1:5])
        except ValueError:
            raise ValueError(f"{path}, line {number}: {line[:80]!r} is not track, left, top, right, bottom") from None
        rows.append((left, top, right - left, bottom - top))
    if not rows:
        raise ValueError(f"{path} is empty")
    return np.array(rows)
