"""The progress bar of all commands, on stderr."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


def progress_bar(shown: bool = True, transient: bool = False) -> Progress:
    """A bar with description, count, `status` (a field every task has to give) and time left.

    Args:
        shown: False for none at all.
        transient: it vanishes when it is done.
    """
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[status]}"),
        TimeRemainingColumn(), console=Console(stderr=True), transient=transient, disable=not shown,
    )  # fmt: skip
