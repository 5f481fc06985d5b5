"""Several sequences at once through one network: each round tracks the next frame of every one as one batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from time import perf_counter
from typing import Any

from ..data.images import Image, read_image
from ..tracker import MultiTracker, TrackResult
from .ahead import decoded_ahead
from .benchmark_run import Outcome, Record, Task, run_task
from .runner import Stopped

Note = Callable[[str, str, Any], object]
"""What happens to a sequence, by name: "start" and "frame" with None, "finished" with a `Timing`, "failed" with why."""


class _Alone:
    """A `MultiTracker` as the tracker of one target."""

    def __init__(self, tracker: MultiTracker) -> None:
        self._tracker = tracker

    def initialize(self, frame: Image, box: tuple[float, float, float, float]) -> None:
        for target in self._tracker.targets:
            self._tracker.drop(target)
        self._tracker.add(frame, box)

    def track(self, frame: Image) -> TrackResult:
        return next(iter(self._tracker.track(frame).values()))


class _Running:
    """A sequence in the batch: its frames, the number of its target, and what is known of it so far."""

    def __init__(self, task: Task) -> None:
        self.record = Record(task)
        self.task = task
        self.index = 0
        self.seconds = 0.0
        self.frames = decoded_ahead(lambda index: read_image(task.frames[index]), len(task.frames))

    def start(self, tracker: MultiTracker) -> None:
        """Take the target from the first frame."""
        frame = next(self.frames)
        before = perf_counter()
        self.target = tracker.add(frame, self.task.box)
        self.record.note(0, self.task.box, perf_counter() - before)
        self.index = 1

    @property
    def done(self) -> bool:
        return self.index == len(self.task.frames)


class Batch:
    """Runs sequences in batches of `size` on one tracker, and gives the results that `run_task` gives.

    A sequence that is finished makes room for the next one. The seconds of a round are shared evenly by its sequences.

    Args:
        tracker: has no targets, and is not used elsewhere meanwhile.
        note: is told what happens to each sequence.
        stop: asked before every round; see `run`.
    """

    def __init__(self, tracker: MultiTracker, size: int, note: Note, stop: Callable[[], bool] = lambda: False) -> None:
        self._tracker, self._size, self._note, self._stop = tracker, size, note, stop
        self._running: list[_Running] = []

    def run(self, tasks: Iterator[Task]) -> None:
        """Run the tasks, which are taken one by one when there is room.

        Raises:
            Stopped: `stop` said so; of the sequences in the batch nothing is written.
        """
        try:
            self._rounds(tasks)
        finally:
            for each in self._running:
                self._close(each)
            self._running = []

    def _rounds(self, tasks: Iterator[Task]) -> None:
        left = True
        while True:
            if self._stop():
                raise Stopped(f"stopped with {len(self._running)} sequences in the batch")
            before = perf_counter()
            while left and len(self._running) < self._size:
                task = next(tasks, None)
                left = task is not None
                if task is not None:
                    self._admit(task)
            if not self._running:
                return
            self._track()
            share = (perf_counter() - before) / max(1, len(self._running))
            for each in self._running:
                each.seconds += share
            for each in [each for each in self._running if each.done]:
                self._finish(each)

    def _admit(self, task: Task) -> None:
        self._note("start", task.name, None)
        running = _Running(task)
        try:
            running.start(self._tracker)
        except (OSError, ValueError, ArithmeticError) as error:
            running.frames.close()
            self._note("failed", task.name, str(error))
            return
        self._running.append(running)
        self._note("frame", task.name, None)
        if running.done:
            self._finish(running)

    def _track(self) -> None:
        """The next frame of every sequence."""
        frames: dict[int, Image] = {}
        for each in list(self._running):
            try:
                frames[each.target] = next(each.frames)
            except (OSError, ValueError) as error:
                self._fail(each, str(error))
        before = perf_counter()
        try:
            found = self._tracker.track_each(frames)
        except ArithmeticError:
            self._run_alone()
            return
        share = (perf_counter() - before) / max(1, len(frames))
        for each in self._running:
            each.record.note(each.index, found[each.target], share)
            each.index += 1
            self._note("frame", each.task.name, None)

    def _run_alone(self) -> None:
        """Run the batch's sequences again, one after the other: one of them has no finite results."""
        again, self._running = self._running, []
        for each in again:
            self._close(each)
        for each in again:
            try:
                timing = run_task(each.task, _Alone(self._tracker), stop=self._stop)
            except (OSError, ValueError, ArithmeticError) as error:
                self._note("failed", each.task.name, str(error))
            else:
                self._note("finished", each.task.name, timing)
        for target in self._tracker.targets:
            self._tracker.drop(target)

    def _finish(self, running: _Running) -> None:
        before = perf_counter()
        self._close(running)
        self._running.remove(running)
        try:
            running.record.write()
        except OSError as error:
            self._note("failed", running.task.name, str(error))
            return
        self._note("finished", running.task.name, running.record.timing(running.seconds + perf_counter() - before))

    def _fail(self, running: _Running, reason: str) -> None:
        self._close(running)
        self._running.remove(running)
        self._note("failed", running.task.name, reason)

    def _close(self, running: _Running) -> None:
        running.frames.close()
        if running.target in self._tracker.targets:
            self._tracker.drop(running.target)


def run_tasks_batched(
    tasks: Iterable[Task],
    tracker: MultiTracker,
    size: int,
    on_frame: Callable[[], object] = lambda: None,
    stop: Callable[[], bool] = lambda: False,
) -> Outcome:
    """As `benchmark_run.run_tasks`, `size` sequences at once."""
    tasks, outcome = list(tasks), Outcome()

    def note(kind: str, name: str, value: Any) -> None:
        if kind == "frame":
            on_frame()
        elif kind == "finished":
            outcome.finished[name] = value
        elif kind == "failed":
            outcome.failed[name] = value

    try:
        Batch(tracker, size, note, stop).run(iter(tasks))
    except Stopped:
        done = {*outcome.finished, *outcome.failed}
        outcome.unfinished = tuple(task.name for task in tasks if task.name not in done)
    return outcome
