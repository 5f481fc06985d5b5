"""Tracking from a source into files: what `track` and `demo` share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from math import isnan, nan
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape

from ..files import write_text
from ..interrupts import Interrupts
from ..progress import progress_bar
from ..video import FrameSource, VideoWriter
from ._outputs import Outputs, raise_all

if TYPE_CHECKING:
    import numpy as np

    from ..tracker import Box, Tracker, TrackResult
    from ..visualization import Thumbnails


@dataclass
class Run:
    """What came of a run.

    Args:
        source: where the frames came from.
        results: one for every frame. The first box is the one given; of it, and of frames that could not be decoded,
            which repeat the box before, the score is NaN.
        tracked: frames that the tracker was given after the first.
        skipped: frames that could not be decoded.
        resized: frames whose size is not the video's.
        tracking, total: seconds.
        interrupted: by the user, before the end.
    """

    source: FrameSource
    results: list[TrackResult] = field(default_factory=list)
    tracked: int = 0
    skipped: int = 0
    resized: int = 0
    tracking: float = 0.0
    total: float = 0.0
    interrupted: bool = False

    @property
    def fps(self) -> float:
        """Frames a second of the tracker alone, without reading, drawing and writing."""
        return self.tracked / self.tracking if self.tracking else 0.0

    @property
    def mean_score(self) -> float:
        scores = [result.score for result in self.results if not isnan(result.score)]
        return sum(scores) / len(scores) if scores else nan

    @property
    def lost(self) -> int:
        """Frames marked as lost."""
        return sum(result.lost for result in self.results)

    def skip_broken(self, box: Box) -> None:
        """Take the frames that come next and could not be decoded; `box` if there is none before."""
        from ..tracker import TrackResult

        while len(self.results) in self.source.broken[self.skipped :]:
            last = self.results[-1].box if self.results else box
            self.results.append(TrackResult(last, nan, False))
            self.skipped += 1


def follow(tracker: Tracker, source: FrameSource, frames: Iterator[np.ndarray], box: Box, outputs: Outputs) -> Run:
    """Track through `frames` with a progress bar, and write the outputs; Ctrl-C or SIGTERM ends the run early.

    However the run ends, files hold the frames tracked so far, and one that cannot be written costs no other.

    Raises:
        What ended the run, or kept a file from being written; if several things did, an OSError that names them.
    """
    from ..visualization import Thumbnails

    run = Run(source)
    thumbnails = Thumbnails() if outputs.plot else None
    begin = perf_counter()
    failures: list[Exception] = []
    with Interrupts() as stop:
        try:
            with VideoWriter(outputs.video, source.fps) if outputs.video else nullcontext() as video:
                _loop(tracker, run, frames, box, video, thumbnails, stop)
        except Exception as error:
            failures.append(error)
        run.total = perf_counter() - begin
        if run.results:
            failures += _write_results(run, outputs, thumbnails, tracker.lost_below)
    raise_all(failures)
    return run


def _loop(
    tracker: Tracker,
    run: Run,
    frames: Iterator[np.ndarray],
    box: Box,
    video: VideoWriter | None,
    thumbnails: Thumbnails | None,
    stop: Interrupts,
) -> None:
    from ..tracker import TrackResult
    from ..visualization import annotate, fit

    started = False
    with progress_bar() as bar:
        task = bar.add_task("tracking", total=run.source.length, status="")
        for frame in frames:
            run.skip_broken(box)
            number = len(run.results)
            begin = perf_counter()
            if started:
                result = tracker.track(frame)
                run.tracking += perf_counter() - begin
                run.tracked += 1
                bar.update(task, status=f"{run.fps:.1f} frames/s  score {result.score:.2f}")
            else:
                tracker.initialize(frame, box)
                result, started = TrackResult(box, nan, False), True
            if thumbnails:
                thumbnails.add(number, frame, result)
            if video:
                picture = annotate(frame, result, f"frame {number}")
                run.resized += video.size is not None and picture.shape[1::-1] != video.size
                video.write(fit(picture, video.size) if video.size else picture)
            run.results.append(result)
            bar.update(task, completed=len(run.results))
            if stop.requested:
                run.interrupted = True
                return
        run.skip_broken(box)
        # A file's header may have promised another number of frames.
        bar.update(task, total=len(run.results), completed=len(run.results))


def _write_results(run: Run, outputs: Outputs, thumbnails: Thumbnails | None, lost_below: float) -> list[Exception]:
    def write_boxes() -> None:
        if outputs.boxes:
            lines = (",".join(f"{value:.3f}" for value in result.box) + "\n" for result in run.results)
            write_text(outputs.boxes, "".join(lines))

    def write_plot() -> None:
        if outputs.plot and thumbnails:
            from ..visualization import plot_run

            scores = [result.score for result in run.results]
            plot_run(outputs.plot, thumbnails.chosen(), scores, run.source.fps, Path(run.source.name).name, lost_below)

    failures: list[Exception] = []
    for write in (write_boxes, write_plot):
        try:
            write()
        except Exception as error:
            failures.append(error)
    return failures


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
    if run.tracked:
        console.print(f"mean score {run.mean_score:.2f}, target perhaps lost in {run.lost} frames", highlight=False)
    for note in _notes(run):
        console.print(f"[yellow]note:[/] {note}", highlight=False)
    for title, path in (("video", outputs.video), ("boxes", outputs.boxes), ("picture", outputs.plot)):
        if path:
            console.print(f"{title:>8}  {escape(str(path))}", highlight=False)


def _notes(run: Run) -> Iterator[str]:
    if run.skipped:
        which = ", ".join(map(str, run.source.broken[: min(run.skipped, 5)])) + (", ..." if run.skipped > 5 else "")
        yield (
            f"{run.skipped} frames could not be decoded and were skipped (counted from 0: {which}); "
            "their boxes repeat the one before"
        )
    if run.resized:
        yield f"{run.resized} frames of another size were scaled to fit the video"
    claimed = run.source.length
    if claimed and not run.interrupted and len(run.results) < claimed:
        yield f"the header claims {claimed} frames; the others could not be read"
