"""What commands write: checked before the work, and written whatever becomes of the rest."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..files import check_writable, is_special

INCOMPLETE = 3
"""Exit status of a command that is done and has written its outputs, but left bad inputs out of them."""


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
        check_outputs(paths, self.plot)
        for path in paths:
            for name in (source, weights):
                if name and path.exists() and os.path.isfile(name) and path.samefile(name):
                    raise ValueError(f"{path} is the source itself: give the output another name")
            if source and _is_picture(path) and os.path.realpath(source) == os.path.realpath(path.parent):
                raise ValueError(f"{path} would become a frame of the source {source}: write it elsewhere")


def check_outputs(paths: Sequence[Path], plot: Path | None) -> None:
    """Find out before the work what cannot be written; `plot` is a picture. Raises ValueError, OSError."""
    if plot is not None:
        from ..visualization.sheet import check_image_path

        check_image_path(plot)
    for path in paths:
        check_writable(path)
    files = [os.path.realpath(path) for path in paths if not is_special(path)]
    if len(set(files)) < len(files):
        raise ValueError("two outputs have the same name")


def check_outside(path: Path, data: Path) -> None:
    """Raise ValueError if `path` would replace a file of a video in the folder `data`, or add a frame to it."""
    inside = Path(os.path.realpath(path.parent)).parent.is_relative_to(os.path.realpath(data))
    if inside and not is_special(path) and (path.exists() or _is_picture(path)):
        raise ValueError(f"{path} lies in a video's folder of {data}, which is read: write it elsewhere")


def _is_picture(path: Path) -> bool:
    from ..data.images import IMAGE_SUFFIXES

    return path.suffix.lower() in IMAGE_SUFFIXES


def raise_all(failures: Sequence[Exception]) -> None:
    """Raise the one there is; for several, an OSError that names them; for none, nothing."""
    if len(failures) == 1:
        raise failures[0]
    if failures:
        raise OSError("; ".join(map(str, failures))) from failures[0]
