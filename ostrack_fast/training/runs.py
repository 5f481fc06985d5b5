"""Runs found on disk: what they were, how far they got, and their curves."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ..files import exists
from ..settings import read_yaml
from ..visualization.sheet import check_image_path, save_figure
from .log import LOG
from .record import CONFIG, read_run

_CURVES = {
    "loss": ("loss", "validation_loss"),
    "IoU": ("iou", "validation_iou"),
    "tracking of the validation's videos": ("validation_ao", "validation_auc"),
}


@dataclass(frozen=True)
class Run:
    """A run's folder.

    Args:
        path: the folder.
        settings: what its `config.yaml` holds; none for runs of older versions.
        starts: of its `run.json`.
        lines: of its `log.jsonl`, in order, each with its `pairs`.
    """

    path: Path
    settings: dict[str, Any]
    starts: list[dict[str, Any]]
    lines: list[dict[str, float]]

    @property
    def pairs(self) -> int:
        """Pairs at the last line of the log."""
        return int(self.lines[-1]["pairs"]) if self.lines else 0

    @property
    def total(self) -> int | None:
        """Pairs that the settings ask for."""
        try:
            return round(self.settings["epochs"] * self.settings["pairs_per_epoch"])
        except (KeyError, TypeError, ValueError, OverflowError):  # a file changed by hand
            return None

    @property
    def commit(self) -> str:
        """The package's commit at the last start, with a plus where files differed from it; "" where none is noted."""
        try:
            git = self.starts[-1]["git"]["package"]
            return str(git["commit"][:8]) + ("+" if git["changed"] else "")
        except (LookupError, TypeError):
            return ""

    def last(self, name: str) -> float | None:
        """The last value of a number in the log."""
        return next((line[name] for line in reversed(self.lines) if name in line), None)

    def curve(self, name: str) -> tuple[list[float], list[float]]:
        """Pairs and values of a number in the log."""
        found = [(line["pairs"], line[name]) for line in self.lines if name in line]
        return [pairs for pairs, _ in found], [value for _, value in found]


def find_runs(folders: Sequence[Path]) -> list[Run]:
    """The runs that the folders are, or hold at any depth, by their paths.

    Raises:
        FileNotFoundError: there is none.
    """
    found: dict[Path, Run] = {}
    for folder in folders:
        if not (exists(folder) and folder.is_dir()):
            raise FileNotFoundError(f"{folder} is not a folder")
        for log in filter(Path.is_file, folder.rglob(LOG)):
            found.setdefault(log.parent.resolve(), read_folder(log.parent))
    if not found:
        named = ", ".join(map(str, folders))
        raise FileNotFoundError(f"no training run in {named}: a run's folder holds a {LOG}")
    return sorted(found.values(), key=lambda run: str(run.path))


def read_folder(path: Path) -> Run:
    """One run. A damaged line or file of it is passed over, as by a run that is resumed."""
    try:
        settings = read_yaml(path / CONFIG)
    except (OSError, ValueError):
        settings = {}
    text = (path / LOG).read_text(encoding="utf-8", errors="replace")
    lines = [line for line in map(_numbers, text.splitlines()) if line is not None]
    return Run(path, settings, (read_run(path) or {"starts": []})["starts"], lines)


def _numbers(line: str) -> dict[str, float] | None:
    try:
        values = json.loads(line).items()
        numbers = {name: float(v) for name, v in values if isinstance(v, (int, float)) and isfinite(v)}
    except (ValueError, AttributeError, OverflowError, RecursionError):
        return None
    return numbers if "pairs" in numbers else None


def plot_runs(runs: Sequence[Run], path: str | Path) -> None:
    """Write a picture of the runs' loss, IoU and validation over the pairs, of the kind the suffix of `path` says.

    Validation is dashed. Raises as `visualization.sheet.save_figure`.
    """
    check_image_path(path)
    # A Figure made directly needs no display and stays out of pyplot's global list.
    figure = Figure(figsize=(15, 4.5), layout="constrained")
    for axes, (title, names) in zip(figure.subplots(1, len(_CURVES)), _CURVES.items(), strict=True):
        for index, run in enumerate(runs):
            for name in names:
                pairs, values = run.curve(name)
                if pairs:
                    axes.plot(
                        pairs, values, color=f"C{index % 10}", label=f"{run.path.name}: {name.replace('_', ' ')}",
                        linestyle="--" if name.startswith("validation") else "-",
                        marker="." if len(pairs) == 1 else None,
                    )  # fmt: skip
        axes.set(title=title, xlabel="pairs")
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(handles=axes.lines, fontsize="small")
    save_figure(figure, path, dpi=150)
