"""Videos with ground truth, in the folder layout of OTB: `NAME/img/*.jpg|png` and `NAME/groundtruth_rect.txt`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from .metrics import Array, present

GROUND_TRUTH = "groundtruth_rect.txt"
FRAMES = "img"
SUFFIXES = frozenset((".jpg", ".jpeg", ".png"))


@dataclass(frozen=True, eq=False)
class Video:
    """Frames on disk and their boxes.

    Args:
        name: the folder's name.
        frames: image files in order.
        boxes: (len(frames), 4) float64 xywh in pixels counted from 0; NaN where the target is absent.
        origin: what the ground-truth file counts its coordinates from, 0 or 1.
    """

    name: str
    frames: tuple[Path, ...]
    boxes: Array
    origin: int = 0

    def __len__(self) -> int:
        return len(self.frames)

    def frame(self, index: int) -> NDArray[np.uint8]:
        """One frame, (h,w,3) uint8 RGB. Raises ValueError when the file is no readable image."""
        image = cv2.imread(str(self.frames[index]), cv2.IMREAD_COLOR)
        if image is None:
            raise ValueError(f"{self.frames[index]} cannot be read as an image: is it damaged?")
        return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), dtype=np.uint8)


def load_videos(folder: str | Path, one_based: Sequence[str] = ()) -> list[Video]:
    """Every video in a folder, sorted by name.

    Args:
        folder: holds a folder for each video; entries with neither frames nor ground truth are passed over.
        one_based: names, or patterns such as `"OTB_*"`, of the videos whose ground truth counts pixels from 1, as
            MATLAB-made data sets (OTB, VOT) do; 1 is then subtracted from their x and y.

    Raises:
        FileNotFoundError: no such folder, no video in it, or a video without frames or ground truth.
        ValueError: a ground-truth file that cannot be read, or that does not fit its frames; or a pattern that names
            no video.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder")
    found = sorted(path for path in folder.iterdir() if (path / FRAMES).is_dir() or (path / GROUND_TRUTH).is_file())
    if not found:
        raise FileNotFoundError(
            f"{folder} holds no videos: expected {folder / 'NAME' / FRAMES}/*.jpg and {folder / 'NAME' / GROUND_TRUTH}"
        )
    for pattern in one_based:
        if not any(fnmatchcase(path.name, pattern) for path in found):
            raise ValueError(f"no video in {folder} is called {pattern!r}, given as counting from 1")
    return [load_video(path, int(any(fnmatchcase(path.name, pattern) for pattern in one_based))) for path in found]


def load_video(folder: str | Path, origin: int = 0) -> Video:
    """One video's folder; `origin` is what its ground truth counts pixels from. Raises as `load_videos`."""
    folder = Path(folder)
    images = folder / FRAMES
    frames = [path for path in images.iterdir() if path.suffix.lower() in SUFFIXES] if images.is_dir() else []
    if not frames:
        raise FileNotFoundError(f"{images} holds no frames ({', '.join(sorted(SUFFIXES))})")
    truth = folder / GROUND_TRUTH
    if not truth.is_file():
        raise FileNotFoundError(f"{truth} is missing: one line x,y,w,h for each of the {len(frames)} frames")
    boxes = read_boxes(truth, len(frames))
    if len(boxes) != len(frames):
        raise ValueError(f"{truth} has {len(boxes)} lines for {len(frames)} frames in {images}")
    if not present(boxes)[0]:
        raise ValueError(f"{truth}: the first frame has no box to start the tracker with")
    boxes[:, :2] -= origin
    return Video(folder.name, tuple(sorted(frames, key=_in_counting_order)), boxes, origin)


def read_boxes(path: str | Path, frames: int | None = None) -> Array:
    """A text file of one box a line -> (n,4) float64, rows of NaN where the target is absent.

    A line is four numbers x, y, w, h between commas, tabs or spaces. It says "absent" when it is empty, all `nan`, or
    when a side is not positive. Empty lines at the end, beyond the number of `frames`, mean nothing.

    Raises:
        ValueError: a line that is neither; the message names file and line.
    """
    lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    while frames is not None and len(lines) > frames and not lines[-1].strip():
        lines.pop()
    rows = []
    for number, line in enumerate(lines, 1):
        words = [word for word in re.split(r"[,;\s]+", line) if word]
        try:
            values = [float(word) for word in words]
        except ValueError:
            raise ValueError(f"{path}, line {number}: {line.strip()!r} is not four numbers x,y,w,h") from None
        if all(np.isnan(values)):
            values = [np.nan] * 4
        elif len(values) != 4 or not np.isfinite(values).all():
            raise ValueError(
                f"{path}, line {number}: expected four finite numbers x,y,w,h (or nan for absent), got {line.strip()!r}"
            )
        rows.append(values)
    boxes = np.array(rows, dtype=np.float64).reshape(-1, 4)
    boxes[~present(boxes)] = np.nan
    return boxes


def format_boxes(boxes: Array) -> str:
    """(n,4) boxes as text that `read_boxes` reads: a line each, three decimals, nan where there is no box."""
    return "".join(",".join(f"{value:.3f}" for value in row) + "\n" for row in boxes)


def _in_counting_order(path: Path) -> list[tuple[int, str]]:
    """10.jpg after 9.jpg, however many digits the names have."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", path.stem)]
