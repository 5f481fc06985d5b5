"""Videos with ground truth in a zip file or an LMDB database: `NAME/img/*.jpg` or `NAME/*.jpg` beside the truth."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from .images import IMAGE_SUFFIXES, natural_order
from .storage import Storage
from .truth import Array, parse_boxes
from .videos import FRAMES, TRUTHS, Video, choose_truths, make_targets, matches, missing_truth


def stored_videos(storage: Storage, one_based: Sequence[str] = ()) -> list[Video]:
    """All videos, one a target, as `videos.load_videos` has those of a folder.

    Their frames are the storage's path with the names of the files behind it.

    Args:
        one_based: see `videos.load_videos`.

    Raises:
        FileNotFoundError: there is none, or one without truth. ValueError: a truth that cannot be read or that does not
            fit its frames, two videos of one name, or a pattern that names no video.
    """
    images, texts = defaultdict(list), defaultdict(list)
    for name in storage.names():
        path = PurePosixPath(name)
        if path.suffix.lower() in IMAGE_SUFFIXES:
            images[path.parent.parent if path.parent.name == FRAMES else path.parent].append(Path(name))
        elif path.suffix == ".txt":
            texts[path.parent].append(path.name)
    videos: dict[str, Video] = {}
    folders: list[str] = []
    for base, found in sorted(images.items()):
        folder, frames = storage.path / base, [storage.path / name for name in sorted(found, key=natural_order)]
        truths = choose_truths(texts[base])
        if not truths and frames[0].parent == folder / FRAMES:
            raise missing_truth(folder, len(frames))
        origin = int(any(matches(base.name, pattern) for pattern in one_based))

        def read(truth: Path, frames: list[Path] = frames) -> Array:
            return parse_boxes(storage.read(truth.relative_to(storage.path).as_posix()), truth, len(frames))

        for video in make_targets(folder, truths, frames, origin, read):
            if video.name in videos:
                raise ValueError(f"{storage.path} has two videos of the name {video.name}: rename one folder")
            videos[video.name] = video
            folders.append(base.name)
    if not videos:
        raise FileNotFoundError(f"{storage.path} holds no videos: expected NAME/{FRAMES}/*.jpg and NAME/{TRUTHS[0]}")
    for pattern in one_based:
        if not any(matches(name, pattern) for name in folders):
            raise ValueError(f"no video in {storage.path} is called {pattern!r}, given as counting from 1")
    return [*videos.values()]
