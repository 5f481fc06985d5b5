"""`ostrack-fast evaluate --benchmark`: track a benchmark's sequences into result files, then score them."""

from __future__ import annotations

import json as json_format
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console

from ..files import check_folder, write_text
from ..interrupts import Interrupts
from ..progress import progress_bar
from ._outputs import INCOMPLETE, check_outputs, check_outside
from .score import scores_table

if TYPE_CHECKING:
    from ..evaluation.benchmark_run import Outcome, Task
    from ..evaluation.benchmarks import Loaded
    from ..evaluation.runner import SingleObjectTracker
    from ..tracker import MultiTracker


@dataclass(frozen=True)
class MakeTracker:
    """Makes the tracker of a process; several on one machine share its processor, and take its GPUs by turns."""

    weights: str
    config: str | None
    device: str
    dtype: str
    workers: int
    tracker: str = "ostrack"
    peer_models: Path | None = None
    batch: int = 1
    box_prior: bool = False
    smoothing: bool = False

    def __call__(self, number: int) -> SingleObjectTracker | MultiTracker:
        """The tracker of process `number`, a `MultiTracker` where it is to track several sequences at once."""
        if self.tracker != "ostrack":
            from ..evaluation.peers import make_peer

            return make_peer(self.tracker, self.peer_models)
        import torch

        from ..model import OSTrack
        from ..tracker import MultiTracker, Tracker

        device = self.device
        if self.workers > 1:
            torch.set_num_threads(max(1, (os.cpu_count() or 1) // self.workers))
            if device in ("auto", "cuda") and torch.cuda.device_count() > 1:
                device = f"cuda:{number % torch.cuda.device_count()}"
        kind = MultiTracker if self.batch > 1 else Tracker
        model = OSTrack.from_pretrained(self.weights, self.config)
        return kind(model, device, self.dtype, box_prior=self.box_prior, smoothing=self.smoothing)


def evaluate_benchmark(
    benchmark: str,
    data: Path,
    make: MakeTracker,
    *,
    split: str | None,
    protocol: str | None,
    results: Path | None,
    resume: bool,
    json: Path | None,
    one_based: Sequence[str] = (),
    realtime: float | None = None,
    starts: int = 1,
) -> None:
    """Track, write the result files, print speed and figures. Raises typer.Exit.

    The exit status is 130 after an interrupt, and `INCOMPLETE` where sequences failed and the others are done.
    """
    from ..evaluation.benchmark_run import (
        Outcome,
        count_from_one,
        is_finished,
        make_tasks,
        own_share,
        read_run,
        write_run,
    )
    from ..evaluation.benchmarks import find_benchmark
    from ..evaluation.protocols import find_protocol
    from ..evaluation.starts import several_starts
    from ..model.hub import short_name

    found = find_benchmark(benchmark)
    find_protocol(protocol or found.protocol)
    check_outputs((json,), sources=(make.weights,))
    name = short_name(make.weights) if make.tracker == "ostrack" else make.tracker
    name += f"-{realtime:g}fps" if realtime else ""
    folder = results or Path("results") / benchmark / name
    check_folder(folder)
    for read in (data, folder):
        check_outside(json, read)
    loaded = found.load(data, split)
    for note in loaded.notes:
        print(f"note: {note}", file=sys.stderr)
    if one_based:
        loaded = count_from_one(loaded, one_based)
    loaded = several_starts(loaded, starts)
    tasks, failed = make_tasks(found, loaded, folder)
    held, before = [task for task in tasks if task.boxes_file.exists()], read_run(folder)
    if held and not (resume and before):
        problem = "go on with --resume, or" if before else "another program's, or a ground truth:"
        raise ValueError(f"{folder} holds results of {len(held)} sequences: {problem} give another --results folder")
    there = [task for task in held if is_finished(task)]
    left = [task for task in own_share(tasks) if task not in there]
    about = {
        "benchmark": benchmark,
        "data": str(data.resolve()),
        "split": loaded.split,
        "tracker": _about(make),
        "starts": starts,
        "realtime": realtime,
    }
    if there:
        _check_same(folder, before, about)
    if left:
        write_run(folder, about, Outcome())  # what results are of is known even after a kill
    with Interrupts() as interrupts:
        outcome = _run(left, make, lambda: interrupts.requested, realtime)
    outcome.failed.update(failed)
    write_run(folder, about, outcome)
    _tell(outcome, folder)
    if not outcome.unfinished:
        _score(benchmark, protocol or found.protocol, loaded, folder, outcome, json)
    if outcome.unfinished:
        raise typer.Exit(130)
    if outcome.failed:
        raise typer.Exit(INCOMPLETE)


def _check_same(folder: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Raises ValueError where results of an earlier run are those of another tracker or came about otherwise."""

    def flat(about: dict[str, Any]) -> dict[str, Any]:
        tracker = about.get("tracker")
        return {**about, **(tracker if isinstance(tracker, dict) else {})}

    before, now = flat(before), flat(now)
    # Not where the data lie or what computes: the boxes are the same. More starts are more sequences.
    decisive = ("benchmark", "split", "realtime", "tracker", "weights", "config", "dtype", "box_prior", "smoothing")
    for name in decisive:
        if name in before and name in now and before[name] != now[name]:
            raise ValueError(
                f"{folder} holds results with {name} {before[name]}, this run has {now[name]}: resume with the same "
                "options, or give another --results folder"
            )


def _about(make: MakeTracker) -> dict[str, Any]:
    if make.tracker != "ostrack":
        return {"tracker": make.tracker}
    return {
        "tracker": "ostrack",
        "weights": make.weights,
        "config": make.config,
        "device": make.device,
        "dtype": make.dtype,
        "workers": make.workers,
        "batch": make.batch,
        "box_prior": make.box_prior,
        "smoothing": make.smoothing,
    }


def _run(tasks: list[Task], make: MakeTracker, stop: Callable[[], bool], realtime: float | None) -> Outcome:
    from ..evaluation.batched import run_tasks_batched
    from ..evaluation.benchmark_run import Outcome, run_tasks
    from ..evaluation.workers import run_in_processes

    if not tasks:
        return Outcome()
    with progress_bar(transient=True) as bar:
        bar_task = bar.add_task("frames", total=sum(len(task.frames) for task in tasks), status="")
        advance = lambda: bar.advance(bar_task)  # noqa: E731
        if make.workers > 1:
            return run_in_processes(tasks, make, min(make.workers, len(tasks)), advance, stop, make.batch)
        tracker: Any = make(0)
        if make.batch > 1:
            return run_tasks_batched(tasks, tracker, make.batch, advance, stop)
        return run_tasks(tasks, tracker, advance, stop, realtime)


def _tell(outcome: Outcome, folder: Path) -> None:
    for name, reason in sorted(outcome.failed.items()):
        print(f"failed, and left out: {name}: {reason}", file=sys.stderr)
    if outcome.unfinished:
        print(f"interrupted: {len(outcome.unfinished)} sequences are left; go on with --resume", file=sys.stderr)
    if outcome.finished:
        track, whole = outcome.fps()
        print(
            f"{len(outcome.finished)} sequences tracked into {folder}: {track:.1f} frames a second in track(), "
            f"{whole:.1f} with decoding and writing (of one process)"
        )


def _score(benchmark: str, protocol: str, loaded: Loaded, folder: Path, outcome: Outcome, json: Path | None) -> None:
    from ..evaluation.benchmarks import Loaded
    from ..evaluation.results import find_results
    from ..evaluation.scoring import has_truth, score_loaded

    kept = tuple(each for each in loaded.sequences if each.name not in outcome.failed)
    if not kept:
        raise ValueError("no sequence could be tracked: there is nothing to score")
    if not has_truth(kept):
        print("the truth of this split is on the benchmark's server: nothing to score here")
        return
    if len(kept) < len(loaded.sequences):
        print(f"figures of {len(kept)} of {len(loaded.sequences)} sequences are no official ones", file=sys.stderr)
    loaded = Loaded(kept, loaded.split, loaded.notes)
    scored = score_loaded(benchmark, protocol, loaded, find_results([folder], kept))
    if json is not None:
        write_text(json, json_format.dumps(scored.to_dict(), indent=1, allow_nan=False) + "\n")
    Console().print(scores_table(scored))
