"""Videos with ground truth in a zip file or an LMDB database: `NAME/img/*.jpg` or `NAME/*.jpg` beside the truth."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from .images import IMAGE_SUFFIXES, natural_order
from .storage import Storage
from .truth import parse_boxes
from .videos import FRAMES, TRUTHS, Video, annotated_frames, matches


def stored_videos(storage: Storage, one_based: Sequence[str] = ()) -> list[Video]:
    """All videos of one target, by name; their frames are the storage's path with the names of the files behind it.

    Args:
        one_based: see `videos.load_videos`.

    Raises:
        FileNotFoundError: there is none. ValueError: a truth that cannot be read or that does not fit its frames, two
            videos of one name, or a pattern that names no video.
    """
    names = set(storage.names())
    images = defaultdict(list)
    for name in names:
        path = PurePosixPath(name)
        if path.suffix.lower() in IMAGE_SUFFIXES:
            images[path.parent.parent if path.parent.name == FRAMES else path.parent].append(Path(name))
    videos: dict[str, Video] = {}
    for base, found in sorted(images.items()):
        truth = next((str(base / one) for one in TRUTHS if str(base / one) in names), None)
        if truth is None:
            continue
        if base.name in videos:
            raise ValueError(f"{storage.path} has two videos of the name {base.name}: rename one folder")
        frames = [storage.path / name for name in sorted(found, key=natural_order)]
        boxes = parse_boxes(storage.read(truth), storage.path / truth, len(frames))
        shown = annotated_frames(base.name, storage.path / truth, frames, len(boxes))
        origin = int(any(matches(base.name, pattern) for pattern in one_based))
        boxes[:, :2] -= origin
        videos[base.name] = Video(base.name, tuple(shown), boxes, origin)
    if not videos:
        raise FileNotFoundError(f"{storage.path} holds no videos: expected NAME/{FRAMES}/*.jpg and NAME/{TRUTHS[0]}")
    for pattern in one_based:
        if not any(matches(name, pattern) for name in videos):
            raise ValueError(f"no video in {storage.path} is called {pattern!r}, given as counting from 1")
    return [*videos.values()]
