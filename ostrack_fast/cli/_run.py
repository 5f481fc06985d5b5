"""Tracking from a source into files, onto standard output and into a window: what `track` and `demo` share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from math import isnan, nan
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape

from ..interrupts import Interrupts
from ..progress import progress_bar
from ..video import FrameSource, VideoWriter
from ..video.live import LiveFrames
from ._latency import Latencies
from ._outputs import Outputs, raise_all
from ._records import Records

if TYPE_CHECKING:
    import numpy as np

    from ..inputs import Box
    from ..tracker import MultiTracker, TrackResult
    from ..visualization import Thumbnails
    from ._window import Window

_PAUSE = 0.03  # seconds between two looks at a paused window
_PATIENCE = 0.2  # seconds of silence after which a wish to stop is looked for


@dataclass
class Run:
    """What came of a run; its size does not grow with the number of frames.

    Args:
        source: where the frames came from.
        frames: those with a result. Of boxes that are given, and of frames that could not be decoded, which repeat the
            boxes before, the score is NaN.
        tracked: frames that the tracker was given after the first.
        skipped: frames that could not be decoded.
        passed_over: frames that were left out because a newer one was there.
        resized: frames whose size is not the video's.
        lost: results marked as lost. scored, score_sum: results with a score, and the sum of these.
        latencies: seconds from a frame to its boxes.
        tracking, total: seconds.
        interrupted: by the user, before the end.
        codec: of the video written.
    """

    source: FrameSource
    frames: int = 0
    tracked: int = 0
    skipped: int = 0
    passed_over: int = 0
    resized: int = 0
    lost: int = 0
    scored: int = 0
    score_sum: float = 0.0
    latencies: Latencies = field(default_factory=Latencies)
    tracking: float = 0.0
    total: float = 0.0
    interrupted: bool = False
    codec: str = ""

    @property
    def fps(self) -> float:
        """Frames a second of the tracker alone, without reading, drawing and writing."""
        return self.tracked / self.tracking if self.tracking else 0.0

    @property
    def mean_score(self) -> float:
        return self.score_sum / self.scored if self.scored else nan


class Follower:
    """Tracks frame after frame, and keeps up what a run writes and shows.

    Args:
        tracker: has no targets yet.
        boxes: the targets in the first frame; none where they are drawn in the window.
        records: where boxes go.
        stop: ends a pause.
        video: where annotated frames go. window: where they are shown.
        plot: whether a picture of the run is wanted.
    """

    def __init__(
        self,
        tracker: MultiTracker,
        run: Run,
        boxes: Sequence[Box],
        records: Records,
        stop: Interrupts,
        video: VideoWriter | None = None,
        window: Window | None = None,
        plot: bool = False,
    ):
        from ..visualization import Thumbnails

        self.run = run
        self.thumbnails: Thumbnails | None = Thumbnails() if plot else None
        self._tracker, self._boxes, self._records, self._stop = tracker, boxes, records, stop
        self._video, self._window, self._started = video, window, False
        self.scores: list[float] = []  # of the first target, for the picture
        self._names: dict[int, int] = {}  # the tracker's number of each target, which a new box changes
        self._last: dict[int, TrackResult] = {}
        self._begun = perf_counter()

    def take(self, frame: np.ndarray) -> bool:
        """Track into the next frame, and write and show it. False once the user closed the window."""
        begin = perf_counter()
        results: dict[int, TrackResult] = {}
        if not self._started:
            self._started = True
            for box in self._boxes:
                self._give(frame, len(self._names), box, results)
        elif self._names:
            found = self._tracker.track(frame)
            results = {name: found[target] for name, target in self._names.items()}
            seconds = perf_counter() - begin
            self.run.tracking += seconds
            self.run.tracked += 1
            self.run.latencies.add(seconds)
        goes_on = self._ask(frame, results)
        self._write(frame, results)
        return goes_on

    def skip(self) -> None:
        """The next frame could not be decoded: its boxes repeat those before."""
        from ..tracker import TrackResult

        boxes = {name: result.box for name, result in self._last.items()} or dict(enumerate(self._boxes))
        self.run.skipped += 1
        self._note({name: TrackResult(box, nan, False) for name, box in boxes.items()})

    def _give(self, frame: np.ndarray, name: int, box: Box, results: dict[int, TrackResult]) -> None:
        from ..inputs import checked_box
        from ..tracker import TrackResult

        place = checked_box(box, *frame.shape[:2])
        added = self._tracker.add(frame, place)
        if name in self._names:
            self._tracker.drop(self._names[name])
        self._names[name] = added
        results[name] = TrackResult(place, nan, False)

    def _ask(self, frame: np.ndarray, results: dict[int, TrackResult]) -> bool:
        """Show the frame, and do what the user wants, as long as the window is paused. False once it is closed."""
        window = self._window
        if window is None:
            return True
        window.show(frame, results)
        while True:
            for target, box in window.wishes():
                if box is not None:
                    free = max([*self._names, -1]) + 1
                    window.chosen = free if target is None else target
                    self._give(frame, window.chosen, box, results)
                elif target in results:
                    self._tracker.drop(self._names.pop(target))
                    del results[target]
                window.show(frame, results)
            if not window.paused or self._stop.requested:
                return not window.closed
            window.wait(_PAUSE)

    def _write(self, frame: np.ndarray, results: dict[int, TrackResult]) -> None:
        from ..visualization import annotate, fit

        number = self.run.frames
        if self.thumbnails and results:
            self.thumbnails.add(number, frame, results[min(results)])
        if self._video:
            picture, caption = frame, f"frame {number}"
            for result in results.values():
                picture, caption = annotate(picture, result, caption), ""
            self.run.resized += self._video.size is not None and picture.shape[1::-1] != self._video.size
            self._video.write(fit(picture, self._video.size) if self._video.size else picture)
        self._note(results)

    def _note(self, results: dict[int, TrackResult]) -> None:
        run = self.run
        self._records.add(run.frames, perf_counter() - self._begun, results)
        for result in results.values():
            run.lost += result.lost
            if not isnan(result.score):
                run.scored += 1
                run.score_sum += result.score
        if self.thumbnails:
            self.scores.append(results[min(results)].score if results else nan)
        self._last = results
        run.frames += 1


def follow(
    tracker: MultiTracker,
    source: FrameSource,
    frames: Iterable[np.ndarray],
    boxes: Sequence[Box],
    outputs: Outputs,
    window: Window | None = None,
) -> Run:
    """Track through `frames` with a progress bar, and write the outputs; Ctrl-C or SIGTERM ends the run early.

    However the run ends, files hold the frames tracked so far, and one that cannot be written costs no other.

    Raises:
        What ended the run, or kept a file from being written; if several things did, an OSError that names them.
    """
    run = Run(source)
    begin = perf_counter()
    failures: list[Exception] = []
    many = len(boxes) != 1 or window is not None
    with Interrupts() as stop, Records(outputs.boxes, many, outputs.json_lines) as records:
        follower: Follower | None = None
        try:
            with VideoWriter(outputs.video, source.fps, "best") if outputs.video else nullcontext() as video:
                follower = Follower(tracker, run, boxes, records, stop, video, window, outputs.plot is not None)
                _loop(follower, frames, stop)
        except Exception as error:
            failures.append(error)
        run.total = perf_counter() - begin
        run.codec = video.codec if video else ""
        if run.frames and follower:
            writers = (records.publish, lambda: _write_plot(follower, outputs.plot, tracker.lost_below))
            failures += _failures_of(writers)
    raise_all(failures)
    return run


def _until(stop: Interrupts, frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """The frames, until somebody wants to stop, who need not wait for a stream that has fallen silent."""
    coming = iter(frames)
    while not stop.requested:
        if isinstance(frames, LiveFrames) and not frames.wait(_PATIENCE):
            continue
        frame = next(coming, None)
        if frame is None:
            return
        yield frame


def _loop(follower: Follower, frames: Iterable[np.ndarray], stop: Interrupts) -> None:
    run = follower.run
    # Frames that are passed over are not counted, so those that cannot be decoded have no place among the others.
    counted = not (isinstance(frames, LiveFrames) and frames.newest)

    def skip_broken() -> None:
        while counted and run.frames in run.source.broken[run.skipped :]:
            follower.skip()

    with progress_bar() as bar:
        task = bar.add_task("tracking", total=run.source.length, status="")
        for frame in _until(stop, frames):
            skip_broken()
            goes_on = follower.take(frame)
            status = f"{run.fps:.1f} frames/s  score {run.mean_score:.2f}" if run.tracked else ""
            bar.update(task, completed=run.frames, status=status)
            if stop.requested or not goes_on:
                break
        else:
            skip_broken()
            # A file's header may have promised another number of frames.
            bar.update(task, total=run.frames, completed=run.frames)
        run.interrupted = stop.requested
    if isinstance(frames, LiveFrames):
        run.passed_over = frames.passed_over


def _write_plot(follower: Follower, path: Path | None, lost_below: float) -> None:
    if path and follower.thumbnails and follower.thumbnails.chosen():
        from ..visualization import plot_run

        source = follower.run.source
        title = Path(source.name).name
        plot_run(path, follower.thumbnails.chosen(), follower.scores, source.fps, title, lost_below)


def _failures_of(calls: Iterable[Any]) -> list[Exception]:
    failures: list[Exception] = []
    for call in calls:
        try:
            call()
        except Exception as error:
            failures.append(error)
    return failures


def print_summary(run: Run, outputs: Outputs) -> None:
    """What was done, and where it is: on standard error where standard output carries the boxes."""
    console = Console(soft_wrap=True, stderr=outputs.json_lines)
    how = "interrupted after" if run.interrupted else "tracked"
    whole = run.frames / run.total if run.total else 0.0
    console.print(
        f"{how} [bold]{run.frames}[/] frames of {escape(run.source.name)}: {run.fps:.1f} frames/s, "
        f"with reading, drawing and writing {whole:.1f}",
        highlight=False,
    )
    if run.tracked:
        p50, p95, p99 = (1000 * run.latencies.percentile(percent) for percent in (50, 95, 99))
        console.print(
            f"mean score {run.mean_score:.2f}, target perhaps lost in {run.lost} frames; milliseconds a frame: "
            f"p50 {p50:.1f}, p95 {p95:.1f}, p99 {p99:.1f}",
            highlight=False,
        )
    for note in _notes(run):
        console.print(f"[yellow]note:[/] {note}", highlight=False)
    for title, path in (("video", outputs.video), ("boxes", outputs.boxes), ("picture", outputs.plot)):
        if path:
            console.print(f"{title:>8}  {escape(str(path))}", highlight=False)


def _notes(run: Run) -> Iterator[str]:
    if run.passed_over:
        yield f"{run.passed_over} frames were passed over because newer ones had come"
    if run.skipped:
        which = ", ".join(map(str, run.source.broken[: min(run.skipped, 5)])) + (", ..." if run.skipped > 5 else "")
        yield (
            f"{run.skipped} frames could not be decoded and were skipped (counted from 0: {which}); "
            "their boxes repeat the one before"
        )
    if run.resized:
        yield f"{run.resized} frames of another size were scaled to fit the video"
    if run.codec == "mp4v":
        yield "the video is MPEG-4 Part 2, which browsers do not play; for H.264: pip install 'ostrack_fast\\[video]'"
    claimed = run.source.length
    whole = run.interrupted or run.passed_over or not run.source.cut_off()
    if claimed and not whole and run.frames < claimed:
        yield f"the header claims {claimed} frames; the others could not be read"
