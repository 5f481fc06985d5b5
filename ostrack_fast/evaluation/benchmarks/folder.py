"""Any folder of videos, `NAME/img/*.jpg` beside `NAME/groundtruth_rect.txt`."""

from __future__ import annotations

from pathlib import Path

from ...data.videos import Video, load_videos
from ..protocols import Truth
from .base import Benchmark, Loaded, Sequence


class FolderOfVideos(Benchmark):
    """A folder as `evaluate --data` takes it; boxes count as the files do."""

    name = "folder"
    title = "a folder of videos"
    protocol = "folder"

    def _load(self, data: Path, split: str | None) -> Loaded:
        return Loaded(tuple(map(_sequence, load_videos(data))), "test")


def _sequence(video: Video) -> Sequence:
    return Sequence(Truth(video.name, video.boxes), lambda: list(video.frames))
