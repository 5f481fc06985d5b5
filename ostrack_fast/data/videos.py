"""Videos with ground truth: `NAME/img/*.jpg` or `NAME/*.jpg`, and `NAME/groundtruth_rect.txt` or `groundtruth.txt`.

This is the layout of OTB, and LaSOT's and GOT-10k's within one folder. OTB is read as it is downloaded: a folder with
several targets is several videos, and the sequences whose truth covers a part of the images are cut to it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np

from ..files import exists
from .images import IMAGE_SUFFIXES, Image, find_images, is_hidden, read_image
from .truth import Array, present, read_boxes

TRUTHS = ("groundtruth_rect.txt", "groundtruth.txt")
FRAMES = "img"
# A file for each target, as in OTB's Jogging and Skating2.
_ONE_OF_SEVERAL = re.compile(r"groundtruth_rect\.(\d+)\.txt")
# OTB's sequences with fewer boxes than images. Their boxes belong to the last images or to the first ones; the ranges
# themselves (David: 300 to 770) are in the benchmark's own configuration.
_AT_THE_END = ("david", "blurcar1", "blurcar3", "blurcar4")
_AT_THE_START = ("football1", "freeman3", "freeman4", "diving", "tiger1")


@dataclass(frozen=True, eq=False)
class Video:
    """Frames on disk and their boxes.

    Args:
        name: the folder's name; `NAME.1`, `NAME.2`, ... where it holds several targets.
        frames: image files in order.
        boxes: (len(frames), 4) float64 xywh in pixels counted from 0; NaN where the target is absent or unknown.
        origin: what the ground-truth file counts its coordinates from, 0 or 1.
    """

    name: str
    frames: tuple[Path, ...]
    boxes: Array
    origin: int = 0

    def __len__(self) -> int:
        return len(self.frames)

    def frame(self, index: int) -> Image:
        """One frame, (h,w,3) uint8 RGB. Raises OSError or ValueError when the file is no readable image."""
        return read_image(self.frames[index])


class BadVideos(ValueError):
    """Videos that cannot be used. `problems` holds the error of each by the name of its folder."""

    def __init__(self, folder: Path, problems: dict[str, Exception]):
        self.problems = problems
        lines = "".join(f"\n  {name}: {problem}" for name, problem in problems.items())
        super().__init__(f"{folder}: {len(problems)} videos cannot be used:{lines}")


def load_videos(folder: str | Path, one_based: Sequence[str] = ()) -> list[Video]:
    """Every video in a folder, sorted by name; each can be evaluated from its first frame on.

    Args:
        folder: holds a folder for each video; entries with neither frames nor ground truth, and hidden ones, are passed
            over.
        one_based: names, or patterns such as `"OTB_*"`, of the videos whose ground truth counts pixels from 1, as
            MATLAB-made data sets (OTB, VOT) do; 1 is then subtracted from their x and y.

    Raises:
        FileNotFoundError: no such folder, no video in it, or a video without frames or ground truth.
        ValueError: a ground-truth file that cannot be read, or that does not fit its frames; or a pattern that names
            no video. `BadVideos`, which names all of them, for more than one such video.
    """
    videos, problems = scan_videos(folder, one_based, check_first_box)
    raise_problems(folder, problems)
    return videos


def raise_problems(folder: str | Path, problems: dict[str, Exception]) -> None:
    """Raise what is wrong with the videos of a folder, if anything is: an only error itself, several as `BadVideos`."""
    if len(problems) > 1:
        raise BadVideos(Path(folder), problems)
    for problem in problems.values():
        raise problem


def scan_videos(
    folder: str | Path, one_based: Sequence[str] = (), check: Callable[[Video], object] = lambda video: None
) -> tuple[list[Video], dict[str, Exception]]:
    """The usable videos of a folder as `load_videos` gives them, and what is wrong with the others, by name.

    Args:
        folder, one_based: as for `load_videos`.
        check: raises OSError or ValueError for a video that cannot serve.

    Raises:
        FileNotFoundError: no such folder, or no video in it. ValueError: a pattern that names no video.
    """
    folder = Path(folder)
    names = _find_videos(folder)
    for pattern in one_based:
        if not any(matches(name, pattern) for name in names):
            raise ValueError(f"no video in {folder} is called {pattern!r}, given as counting from 1")
    videos: list[Video] = []
    problems: dict[str, Exception] = {}
    for name in names:
        origin = int(any(matches(name, pattern) for pattern in one_based))
        try:
            targets = load_targets(folder / name, origin)
        except (OSError, ValueError) as error:
            problems[name] = error
            continue
        for video in targets:
            try:
                if any(video.name == other.name for other in videos):
                    raise ValueError(f"{folder} has two videos of the name {video.name}: rename one folder")
                check(video)
                videos.append(video)
            except (OSError, ValueError) as error:
                problems[video.name] = error
    return videos, problems


def matches(name: str, pattern: str) -> bool:
    """Whether a video of this name is the one, or one of those, that a pattern means."""
    # A name with brackets is itself before it is a pattern.
    return name == pattern or fnmatchcase(name, pattern)


def _find_videos(folder: Path) -> list[str]:
    if not (exists(folder) and folder.is_dir()):
        raise FileNotFoundError(f"{folder} is not a folder")
    found = sorted(path.name for path in folder.iterdir() if not is_hidden(path.name) and _is_video(path))
    if not found:
        advice = f"; it is itself a video: give the folder it lies in, {folder.parent}" if _is_video(folder) else ""
        raise FileNotFoundError(
            f"{folder} holds no videos: expected {folder / 'NAME' / FRAMES}/*.jpg and "
            f"{folder / 'NAME' / TRUTHS[0]}{advice}"
        )
    return found


def _is_video(folder: Path) -> bool:
    try:
        return folder.is_dir() and ((folder / FRAMES).is_dir() or bool(_find_truths(folder)))
    except PermissionError:
        return True  # reading it will say why not


def load_video(folder: str | Path, origin: int = 0) -> Video:
    """One video's folder; `origin` is what its ground truth counts pixels from.

    Raises:
        FileNotFoundError, ValueError: as `load_videos`; also for a folder of several targets.
    """
    targets = load_targets(folder, origin)
    if len(targets) > 1:
        raise ValueError(f"{folder} holds {len(targets)} targets, not one: use load_targets")
    check_first_box(targets[0])
    return targets[0]


def load_targets(folder: str | Path, origin: int = 0) -> list[Video]:
    """A folder's videos, one a target: as a rule one. The target may be absent at first. Raises as `load_videos`."""
    folder = Path(folder)
    images = folder / FRAMES if (folder / FRAMES).is_dir() else folder
    frames = find_images(images)
    if not frames:
        raise FileNotFoundError(f"{images} holds no frames ({', '.join(IMAGE_SUFFIXES)})")
    truths = _find_truths(folder)
    if not truths:
        raise missing_truth(folder, len(frames))
    return make_targets(folder, truths, frames, origin, lambda truth: read_boxes(truth, len(frames)))


def make_targets(
    folder: Path, truths: Sequence[str], frames: list[Path], origin: int, read: Callable[[Path], Array]
) -> list[Video]:
    """The videos of a folder, one a target, from the names of their truths; `read` gives the boxes in such a file.

    One of several truths that is empty, as in OTB's Human4, stands for no target. Raises as `load_videos`.
    """
    videos = []
    for truth in truths:
        target = _ONE_OF_SEVERAL.fullmatch(truth)
        boxes = read(folder / truth)
        if len(truths) > 1 and not len(boxes):
            continue
        name = f"{folder.name}.{target[1]}" if target and len(truths) > 1 else folder.name
        shown = annotated_frames(folder.name, folder / truth, frames, len(boxes))
        if len(boxes) == 1 < len(shown):
            # The hidden part of a test set: only the first box is given.
            boxes = np.concatenate((boxes, np.full((len(shown) - 1, 4), np.nan)))
        boxes[:, :2] -= origin
        videos.append(Video(name, tuple(shown), boxes, origin))
    return videos


def missing_truth(folder: Path, frames: int) -> FileNotFoundError:
    """What to raise for frames without ground truth."""
    return FileNotFoundError(f"{folder / TRUTHS[0]} is missing: one line x,y,w,h for each of the {frames} frames")


def choose_truths(names: Iterable[str]) -> list[str]:
    """Of the names of a folder's files the first of `TRUTHS`, or one for each target."""
    names = list(names)
    several = sorted((int(match[1]), name) for name in names if (match := _ONE_OF_SEVERAL.fullmatch(name)))
    return next(([name] for name in TRUTHS if name in names), [name for _, name in several])


def _find_truths(folder: Path) -> list[str]:
    return choose_truths(path.name for path in folder.iterdir() if path.suffix == ".txt" and path.is_file())


def annotated_frames(name: str, truth: Path, frames: list[Path], lines: int) -> list[Path]:
    """The frames that the lines of a ground-truth file belong to."""
    if lines in (1, len(frames)):
        return frames
    if 0 < lines < len(frames):
        if name.lower() in _AT_THE_END:
            return frames[-lines:]
        if name.lower() in _AT_THE_START:
            return frames[:lines]
    what = "truth" if lines < len(frames) else "images"
    raise ValueError(
        f"{truth} has {lines} lines for {len(frames)} frames in {frames[0].parent}: is a part of the {what} missing? "
        "Write an empty line for a frame without target"
    )


def check_first_box(video: Video) -> None:
    """Raise ValueError unless the first frame has a box to start a tracker with."""
    if not present(video.boxes)[0]:
        raise ValueError(f"{video.name}: the first frame has no box to start the tracker with ({video.frames[0]})")
