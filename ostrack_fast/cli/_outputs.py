"""What commands write: checked before the work, and written whatever becomes of the rest."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from ..files import check_folder, check_writable, is_special

INCOMPLETE = 3
"""Exit status of a command that is done and has written its outputs, but left bad inputs out of them."""

_BOXES = (".txt", ".csv")  # files that a ground truth or a tracker's results may be in


@dataclass
class Outputs:
    """Files that tracking writes, None for not wanted; and whether it prints boxes as JSON lines."""

    video: Path | None = None
    boxes: Path | None = None
    plot: Path | None = None
    json_lines: bool = False

    def check(self, source: str | None, weights: str) -> None:
        """Find out now, not after minutes of tracking, what cannot be written. Raises ValueError, OSError."""
        from ..video import check_video_path

        if self.video:
            check_video_path(self.video)
        paths = [path for path in (self.video, self.boxes, self.plot) if path]
        check_outputs(paths, self.plot, (source, weights))


def check_outputs(
    outputs: Sequence[Path | None], plot: Path | None = None, sources: Sequence[str | Path | None] = ()
) -> None:
    """Find out before the work what cannot be written, or would replace what is read.

    Args:
        outputs: files to write; None are those not wanted.
        plot: one of them that is a picture.
        sources: what is read: files, folders of frames, and names of weights, which may be those of files.

    Raises:
        ValueError, OSError: saying which output, and why.
    """
    paths = [path for path in outputs if path is not None]
    if plot is not None:
        from ..visualization.sheet import check_image_path

        check_image_path(plot)
    for path in paths:
        check_writable(path)
    files = [os.path.realpath(path) for path in paths if not is_special(path)]
    if len(set(files)) < len(files):
        raise ValueError("two outputs have the same name")
    for path, source in product(paths, [each for each in sources if each]):
        if os.path.isfile(source) and path.exists() and path.samefile(source):
            raise ValueError(f"{path} is the source itself: give the output another name")
        if _is_picture(path) and os.path.isdir(source) and os.path.realpath(source) == os.path.realpath(path.parent):
            raise ValueError(f"{path} would become a frame of the source {source}: write it elsewhere")


def check_outside(path: Path | None, data: Path | None) -> None:
    """Raise ValueError if `path` would replace boxes or a file of a video in the folder `data`, or add a frame."""
    if path is None or data is None or is_special(path):
        return
    folder = Path(os.path.realpath(path.parent))
    top, of_a_video = (each.is_relative_to(os.path.realpath(data)) for each in (folder, folder.parent))
    replaces = path.exists() and (of_a_video or path.suffix.lower() in _BOXES)
    if top and (replaces or (of_a_video and _is_picture(path))):
        raise ValueError(f"{path} lies in {data}, whose boxes and frames are read: write it elsewhere")


def check_results(folder: Path, data: Path) -> None:
    """Raise ValueError or OSError if a folder of result files cannot be written, or is one of ground truth."""
    check_folder(folder)
    inside = Path(os.path.realpath(folder)).is_relative_to(os.path.realpath(data)) and folder.is_dir()
    if inside and any(each.suffix.lower() in _BOXES for each in folder.iterdir()):
        raise ValueError(f"{folder} lies in {data}, which is read, and holds boxes already: give another folder")


def _is_picture(path: Path) -> bool:
    from ..data.images import IMAGE_SUFFIXES

    return path.suffix.lower() in IMAGE_SUFFIXES


def raise_all(failures: Sequence[Exception]) -> None:
    """Raise the one there is; for several, an OSError that names them; for none, nothing."""
    if len(failures) == 1:
        raise failures[0]
    if failures:
        # An OSError's text begins with its number.
        raise OSError("; ".join(getattr(each, "strerror", None) or str(each) for each in failures)) from failures[0]
