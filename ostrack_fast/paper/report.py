"""What every command of the paper returns: a table of our figures beside the paper's, and notes on it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from ..files import write_text
from ..machine import cpu_name

Tell = Callable[[str], Any]
"""Is told what is under way."""


@dataclass(frozen=True)
class Report:
    """A table in words.

    Args:
        title: of the table. Figures in brackets are the paper's.
        columns, rows: text; the first column names the row.
        notes: sentences below the table.
        figures: the numbers behind the rows, plain types for JSON.
    """

    title: str
    columns: list[str]
    rows: list[list[str]]
    notes: list[str] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)

    def show(self, console: Console, seconds: float) -> None:
        """Print the table, its notes and how long it took."""
        table = Table(title=self.title)
        for number, column in enumerate(self.columns):
            table.add_column(column, justify="right" if number else "left", no_wrap=not number)
        for row in self.rows:
            table.add_row(*row)
        console.print(table)
        for note in [*self.notes, f"took {seconds:.0f} s"]:
            console.print(note, highlight=False)

    def write(self, path: Path, seconds: float) -> None:
        """Write all of it as JSON."""
        words = {"title": self.title, "columns": self.columns, "lines": self.rows, "notes": self.notes}
        write_text(path, json.dumps({**words, "seconds": round(seconds, 1), **self.figures}, indent=1) + "\n")


def machine() -> str:
    """The processor and the threads that speeds were measured with, in words."""
    count = torch.get_num_threads()
    return f"{cpu_name().split(',')[0]}, {count} thread{'s' * (count > 1)}"


def beside(ours: str, paper: object) -> str:
    """Our figure, and the paper's in brackets where there is one."""
    return ours if paper is None else f"{ours} ({paper})".strip()


def timed_in_turns(runs: dict[str, Callable[[], Any]], rounds: int, tell: Tell) -> dict[str, float]:
    """Median seconds of each call. They take turns, so that the machine's noise meets all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        for _ in range(2):  # the first calls allocate, compile and capture
            run()
    for number in range(rounds):
        tell(f"timing, round {number + 1} of {rounds}")
        for name, run in runs.items():
            begin = perf_counter()
            run()
            seconds[name].append(perf_counter() - begin)
    return {name: median(each) for name, each in seconds.items()}
