"""One self-contained page, and a Markdown table, of several trackers' results on a benchmark."""

from __future__ import annotations

import json
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from ..data.truth import read_raw_boxes
from ..files import write_text
from .benchmark_run import read_run, timings
from .benchmarks import Sequence, find_benchmark
from .intervals import Interval, difference, interval
from .protocols import find_protocol
from .published import published_rows
from .report_elimination import elimination_pictures
from .report_figures import Picture, curve_pictures, filmstrip, latency_picture, speed_picture
from .results import Results, check_is_folder, find_results
from .scoring import Scored, TrackerScore, has_truth, score_loaded
from .starts import by_start, several_starts

_STRIPS = 3


@dataclass(frozen=True)
class Row:
    """A tracker's line of the table: its figures, their intervals, its distance to the best, frames a second."""

    name: str
    figures: dict[str, Interval]
    behind: Interval | None
    fps: float | None

    @property
    def verdict(self) -> str:
        """What the distance to the best says; empty for the best."""
        if self.behind is None:
            return ""
        return "may be chance" if self.behind.may_be_nothing else "no chance"


@dataclass(frozen=True, eq=False)
class Report:
    """What a report shows."""

    scored: Scored
    rows: list[Row]
    attributes: dict[str, dict[str, float]]
    curves: list[Picture]
    speed: Picture | None
    latency: Picture | None
    strips: list[Picture]
    elimination: list[Picture]
    starts: dict[str, list[float]]
    notes: list[str]

    @property
    def digits(self) -> int:
        """Decimals of the figures: fractions have more than percent."""
        return 3 if "AO" in self.rows[0].figures else 2


def make_report(
    results: SequenceOf[str | Path],
    benchmark: str | None = None,
    data: str | Path | None = None,
    split: str | None = None,
    protocol: str | None = None,
) -> Report:
    """Score results and draw what a report shows.

    Args:
        results: folders of result files, as for `score_results`.
        benchmark, data, split: as for `score_results`; by default what the `run.json` of a folder says, which
            `ostrack-fast evaluate --benchmark` writes.

    Raises:
        ValueError: no folder says what the benchmark is. Otherwise as `score_results`.
    """
    for path in results:
        check_is_folder(path)
    runs = [read_run(Path(path)) for path in results]
    about: dict[str, Any] = next((run for run in runs if "benchmark" in run), {})
    benchmark, data = benchmark or about.get("benchmark"), data or about.get("data")
    if benchmark is None or data is None:
        raise ValueError("no run.json among the results says what they are of: give --benchmark and --data")
    found = find_benchmark(benchmark)
    noted = about.get("split")
    loaded = found.load(data, split or (noted if noted in found.splits else None))
    if not has_truth(loaded.sequences):
        raise ValueError(f"{data}: the truth of this split is on the benchmark's server: there is nothing to report")
    starts = {run.get("starts", 1) for run in runs}
    loaded = several_starts(loaded, starts.pop() if len(starts) == 1 else 1)
    trackers = find_results(results, loaded.sequences)
    chosen = protocol or found.protocol
    find_protocol(chosen)
    scored = score_loaded(benchmark, chosen, loaded, trackers)
    return _report(scored, trackers)


def _report(scored: Scored, results: list[Results]) -> Report:
    main = next(iter(scored.trackers[0].summary))
    best = max(scored.trackers, key=lambda tracker: tracker.summary[main])
    speeds = {each.name: _fps(each.folder) for each in results}
    rows = [
        Row(
            tracker.name,
            {key: interval(tracker, key) for key in tracker.summary},
            None if tracker is best else difference(tracker, best, main),
            speeds[tracker.name],
        )
        for tracker in sorted(scored.trackers, key=lambda tracker: -tracker.summary[main])
    ]
    worst = _worst(scored, main)
    elimination, notes = _elimination(results[0], worst)
    points = [(row.name, row.fps, row.figures[main].value) for row in rows if row.fps is not None]
    return Report(
        scored,
        rows,
        _by_attribute(scored, main),
        curve_pictures(scored),
        speed_picture(points, main) if points else None,
        _latency(scored, results, main),
        _strips(scored.trackers[0], results[0], worst),
        elimination,
        _by_start(scored, main),
        notes,
    )


def _fps(folder: Path) -> float | None:
    """Frames a second in `track`, where `run.json` has the times."""
    found = timings(read_run(folder)).values()
    seconds = sum(each.track_seconds for each in found)
    return sum(each.frames for each in found) / seconds if seconds else None


def _latency(scored: Scored, results: list[Results], figure: str) -> Picture | None:
    """The figure over the frame rate that videos arrived at, of trackers with runs of `--realtime`; None without."""
    curves: dict[str, list[tuple[float, float]]] = {}
    for tracker, each in zip(scored.trackers, results, strict=True):
        about = read_run(each.folder)
        if about.get("realtime"):
            settings = about.get("tracker", {})
            words = (str(settings.get(key, "")) for key in ("tracker", "weights", "dtype"))
            name = " ".join(filter(None, words))
            curves.setdefault(name, []).append((float(about["realtime"]), tracker.summary[figure]))
    return latency_picture(curves, figure) if curves else None


def _by_attribute(scored: Scored, figure: str) -> dict[str, dict[str, float]]:
    """{attribute: {tracker: figure over the sequences that have it}}, for attributes of two sequences or more."""
    protocol = find_protocol(scored.protocol)
    with_it: dict[str, list[str]] = {}
    for sequence in scored.loaded.sequences:
        for attribute in sequence.attributes:
            with_it.setdefault(attribute, []).append(sequence.name)
    return {
        f"{attribute} ({len(names)})": {
            tracker.name: protocol.summarize([tracker.scores[name] for name in names])[figure]
            for tracker in scored.trackers
        }
        for attribute, names in sorted(with_it.items())
        if len(names) > 1
    }


def _by_start(scored: Scored, figure: str) -> dict[str, list[float]]:
    """{tracker: figure over the first, second, ... start in every video}; empty where there is one start."""
    starts = by_start([sequence.name for sequence in scored.loaded.sequences])
    if len(starts) < 2:
        return {}
    protocol = find_protocol(scored.protocol)
    return {
        tracker.name: [protocol.summarize([tracker.scores[name] for name in names])[figure] for names in starts]
        for tracker in scored.trackers
    }


def _worst(scored: Scored, figure: str) -> list[Sequence]:
    """The sequences that the tracker given first does worst on."""
    figures = scored.trackers[0].sequences
    return sorted(scored.loaded.sequences, key=lambda each: figures[each.name][figure])[:_STRIPS]


def _strips(tracker: TrackerScore, own: Results, worst: list[Sequence]) -> list[Picture]:
    strips = (filmstrip(each, tracker, read_raw_boxes(own.files[each.name][0])) for each in worst)
    return [strip for strip in strips if strip is not None]


def _elimination(own: Results, worst: list[Sequence]) -> tuple[list[Picture], list[str]]:
    """Pictures of the candidates that were eliminated, and what is to be said where they cannot be drawn."""
    about = read_run(own.folder).get("tracker", {})
    try:
        return elimination_pictures(about, [(each, own.files[each.name][0]) for each in worst]), []
    except (OSError, ValueError) as error:
        return [], [f"The eliminated candidates are not shown: {error}"]


def to_html(report: Report) -> str:
    """The page: pictures and figures in one file, which loads nothing and runs nothing."""
    template = files("ostrack_fast") / "assets" / "report.html.jinja"
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    # Within a script element "<" could end it.
    scores = json.dumps(report.scored.to_dict(), allow_nan=False).replace("<", "\\u003c")
    return environment.from_string(template.read_text(encoding="utf-8")).render(
        report=report,
        scored=report.scored,
        scores=scores,
        published=published_rows(report.scored.benchmark, report.scored.loaded.split),
    )


def to_markdown(report: Report) -> str:
    """The table of trackers: figures with their 95 % intervals, distance to the best, frames a second."""
    names = list(report.rows[0].figures)
    lines = [
        f"| {report.scored.benchmark}, {len(report.scored.loaded.sequences)} sequences, protocol "
        f"{report.scored.protocol} | {' | '.join(names)} | {names[0]} behind the best | frames a second |",
        "|---" + "|--:" * (len(names) + 2) + "|",
    ]
    for row in report.rows:
        figures = [_shown(each, report.digits) for each in row.figures.values()]
        behind = f"{_shown(row.behind, report.digits)}, {row.verdict}" if row.behind else ""
        fps = f"{row.fps:.0f}" if row.fps is not None else ""
        name = row.name.replace("|", "\\|")
        lines.append(f"| {name} | {' | '.join(figures)} | {behind} | {fps} |")
    if report.starts:
        most = max(map(len, report.starts.values()))
        header = " | ".join(f"start {number}" for number in range(1, most + 1))
        lines += ["", f"| {names[0]} by start | {header} |", "|---" + "|--:" * most + "|"]
        for name, values in report.starts.items():
            cells = " | ".join(f"{value:.{report.digits}f}" for value in values)
            lines.append("| " + name.replace("|", "\\|") + f" | {cells} |")
    return "\n".join(lines) + "\n"


def _shown(each: Interval, digits: int) -> str:
    return f"{each.value:.{digits}f} [{each.low:.{digits}f}, {each.high:.{digits}f}]"


def save_report(report: Report, path: str | Path) -> None:
    """Write the page, or the Markdown table where the name ends in .md. Raises ValueError for another suffix."""
    kind = Path(path).suffix.lower()
    if kind not in (".html", ".md"):
        raise ValueError(f"{path}: a report's name must end in .html or .md")
    write_text(path, to_html(report) if kind == ".html" else to_markdown(report))
