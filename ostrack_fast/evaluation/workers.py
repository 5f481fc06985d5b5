"""Sequences of a benchmark over several processes, each with a tracker of its own."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from queue import Empty
from typing import Any

from ..tracker import MultiTracker
from .batched import Batch, Note
from .benchmark_run import Outcome, Task, Timing, run_task
from .runner import SingleObjectTracker, Stopped

_POLL = 0.2
"""Seconds between looks at whether all processes are alive."""


def run_in_processes(
    tasks: list[Task],
    make_tracker: Callable[[int], SingleObjectTracker | MultiTracker],
    workers: int,
    on_frame: Callable[[], object] = lambda: None,
    stop: Callable[[], bool] = lambda: False,
    batch: int = 1,
) -> Outcome:
    """As `benchmark_run.run_tasks`, by processes that take the next task when they are done with one.

    A process that dies (killed, out of memory) costs the sequences that it was at; the others go on.

    Args:
        make_tracker: called with the number of the process in that process; it must be importable there.
        batch: sequences that a process tracks at once; for more than one `make_tracker` makes a `MultiTracker`.

    Raises:
        RuntimeError: all processes have died, or a tracker cannot be made; the message has the reason.
    """
    context = get_context("spawn")
    queue: Any = context.Queue()
    events: Any = context.Queue()
    stopping = context.Event()
    for each in (*tasks, *[None] * workers):
        queue.put(each)
    arguments = (queue, events, stopping, make_tracker, batch)
    processes = [context.Process(target=_work, args=(number, *arguments), daemon=True) for number in range(workers)]
    for process in processes:
        process.start()
    outcome = Outcome()
    working: dict[int, set[str]] = {number: set() for number in range(workers)}
    try:
        _listen(processes, events, outcome, working, on_frame, lambda: stopping.set() if stop() else None)
    finally:
        stopping.set()
        for process in processes:
            process.join()
    done = {*outcome.finished, *outcome.failed}
    outcome.unfinished = tuple(task.name for task in tasks if task.name not in done)
    if outcome.unfinished and not stop():
        raise RuntimeError(f"all {workers} processes have died; {len(outcome.unfinished)} sequences are not finished")
    return outcome


def _listen(
    processes: list[Any],
    events: Any,
    outcome: Outcome,
    working: dict[int, set[str]],
    on_frame: Callable[[], object],
    check_stop: Callable[[], object],
) -> None:
    left = set(range(len(processes)))
    while left:
        check_stop()
        try:
            number, kind, name, value = events.get(timeout=_POLL)
        except Empty:
            for number in [each for each in left if not processes[each].is_alive()]:
                # Its last words are read before it is taken for dead: this is reached with an empty queue alone.
                left.remove(number)
                reason = f"the process died with exit code {processes[number].exitcode}"
                outcome.failed.update(dict.fromkeys(working[number], reason))
            continue
        if kind == "frame":
            on_frame()
        elif kind == "start":
            working[number].add(name)
        elif kind == "end":
            left.discard(number)
        elif kind == "broken":
            raise RuntimeError(value)
        else:
            working[number].discard(name)
            if kind == "finished":
                outcome.finished[name] = Timing(**value)
            elif kind == "failed":
                outcome.failed[name] = value


def _work(number: int, queue: Any, events: Any, stopping: Any, make_tracker: Callable[[int], Any], batch: int) -> None:
    # Ctrl-C reaches the whole group; the parent asks the processes to stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = os.getppid()
    try:
        tracker = make_tracker(number)
    except Exception as error:
        events.put((number, "broken", "", f"{type(error).__name__}: {error}"))
        return

    def stop() -> bool:
        # A parent that was killed can ask for nothing; its children are another's then.
        return stopping.is_set() or os.getppid() != parent

    def note(kind: str, name: str, value: Any) -> None:
        events.put((number, kind, name, value.__dict__ if kind == "finished" else value))

    tasks = iter(queue.get, None)
    try:
        if batch > 1:
            Batch(tracker, batch, note, stop).run(tasks)
        else:
            _one_by_one(tasks, tracker, note, stop)
    except Stopped:
        pass
    events.put((number, "end", "", None))


def _one_by_one(tasks: Iterator[Task], tracker: SingleObjectTracker, note: Note, stop: Callable[[], bool]) -> None:
    for task in tasks:
        note("start", task.name, None)
        try:
            timing = run_task(task, tracker, lambda: note("frame", task.name, None), stop)  # noqa: B023
        except (OSError, ValueError, ArithmeticError) as error:
            note("failed", task.name, str(error))
        else:
            note("finished", task.name, timing)
