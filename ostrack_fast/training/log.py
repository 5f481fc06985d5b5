"""`log.jsonl`: one line of JSON per logged step of a run, none twice."""

from __future__ import annotations

import json
from pathlib import Path

from ..files import write_text

LOG = "log.jsonl"


def trim_log(path: Path, pairs: int) -> None:
    """Drop the lines beyond `pairs` seen pairs, which a resumed run writes again, and what is no line of a log.

    A run that was killed has logged more steps than its checkpoint holds, and may have left half a line.
    """
    if not path.exists():
        return
    text = path.read_text(encoding="utf-8", errors="replace")
    kept = "".join(f"{line}\n" for line in text.splitlines() if _pairs(line) <= pairs)
    if kept != text:
        write_text(path, kept)


def _pairs(line: str) -> float:
    try:
        return float(json.loads(line)["pairs"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return float("inf")
