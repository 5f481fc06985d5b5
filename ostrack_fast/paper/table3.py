"""Table 3 of the paper: what candidate elimination saves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ..config import get_config
from ..engine import Engine
from ..files import read_json
from ..model import OSTrack
from .costs import Macs, count_macs
from .report import Report, machine, timed_in_turns


@dataclass(frozen=True)
class Published:
    """A column of Table 3: MACs in units of 1e9, and frames a second on the authors' RTX 2080 Ti."""

    macs: float
    fps: float


# In the order of the table: each size without and with elimination.
PUBLISHED: dict[str, Published] = {
    "ostrack_256": Published(29.0, 93.1),
    "ostrack_256_ce": Published(21.5, 105.4),
    "ostrack_384": Published(65.3, 41.4),
    "ostrack_384_ce": Published(48.3, 58.1),
}


@dataclass(frozen=True)
class Row:
    """One model of the table, ours beside the paper's.

    Args:
        parameters: of backbone and head, without the tables that nothing reads.
        fps: frames a second of the network alone, the median of all rounds.
        accuracy: figures by name, of a tracker that is called as the preset in a file of `ostrack-fast score --json`.
    """

    preset: str
    macs: Macs
    parameters: int
    fps: float
    published: Published
    accuracy: dict[str, float]


def table3(
    device: str = "auto",
    dtype: str = "auto",
    rounds: int = 7,
    scores: Sequence[str | Path] = (),
    progress: Callable[[str], Any] = lambda _: None,
) -> list[Row]:
    """Count and time the four models, in turns, so that the machine's noise meets all alike.

    Weights are random: neither counts nor times depend on them. All four are in memory at once, 0.4 GB each in
    float32.

    Args:
        device, dtype: as `Engine`.
        rounds: frames timed of each model.
        scores: files that `ostrack-fast score --json` wrote; trackers in them that are called as a preset give the
            accuracy of its row.
        progress: is told what is under way.

    Raises:
        ValueError: a device, dtype or file of scores that cannot be. FileNotFoundError: no such file.
    """
    accuracy = read_accuracy(scores)
    runs: dict[str, Callable[[], Any]] = {}
    parameters = {}
    for preset in PUBLISHED:
        progress(f"building {preset}")
        runs[preset], parameters[preset] = _network(preset, device, dtype)
    seconds = timed_in_turns(runs, rounds, progress)
    return [
        Row(
            preset, count_macs(get_config(preset)), parameters[preset], 1 / seconds[preset], published,
            accuracy.get(preset, {}),
        )
        for preset, published in PUBLISHED.items()
    ]  # fmt: skip


def report(rows: Sequence[Row], rounds: int) -> Report:
    """The table in words: MACs, parameters, speed and accuracy."""
    names = sorted({name for row in rows for name in row.accuracy})
    lines = []
    for without, row in zip((rows[0], rows[0], rows[2], rows[2]), rows, strict=True):
        lines.append([
            row.preset, f"{row.macs.layers / 1e9:.1f} G ({row.published.macs})", f"{row.macs.total / 1e9:.1f} G",
            f"{row.parameters / 1e6:.1f} M", f"{row.fps:.1f} ({row.published.fps})",
            f"{row.fps / without.fps:.2f} ({row.published.fps / without.published.fps:.2f})",
            *(f"{row.accuracy[name]:.4g}" if name in row.accuracy else "" for name in names),
        ])  # fmt: skip
    return Report(
        "Table 3: candidate elimination (in brackets: the paper, RTX 2080 Ti)",
        ["model", "MACs, layers", "MACs, all", "parameters", "frames/s", "speed-up", *names],
        lines,
        [f"network time at batch 1, models in turns, {rounds} rounds, {machine()}"],
        {"rows": [asdict(row) for row in rows]},
    )


def _network(preset: str, device: str, dtype: str) -> tuple[Callable[[], Any], int]:
    """A call that locates a target in one search region and waits for the result, and the parameters it reads."""
    torch.manual_seed(0)
    engine = Engine(OSTrack.from_preset(preset), device, dtype, consume=True)
    cfg = engine.cfg
    template, search = (
        torch.randn(1, 3, size, size, dtype=torch.float32, device=engine.device)
        for size in (cfg.template_size, cfg.search_size)
    )
    engine.set_template(template)

    def run() -> float:
        return float(engine(search)["pred_boxes"].sum())  # reading the result waits for a GPU

    return run, engine.network.parameters


def read_accuracy(paths: Sequence[str | Path]) -> dict[str, dict[str, float]]:
    """{preset: {figure: value}} of files of scores; a figure's name begins with its benchmark's.

    Raises:
        ValueError: a file is not one of scores. FileNotFoundError: no such file.
    """
    found: dict[str, dict[str, float]] = {}
    for path in paths:
        try:
            scores = read_json(path)
            trackers = {one["name"]: one["summary"] for one in scores["trackers"]}
            for name, summary in trackers.items():
                figures = {f"{scores['benchmark']} {key}": float(value) for key, value in summary.items()}
                found.setdefault(name, {}).update(figures)
        except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError) as error:
            raise ValueError(f"{path} is no file that ostrack-fast score --json wrote: {error!r:.80}") from None
    return {name: figures for name, figures in found.items() if name in PUBLISHED}
