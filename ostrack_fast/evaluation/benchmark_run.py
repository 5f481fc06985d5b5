"""A tracker's run over a benchmark: result files, a sequence at a time, by one process or several."""

from __future__ import annotations

import json
import os
import reprlib
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from ..data.images import read_image
from ..data.truth import format_boxes, present, read_raw_boxes
from ..files import read_json, write_text
from ..settings import bind
from .ahead import decoded_ahead
from .benchmarks import Benchmark, Loaded, Sequence
from .runner import SingleObjectTracker, Stopped, answered_box

RUN_FILE = "run.json"
"""Beside the result files: what was run, and the times of each sequence."""
_RUN_KINDS: dict[str, Any] = {
    "benchmark": str, "data": str, "split": str, "tracker": dict, "starts": int, "realtime": (int, float, type(None)),
    "sequences": dict,
}  # fmt: skip


@dataclass(frozen=True)
class Task:
    """What a tracker needs of a sequence: its images, the first box in pixels from 0, and where its files go.

    Args:
        origin: what the result file counts pixels from.
        boxes_file, times_file: to write; the first is written last, so that a sequence that has it is finished.
    """

    name: str
    frames: tuple[Path, ...]
    box: tuple[float, float, float, float]
    origin: int
    boxes_file: Path
    times_file: Path


@dataclass(frozen=True)
class Timing:
    """Frames shown to the tracker after the first, seconds in `track` (as papers report), and seconds with all else."""

    frames: int
    track_seconds: float
    seconds: float


@dataclass
class Outcome:
    """What became of a run: the timing of each finished sequence, why others failed, and which were left."""

    finished: dict[str, Timing] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    unfinished: tuple[str, ...] = ()

    def fps(self) -> tuple[float, float]:
        """Frames a second of `track` alone, and end to end with decoding and writing; NaN before any is finished."""
        frames = sum(each.frames for each in self.finished.values())
        times = (sum(getattr(each, name) for each in self.finished.values()) for name in ("track_seconds", "seconds"))
        track, whole = (frames / time if time else float("nan") for time in times)
        return track, whole


def count_from_one(loaded: Loaded, patterns: Iterable[str]) -> Loaded:
    """The same sequences, those whose names match a pattern counting pixels from 1.

    Raises:
        ValueError: a pattern that names no sequence.
    """
    patterns = list(patterns)
    for pattern in patterns:
        if not any(fnmatchcase(each.name, pattern) for each in loaded.sequences):
            raise ValueError(f"no sequence is called {pattern!r}, given as counting from 1")
    sequences = tuple(
        replace(each, origin=1) if any(fnmatchcase(each.name, pattern) for pattern in patterns) else each
        for each in loaded.sequences
    )
    return replace(loaded, sequences=sequences)


def make_tasks(benchmark: Benchmark, loaded: Loaded, results: Path) -> tuple[list[Task], dict[str, str]]:
    """The tasks, longest first, and what is wrong with each sequence that cannot be run, by its name."""
    tasks, failed = [], {}
    for sequence in loaded.sequences:
        try:
            tasks.append(_make_task(sequence, results, benchmark.nested_results))
        except (OSError, ValueError) as error:
            failed[sequence.name] = str(error)
    # The longest first: a long one that starts last would keep one process at work while the others wait.
    return sorted(tasks, key=lambda task: -len(task.frames)), failed


def _make_task(sequence: Sequence, results: Path, nested: bool) -> Task:
    first = sequence.truth.boxes[:1]
    if not present(first)[0]:
        raise ValueError(f"{sequence.name}: the first frame has no box to start the tracker with")
    x, y, w, h = (float(value) for value in first[0])
    folder = results / sequence.name if nested else results
    boxes_file = folder / f"{sequence.name}{'_001' if nested else ''}.txt"
    box = (x - sequence.origin, y - sequence.origin, w, h)
    return Task(
        sequence.name, tuple(sequence.frames()), box, sequence.origin, boxes_file, folder / f"{sequence.name}_time.txt"
    )


def is_finished(task: Task) -> bool:
    """Whether an earlier run has written the sequence's files: as many boxes as frames."""
    if not (task.boxes_file.is_file() and task.times_file.is_file()):
        return False
    try:
        return len(read_raw_boxes(task.boxes_file)) == len(task.frames)
    except ValueError:
        return False


class Record:
    """What becomes of a task's frames: a box and the seconds it took for each, (n,4) and (n,).

    Boxes start as NaN, times as 0, which says that the tracker was not shown the frame.
    """

    def __init__(self, task: Task) -> None:
        self.task = task
        self.boxes = np.full((len(task.frames), 4), np.nan)
        self.times = np.zeros(len(task.frames))

    def note(self, index: int, answer: Any, seconds: float) -> None:
        """Keep what the tracker answered to frame `index`. Raises ValueError where that is no box."""
        self.times[index] = seconds
        self.boxes[index] = answered_box(answer, self.task.frames[index])

    def write(self) -> None:
        """Write the task's files: boxes to three decimals, seconds a frame. Raises OSError."""
        boxes = self.boxes.copy()
        boxes[:, :2] += self.task.origin
        write_text(self.task.times_file, "".join(f"{seconds:.6f}\n" for seconds in self.times))
        write_text(self.task.boxes_file, format_boxes(boxes))

    def timing(self, seconds: float) -> Timing:
        """The times of the frames after the first, `seconds` being those with all else."""
        return Timing(int(np.count_nonzero(self.times[1:])), float(self.times[1:].sum()), seconds)


def run_task(
    task: Task,
    tracker: SingleObjectTracker,
    on_frame: Callable[[], object] = lambda: None,
    stop: Callable[[], bool] = lambda: False,
    realtime: float | None = None,
) -> Timing:
    """Track one sequence and write its files.

    Args:
        realtime: frames a second that the video arrives at. A frame that arrives while the tracker is still at an
            earlier one is not shown to it, and answered with its last box (as in VOT's realtime challenge). The clock
            is that of `initialize` and `track` alone: frames are decoded before they arrive. None shows every frame.

    Raises:
        Stopped: `stop`, asked before every frame, said so; nothing is written.
        OSError, ValueError, ArithmeticError: an unreadable frame, no box, a file that cannot be written.
    """
    start = perf_counter()
    record = Record(task)
    free = 0.0  # when the tracker has answered what it was shown, on the video's clock
    frames = decoded_ahead(lambda index: read_image(task.frames[index]), len(task.frames))
    for index, frame in enumerate(frames):
        if stop():
            frames.close()
            raise Stopped(f"{task.name}: stopped before frame {index} of {len(task.frames)}")
        arrives = index / realtime if realtime else free
        if arrives < free:
            record.boxes[index] = record.boxes[index - 1]
        else:
            before = perf_counter()
            answer = task.box if index == 0 else tracker.track(frame)
            if index == 0:
                tracker.initialize(frame, task.box)
            seconds = perf_counter() - before
            record.note(index, answer, seconds)
            free = arrives + seconds
        on_frame()
    record.write()
    return record.timing(perf_counter() - start)


def run_tasks(
    tasks: Iterable[Task],
    tracker: SingleObjectTracker,
    on_frame: Callable[[], object] = lambda: None,
    stop: Callable[[], bool] = lambda: False,
    realtime: float | None = None,
) -> Outcome:
    """Run the tasks in this process, one after the other. A sequence that fails is noted and costs no other."""
    tasks, outcome = list(tasks), Outcome()
    for number, task in enumerate(tasks):
        try:
            outcome.finished[task.name] = run_task(task, tracker, on_frame, stop, realtime)
        except Stopped:
            outcome.unfinished = tuple(each.name for each in tasks[number:])
            break
        except (OSError, ValueError, ArithmeticError) as error:
            outcome.failed[task.name] = str(error)
    return outcome


def own_share(tasks: list[Task]) -> list[Task]:
    """The tasks of this machine's process where torchrun has started several; else all."""
    rank, world = (int(os.environ.get(name, default)) for name, default in (("RANK", 0), ("WORLD_SIZE", 1)))
    return tasks[rank::world]


def write_run(path: Path, about: dict[str, Any], outcome: Outcome) -> None:
    """Write what was run and how long it took to `RUN_FILE` in the folder; times of an earlier run stay."""
    file = path / RUN_FILE
    before = read_run(path).get("sequences", {})
    sequences = {**before, **{name: asdict(timing) for name, timing in outcome.finished.items()}}
    write_text(file, json.dumps({**about, "sequences": sequences}, indent=1, allow_nan=False) + "\n")


def read_run(path: Path) -> dict[str, Any]:
    """What `write_run` wrote into a folder of results; empty where it did not. Raises ValueError for another file."""
    file = path / RUN_FILE
    if not file.is_file():
        return {}
    found = read_json(file)
    if not isinstance(found, dict):
        raise ValueError(f"{file} is no file of `ostrack-fast evaluate`")
    for name, value in found.items():
        if not isinstance(value, _RUN_KINDS.get(name, object)):
            raise ValueError(f"{file} is no file of `ostrack-fast evaluate`: {name} is {reprlib.repr(value)}")
    return found


def timings(found: dict[str, Any]) -> dict[str, Timing]:
    """The timings in what `read_run` gives, by sequence. Raises ValueError for what are none."""
    return {name: bind(Timing, each, f"{RUN_FILE}: {name}") for name, each in found.get("sequences", {}).items()}
