"""One-pass evaluation: start a tracker on each video's first frame, let it run, score its boxes."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from rich.markup import escape

from ..data.truth import format_boxes, present
from ..data.videos import Video, check_first_box, raise_problems, scan_videos
from ..files import write_text
from ..inputs import checked_box
from ..progress import progress_bar
from .ahead import decoded_ahead
from .metrics import NORMALIZED_THRESHOLDS, OVERLAP_THRESHOLDS, PIXEL_THRESHOLDS, Array, Scores, score_video

FORMAT = 1
"""Version of the layout of `EvaluationResult.to_dict`."""

_TICK = 1e-9
"""Seconds; a coarse clock may see a trivial tracker take none."""


class Stopped(Exception):
    """`evaluate_video` was asked to stop before the end of its video."""


class SingleObjectTracker(Protocol):
    """What the evaluation needs of a tracker; `ostrack_fast.Tracker` is one."""

    def initialize(self, frame: NDArray[np.uint8], box: tuple[float, float, float, float]) -> Any:
        """Start on a target: frame (h,w,3) uint8 RGB, box xywh in pixels counted from 0. The result is not used."""

    def track(self, frame: NDArray[np.uint8]) -> Any:
        """The target in the next frame: four numbers xywh, or an object with such a `box`; None for "not found"."""


@dataclass(frozen=True, eq=False)
class VideoResult:
    """One video's outcome.

    Args:
        name: of the video.
        boxes: (frames, 4) float64 xywh in pixels counted from 0; the first is the one given, NaN is "not found".
        scored_frames: frames with ground truth.
        seconds: spent in `track`, without reading and decoding images.
        scores: curves and numbers.
    """

    name: str
    boxes: Array
    scored_frames: int
    seconds: float
    scores: Scores

    @property
    def fps(self) -> float:
        """Tracked frames per second of tracking time."""
        return (len(self.boxes) - 1) / max(self.seconds, _TICK)


@dataclass(frozen=True, eq=False)
class EvaluationResult:
    """All videos' outcomes.

    Args:
        videos: in the order they ran.
        skipped: what was wrong with each video that could not be evaluated, by its name; the means leave these out.
        unfinished: names of the videos that a stop came before the end of; the means leave these out too.
    """

    videos: tuple[VideoResult, ...]
    skipped: dict[str, str] = field(default_factory=dict)
    unfinished: tuple[str, ...] = ()

    @property
    def mean(self) -> Scores:
        """Mean over videos, each of the same weight."""
        return Scores.mean([video.scores for video in self.videos])

    @property
    def fps(self) -> float:
        """Tracked frames of all videos per second of tracking time."""
        frames = sum(len(video.boxes) - 1 for video in self.videos)
        return frames / max(sum(video.seconds for video in self.videos), _TICK)

    def to_dict(self) -> dict[str, Any]:
        """Plain types for JSON.

        `format`, `thresholds`, `mean` (numbers, fps, curves), `videos` (the same of each), `skipped` (names, reasons),
        `unfinished` (names). Raises ValueError where no video was finished.
        """
        mean = self.mean
        return {
            "format": FORMAT,
            "thresholds": {
                "success": OVERLAP_THRESHOLDS.tolist(),
                "precision": PIXEL_THRESHOLDS.tolist(),
                "normalized_precision": NORMALIZED_THRESHOLDS.tolist(),
            },
            "mean": {**mean.numbers(), "fps": self.fps, "curves": _curves(mean)},
            "videos": [
                {
                    "name": video.name,
                    "frames": len(video.boxes),
                    "scored_frames": video.scored_frames,
                    **video.scores.numbers(),
                    "fps": video.fps,
                    "curves": _curves(video.scores),
                }
                for video in self.videos
            ],
            "skipped": self.skipped,
            "unfinished": list(self.unfinished),
        }

    def save(self, path: str | Path, **notes: Any) -> None:
        """Write `to_dict()` as JSON, with further top-level entries `notes`; written atomically."""
        text = json.dumps({**notes, **self.to_dict()}, indent=1, allow_nan=False) + "\n"
        write_text(path, text)


def evaluate_folder(
    folder: str | Path,
    tracker: SingleObjectTracker | Callable[[], SingleObjectTracker],
    *,
    one_based: Sequence[str] = (),
    results: str | Path | None = None,
    progress: bool = False,
    stop: Callable[[], bool] = lambda: False,
) -> EvaluationResult:
    """Run a tracker once over every video of a folder and score it.

    A video that cannot be evaluated is left out, and said in the result's `skipped`: it costs no other. All but frames
    that cannot be decoded is found before anything is tracked.

    Args:
        folder: see `load_videos`.
        tracker: started anew on each video; or a function that makes one, called for each video, for trackers that
            can be started only once (OpenCV's).
        one_based: videos whose ground truth counts from 1; see `load_videos`.
        results: folder for the boxes, `NAME.txt`, in the format and the pixel count of the ground truth; each file is
            written when its video is done.
        progress: show a progress bar on stderr.
        stop: asked before every frame. Once it is true, the result holds the videos that are finished, perhaps none.

    Raises:
        FileNotFoundError, ValueError: as `load_videos`, where not one video can be evaluated.
        OSError: the boxes cannot be written.
    """
    videos, problems = scan_videos(folder, one_based, check_evaluable)
    outcomes: list[VideoResult] = []
    unfinished: tuple[str, ...] = ()
    with progress_bar(progress, transient=True) as bar:
        task = bar.add_task("frames", total=sum(map(len, videos)), status="")
        for number, video in enumerate(videos):
            bar.update(task, description=escape(video.name))
            try:
                outcome = evaluate_video(video, tracker, lambda: bar.advance(task), stop)
            except Stopped:
                unfinished = tuple(each.name for each in videos[number:])
                break
            except (OSError, ValueError, ArithmeticError) as error:
                problems[video.name] = error
                continue
            outcomes.append(outcome)
            if results is not None:
                _save_boxes(outcome, video.origin, Path(results) / f"{video.name}.txt")
    if not outcomes and not unfinished:
        raise_problems(folder, problems)
    skipped = {name: str(error) for name, error in sorted(problems.items())}
    return EvaluationResult(tuple(outcomes), skipped, unfinished)


def check_evaluable(video: Video) -> None:
    """Raise OSError or ValueError, naming the video, unless a tracker can be started on it and scored."""
    check_first_box(video)
    _check_scorable(video)
    height, width = video.frame(0).shape[:2]
    try:
        checked_box(video.boxes[0].tolist(), height, width)
    except ValueError as error:
        raise ValueError(f"{video.name}: the first frame, {video.frames[0]}: {error}") from None


def _check_scorable(video: Video) -> None:
    if not present(video.boxes)[1:].any():
        raise ValueError(f"{video.name}: no frame after the first has ground truth: there is nothing to score")


def evaluate_video(
    video: Video,
    tracker: SingleObjectTracker | Callable[[], SingleObjectTracker],
    on_frame: Callable[[], object] = lambda: None,
    stop: Callable[[], bool] = lambda: False,
) -> VideoResult:
    """Run a tracker once over a video and score it; `on_frame` is called after every frame. See `evaluate_folder`.

    Raises:
        Stopped: `stop`, which is asked before every frame, said so.
        ValueError: a video without anything to score, found before it is tracked; an unreadable frame; no box.
    """
    _check_scorable(video)
    # A class has the methods of its instances, but is itself the function that makes one.
    is_instance = hasattr(tracker, "initialize") and not isinstance(tracker, type)
    one: Any = tracker if is_instance else tracker()  # type: ignore[operator]
    boxes = np.full((len(video), 4), np.nan)
    seconds = 0.0
    for index, frame in enumerate(decoded_ahead(video.frame, len(video))):
        if stop():
            raise Stopped(f"{video.name}: stopped before frame {index} of {len(video)}")
        if index == 0:
            boxes[0] = video.boxes[0]
            one.initialize(frame, tuple(video.boxes[0].tolist()))
        else:
            start = perf_counter()
            answer = one.track(frame)
            seconds += perf_counter() - start
            boxes[index] = answered_box(answer, video.frames[index])
        on_frame()
    scored = int(present(video.boxes).sum())
    return VideoResult(video.name, boxes, scored, seconds, score_video(boxes, video.boxes))


def answered_box(answer: Any, frame: Path) -> Array:
    """What `track` returned as (4,) float64, NaN for None. Raises ValueError, which names the frame, for no box."""
    box = getattr(answer, "box", answer)
    if box is None:
        return np.full(4, np.nan)
    try:
        x, y, w, h = map(float, box)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{frame}: the tracker's box must be four numbers x,y,w,h, got {box!r}") from error
    return np.array((x, y, w, h))


def _curves(scores: Scores) -> dict[str, list[float]]:
    return {name: getattr(scores, name).tolist() for name in ("success", "precision", "normalized_precision")}


def _save_boxes(outcome: VideoResult, origin: int, path: Path) -> None:
    boxes = outcome.boxes.copy()
    boxes[:, :2] += origin
    write_text(path, format_boxes(boxes))
