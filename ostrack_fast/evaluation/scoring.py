"""Figures from result files: no tracking, any tracker, the protocol of any benchmark."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Sequence as SequenceOf
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_all_start_methods, get_context
from pathlib import Path
from typing import Any

from ..data.truth import read_raw_boxes
from ..interrupts import STOPPING
from .benchmarks import Loaded, Sequence, find_benchmark
from .protocols import Truth, find_protocol
from .results import Results, find_results
from .starts import several_starts

_WORTH_PROCESSES = 2_000_000
"""Boxes. Fewer are scored sooner than processes are started."""


@dataclass(frozen=True, eq=False)
class TrackerScore:
    """A tracker's figures.

    Args:
        name: of the tracker.
        summary: the benchmark's numbers over all sequences.
        sequences: the same of each sequence, by its name; NaN where none of its frames counts.
        scores: what the protocol's `summarize` takes, of each sequence by its name.
        longer: the sequences whose truth has fewer boxes than the tracker's result; those left over count for nothing.
    """

    name: str
    summary: dict[str, float]
    sequences: dict[str, dict[str, float]]
    scores: dict[str, Any]
    longer: frozenset[str] = frozenset()


@dataclass(frozen=True, eq=False)
class Scored:
    """The figures of several trackers on one benchmark."""

    benchmark: str
    protocol: str
    loaded: Loaded
    trackers: tuple[TrackerScore, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain types for JSON: `benchmark`, `protocol`, and of each of the `trackers` name, summary and sequences.

        A figure that does not exist, of a sequence none of whose frames counts, is None.
        """
        trackers = [
            {
                "name": tracker.name,
                "summary": _plain(tracker.summary),
                "sequences": {name: _plain(numbers) for name, numbers in tracker.sequences.items()},
            }
            for tracker in self.trackers
        ]
        return {"benchmark": self.benchmark, "protocol": self.protocol, "trackers": trackers}


def score_results(
    benchmark: str,
    data: str | Path,
    results: SequenceOf[str | Path],
    split: str | None = None,
    protocol: str | None = None,
    starts: int = 1,
) -> Scored:
    """Score the result files of trackers.

    Args:
        benchmark: its name; see `benchmarks`.
        data: the folder that it was unpacked into.
        results: folders of result files; see `results.find_results`.
        split: of the benchmark; by default the first that `data` holds.
        protocol: its name; by default the benchmark's official one.
        starts: how many there are in every sequence; see `starts.several_starts`.

    Raises:
        FileNotFoundError: data or results are missing or incomplete; the message names them.
        ValueError: an unknown name; a file that cannot be read; results that the protocol refuses.
    """
    found = find_benchmark(benchmark)
    chosen = protocol or found.protocol
    find_protocol(chosen)
    loaded = found.load(data, split)
    if not has_truth(loaded.sequences):
        raise ValueError(
            f"{found.title}: these data hold the first box of each sequence alone: the truth of this split is on the "
            "benchmark's server, which scores a zip file of the results"
        )
    loaded = several_starts(loaded, starts)
    return score_loaded(benchmark, chosen, loaded, find_results(results, loaded.sequences))


def score_loaded(benchmark: str, protocol: str, loaded: Loaded, results: SequenceOf[Results]) -> Scored:
    """As `score_results`, of what is loaded and found already."""
    truths = {sequence.name: sequence.truth for sequence in loaded.sequences}
    boxes = len(results) * sum(len(truth.boxes) for truth in truths.values())
    workers = min(len(results), os.cpu_count() or 1)
    if workers > 1 and boxes > _WORTH_PROCESSES:
        # Forked processes have the truth already, and start without importing anything; Windows has none.
        method = "fork" if "fork" in get_all_start_methods() else "spawn"
        with ProcessPoolExecutor(workers, get_context(method), _keep, (protocol, truths)) as pool:
            trackers = list(pool.map(_score_kept, results))
    else:
        trackers = [_score_tracker(each, protocol, truths) for each in results]
    notes = (*loaded.notes, *_cut_truths(loaded.sequences, trackers))
    return Scored(benchmark, protocol, replace(loaded, notes=notes), tuple(trackers))


_kept: tuple[str, dict[str, Truth]] = ("", {})
"""What a process of the pool was given when it was forked."""


def _keep(protocol: str, truths: dict[str, Truth]) -> None:
    global _kept
    _kept = (protocol, truths)
    # Ctrl-C reaches the whole group, and the parent tells it; the other signals end a process of the pool at once.
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN if number == signal.SIGINT else signal.SIG_DFL)


def _score_kept(results: Results) -> TrackerScore:
    return _score_tracker(results, *_kept)


def _score_tracker(results: Results, protocol: str, truths: dict[str, Truth]) -> TrackerScore:
    chosen = find_protocol(protocol)
    scores, longer = {}, set()
    for name, truth in truths.items():
        runs = []
        for path in results.files[name]:
            try:
                boxes = read_raw_boxes(path)
                runs.append(chosen.score(boxes, truth))
            except ValueError as error:
                raise ValueError(f"{results.name}, {path}: {error}") from None
            if len(boxes) > len(truth.boxes):
                longer.add(name)
        scores[name] = runs[0] if len(runs) == 1 else chosen.merge(runs)
    summary = chosen.summarize(list(scores.values()))
    by_sequence = {name: chosen.summarize([score]) for name, score in scores.items()}
    return TrackerScore(results.name, summary, by_sequence, scores, frozenset(longer))


def _cut_truths(sequences: SequenceOf[Sequence], trackers: SequenceOf[TrackerScore]) -> tuple[str, ...]:
    """A remark on each sequence that has fewer boxes than images, of those whose results are longer than the truth.

    Only of those: to list the images of a whole benchmark takes many times as long as to score it.
    """
    longer = frozenset[str]().union(*(tracker.longer for tracker in trackers))
    notes = []
    for sequence in sequences:
        if sequence.name in longer:
            try:
                sequence.frames()
            except OSError:
                continue  # no images here
            except ValueError as error:
                notes.append(str(error))
    return tuple(notes)


def has_truth(sequences: SequenceOf[Sequence]) -> bool:
    """Whether there is more than the first box of each sequence, which is all that test sets make public."""
    return any(len(sequence.truth.boxes) > 1 for sequence in sequences)


def _plain(numbers: dict[str, float]) -> dict[str, float | None]:
    return {name: None if math.isnan(value) else value for name, value in numbers.items()}
