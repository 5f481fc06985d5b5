"""Results of a video as a pandas DataFrame, a MOTChallenge text file or COCO-VID json.

All take the results frame by frame: a list of what `MultiTracker.track` or `Tracker.track` returned; the target of the
latter is number 0.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import write_atomically
from ..tracker import TrackResult

if TYPE_CHECKING:
    import pandas

Frames = Iterable[Mapping[int, TrackResult] | TrackResult]


def _targets(results: Mapping[int, TrackResult] | TrackResult) -> Iterable[tuple[int, TrackResult]]:
    return [(0, results)] if isinstance(results, TrackResult) else results.items()


def to_dataframe(frames: Frames) -> pandas.DataFrame:
    """A row for every target in every frame, indexed by `frame` (from 0) and `target`.

    Columns: `x`, `y`, `width`, `height` (left, top and size in pixels, float64), `score` (float64), `lost` (bool).
    """
    import pandas

    rows = [
        (index, target, *result.box, result.score, result.lost)
        for index, results in enumerate(frames)
        for target, result in _targets(results)
    ]
    columns = ["frame", "target", "x", "y", "width", "height", "score", "lost"]
    table = pandas.DataFrame(rows, columns=columns)
    types = {"frame": "int64", "target": "int64", "lost": "bool"}
    return table.astype({name: types.get(name, "float64") for name in columns}).set_index(["frame", "target"])


def write_mot(path: str | Path, frames: Frames) -> None:
    """The MOTChallenge text format: lines `frame,id,left,top,width,height,confidence,-1,-1,-1`.

    Frames and targets count from 1, and so do the pixels, as in the benchmark's own files (Milan et al. 2016, table 6).
    """
    lines = [
        f"{index},{target + 1},{x + 1:.3f},{y + 1:.3f},{w:.3f},{h:.3f},{result.score:.6f},-1,-1,-1\n"
        for index, results in enumerate(frames, 1)
        for target, result in _targets(results)
        for x, y, w, h in [result.box]
    ]
    _write_text(path, "".join(lines))


def write_coco_vid(
    path: str | Path,
    frames: Frames,
    size: tuple[int, int],
    name: str = "video",
    file_names: Sequence[str] | None = None,
    category: str = "object",
) -> None:
    """COCO's json with videos, as VID and TAO have it: images carry `video_id` and `frame_id`, annotations
    `instance_id`.

    Args:
        size: width and height of the frames, pixels.
        name: of the video.
        file_names: of the frames' images, relative to the data set's folder; by default NAME/000000.jpg and so on.
        category: of all targets.
    """
    width, height = size
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index, results in enumerate(frames):
        file = file_names[index] if file_names is not None else f"{name}/{index:06d}.jpg"
        images.append(
            {"id": index + 1, "video_id": 1, "frame_id": index, "file_name": file, "width": width, "height": height}
        )
        for target, result in _targets(results):
            box = list(result.box)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": index + 1,
                    "video_id": 1,
                    "category_id": 1,
                    "instance_id": target + 1,
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": 0,
                    "score": result.score,
                }
            )
    document = {
        "videos": [{"id": 1, "name": name, "width": width, "height": height, "length": len(images)}],
        "categories": [{"id": 1, "name": category}],
        "images": images,
        "annotations": annotations,
    }
    _write_text(path, json.dumps(document))


def _write_text(path: str | Path, text: str) -> None:
    write_atomically(path, lambda temporary: Path(temporary).write_text(text, encoding="utf-8"))
