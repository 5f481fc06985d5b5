"""The boxes of a run, written as they come, so that a long run needs no more memory than a short one."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from ..files import AtomicFile, naming

if TYPE_CHECKING:
    from ..tracker import TrackResult


class Records:
    """Writes a file of boxes, which appears when it is complete, and JSON lines on standard output.

    Args:
        path: the file of boxes, if one is wanted.
        many: it is to hold several targets: lines of the MOTChallenge format, `frame,id,x,y,w,h,score,-1,-1,-1`, all
            counted from 1. Else a line `x,y,w,h` a frame.
        json_lines: print an object a frame.
    """

    def __init__(self, path: Path | None, many: bool, json_lines: bool):
        self._path, self._many, self._json_lines = path, many, json_lines
        self._open = ExitStack()
        self._atomic: AtomicFile | None = None
        self._file: TextIO | None = None
        self._failure: OSError | None = None
        self._written = False

    def __enter__(self) -> Records:
        if self._path:
            with naming(self._path):
                self._atomic = self._open.enter_context(AtomicFile(self._path))
                self._file = self._open.enter_context(open(self._atomic.name, "w", encoding="utf-8"))
        return self

    def add(self, number: int, seconds: float, results: Mapping[int, TrackResult]) -> None:
        """Write a frame's boxes. What keeps the file from being written is raised at the end."""
        if self._file and not self._failure:
            try:
                self._file.writelines(self._lines(number, results))
            except OSError as error:
                self._failure = error
        self._written = self._written or bool(results)
        if self._json_lines:
            targets = [
                {"id": target, "box": [round(value, 3) for value in result.box], "score": _score(result),
                 "lost": result.lost}
                for target, result in results.items()
            ]  # fmt: skip
            sys.stdout.write(json.dumps({"frame": number, "time": round(seconds, 4), "targets": targets}) + "\n")
            # Another program waits for every line.
            sys.stdout.flush()

    def _lines(self, number: int, results: Mapping[int, TrackResult]) -> list[str]:
        if not self._many:
            return [",".join(f"{value:.3f}" for value in result.box) + "\n" for result in results.values()]
        return [
            f"{number + 1},{target + 1},{x + 1:.3f},{y + 1:.3f},{w:.3f},{h:.3f},"
            f"{1.0 if isnan(result.score) else result.score:.6f},-1,-1,-1\n"
            for target, result in results.items()
            for x, y, w, h in [result.box]
        ]

    def publish(self) -> None:
        """Give the file its name, if it holds a box. Raises OSError."""
        if self._path and self._file and self._atomic and self._written:
            with naming(self._path):
                if self._failure:
                    raise self._failure
                self._file.close()
                self._atomic.publish()

    def __exit__(self, *_: object) -> None:
        # A file that cannot be written to its end has said so in `publish`.
        with suppress(OSError):
            self._open.close()


def _score(result: TrackResult) -> float | None:
    return None if isnan(result.score) else round(result.score, 4)
