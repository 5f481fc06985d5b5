"""Tracking from a source into files: what `track` and `demo` share."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from math import nan
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ..files import write_atomically
from ..video import FrameSource, VideoWriter

if TYPE_CHECKING:
    import numpy as np

    from ..tracker import Box, Tracker, TrackResult
    from ..visualization import Thumbnails


@dataclass
class Outputs:
    """Files to write; None for not wanted."""

    video: Path | None = None
    boxes: Path | None = None
    plot: Path | None = None

    def check(self, source: str) -> None:
        """Find out now, not after minutes of tracking, what cannot be written. Raises ValueError."""
        from ..video import check_video_path
        from ..visualization.sheet import check_image_path

        if self.video:
            check_video_path(self.video)
        if self.plot:
            check_image_path(self.plot)
        paths = [path for path in (self.video, self.boxes, self.plot) if path]
        for path in paths:
            if path.is_dir():
                raise ValueError(f"{path} is a folder: give the name of a file to write")
            if path.exists() and Path(source).exists() and path.samefile(source):
                raise ValueError(f"{path} is the source itself: give the output another name")
        if len({path.absolute() for path in paths}) < len(paths):
            raise ValueError("two outputs have the same name")


@dataclass
class Run:
    """What came of a run; `results[0]` is the given box, its score NaN. `tracking` and `total` in seconds."""

    source: FrameSource
    results: list[TrackResult] = field(default_factory=list)
    tracking: float = 0.0
    total: float = 0.0
    interrupted: bool = False

    @property
    def fps(self) -> float:
        """Frames a second of the tracker alone, without reading, drawing and writing."""
        return (len(self.results) - 1) / self.tracking if self.tracking else 0.0

    @property
    def mean_score(self) -> float:
        scores = [result.score for result in self.results[1:]]
        return sum(scores) / len(scores) if scores else nan

    @property
    def lost(self) -> int:
        """Frames marked as lost."""
        return sum(result.lost for result in self.results)


def follow(tracker: Tracker, source: FrameSource, frames: Iterator[np.ndarray], box: Box, outputs: Outputs) -> Run:
    """Track through `frames` with a progress bar, and write the outputs; Ctrl-C or SIGTERM ends the run early.

    However the run ends, files hold the frames tracked so far.
    """
    from ..visualization import Thumbnails

    run = Run(source)
    thumbnails = Thumbnails() if outputs.plot else None
    begin = perf_counter()
    try:
        with VideoWriter(outputs.video, source.fps) if outputs.video else nullcontext() as video, _interruptible():
            try:
                _loop(tracker, run, frames, box, video, thumbnails)
            except KeyboardInterrupt:
                run.interrupted = True
    finally:
        run.total = perf_counter() - begin
        if run.results:
            _write_results(run, outputs, thumbnails, tracker.lost_below)
    return run


def _loop(
    tracker: Tracker,
    run: Run,
    frames: Iterator[np.ndarray],
    box: Box,
    video: VideoWriter | None,
    thumbnails: Thumbnails | None,
) -> None:
    from ..tracker import TrackResult
    from ..visualization import annotate

    length = run.source.length
    with _progress() as bar:
        task = bar.add_task("tracking", total=length, status="")
        for index, frame in enumerate(frames):
            begin = perf_counter()
            if index:
                result = tracker.track(frame)
                run.tracking += perf_counter() - begin
                status = f"{run.tracking and index / run.tracking:.1f} frames/s  score {result.score:.2f}"
                bar.update(task, status=status)
            else:
                tracker.initialize(frame, box)
                result = TrackResult(box, nan, False)
            if thumbnails:
                thumbnails.add(index, frame, result)
            if video:
                video.write(annotate(frame, result, f"frame {index}"))
            run.results.append(result)
            bar.update(task, advance=1)
        # A file's header may have promised another number of frames.
        bar.update(task, total=len(run.results))


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[status]}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )


def _write_results(run: Run, outputs: Outputs, thumbnails: Thumbnails | None, lost_below: float) -> None:
    if outputs.boxes:
        lines = "".join(",".join(f"{value:.3f}" for value in result.box) + "\n" for result in run.results)
        write_atomically(outputs.boxes, lambda temporary: Path(temporary).write_text(lines, encoding="utf-8"))
    if outputs.plot and thumbnails:
        from ..visualization import plot_run

        scores = [result.score for result in run.results]
        plot_run(outputs.plot, thumbnails.chosen(), scores, run.source.fps, Path(run.source.name).name, lost_below)


@contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM as Ctrl-C, so that files are finished."""

    def interrupt(number: int, _: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def print_summary(run: Run, outputs: Outputs) -> None:
    """What was done, and where it is."""
    console = Console(soft_wrap=True)
    how = "interrupted after" if run.interrupted else "tracked"
    whole = len(run.results) / run.total if run.total else 0.0
    console.print(
        f"{how} [bold]{len(run.results)}[/] frames of {escape(run.source.name)}: {run.fps:.1f} frames/s, "
        f"with reading, drawing and writing {whole:.1f}",
        highlight=False,
    )
    if len(run.results) > 1:
        console.print(f"mean score {run.mean_score:.2f}, target perhaps lost in {run.lost} frames", highlight=False)
    claimed = run.source.length
    if claimed and not run.interrupted and len(run.results) < claimed:
        console.print(f"[yellow]note:[/] the header claims {claimed} frames; the others could not be read")
    for title, path in (("video", outputs.video), ("boxes", outputs.boxes), ("picture", outputs.plot)):
        if path and run.results:
            console.print(f"{title:>8}  {escape(str(path))}", highlight=False)
