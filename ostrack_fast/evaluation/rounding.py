"""What rounding costs: every video tracked in float32 and in other dtypes, AUC and boxes compared.

    python -m ostrack_fast.evaluation.rounding --data VIDEOS --dtypes bfloat16,int8 --json FILE

The rule: mean AUC within 0.005 of float32's, every dtype following its own boxes from many first frames; and half of
all boxes within a pixel of float32's (largest of the four coordinates' differences), each frame looked at from the same
box before: left to themselves two trackers drift apart over hundreds of frames. Exits with 1 where a dtype breaks the
rule.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import track
from rich.table import Table

from .. import machine
from ..data.videos import Video, load_videos
from ..files import write_text
from ..model import OSTrack
from ..tracker import Tracker, TrackResult
from .runner import evaluate_video

AUC_RULE, BOX_RULE = 0.005, 1.0

Areas = dict[str, dict[str, list[float]]]  # dtype -> video -> AUC of every run


class Compared:
    """Tracks exactly, and notes where other dtypes would have put each box, starting from the exact one before."""

    def __init__(self, exact: Tracker, others: dict[str, Tracker]):
        self.exact, self.others = exact, others
        self.differences: dict[str, list[float]] = {dtype: [] for dtype in others}

    def initialize(self, frame: np.ndarray, box: tuple[float, float, float, float]) -> None:
        self._box = box
        for tracker in (self.exact, *self.others.values()):
            tracker.initialize(frame, box)

    def track(self, frame: np.ndarray) -> TrackResult:
        result = self.exact.track(frame)
        for dtype, tracker in self.others.items():
            tracker.engine.place([self._box])
            moved = np.subtract(tracker.track(frame).box, result.box)
            self.differences[dtype].append(float(np.abs(moved).max()))
        self._box = result.box
        return result


def later(video: Video, index: int) -> Video:
    """The video from a later first frame on, the `index`-th of those that show the target, 5 apart.

    Where a target is nearly lost, the last bit decides: one video is 0.03 of the mean. Several starts even that out.
    """
    shown = [frame for frame in range(len(video) // 2) if not np.isnan(video.boxes[frame]).any()]
    first = shown[min(5 * index, len(shown) - 1)]
    return replace(video, frames=video.frames[first:], boxes=video.boxes[first:])


def judged(weights: str, areas: Areas, differences: dict[str, list[float]]) -> list[dict[str, Any]]:
    """A row for each dtype: its AUC beside float32's, how far its boxes are off, and whether the rule holds."""
    means = {dtype: np.array([np.mean(each) for each in by_video.values()]) for dtype, by_video in areas.items()}
    rows = []
    for dtype, mean in means.items():
        changes = mean - means["float32"]
        change, moved = float(changes.mean()), float(np.median(differences.get(dtype, [0.0])))
        rows.append(
            {
                "dtype": dtype,
                "auc": float(mean.mean()),
                "auc_change": change,
                "standard_error": float(changes.std(ddof=1) / sqrt(len(changes))) if len(changes) > 1 else 0.0,
                "median_box_difference": moved,
                "holds": abs(change) <= AUC_RULE and moved < BOX_RULE,
            }
        )
    table = Table(title=weights, box=SIMPLE_HEAD)
    for title in ("dtype", "AUC", "AUC - float32", "standard error", "median box difference, px", "holds"):
        table.add_column(title, justify="right")
    for row in rows:
        table.add_row(*(f"{value:.4f}" if isinstance(value, float) else str(value) for value in row.values()))
    Console(markup=False).print(table)
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the numbers and the machine's description here")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", default="small")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtypes", default="bfloat16,int8")
    parser.add_argument("--one-based", action="append", default=[], help="pattern of videos that count pixels from 1")
    parser.add_argument("--starts", type=int, default=20, help="first frames, 5 apart, that each video is run from")
    options = parser.parse_args()

    model = OSTrack.from_pretrained(options.weights)
    trackers = {dtype: Tracker(model, options.device, dtype) for dtype in ("float32", *options.dtypes.split(","))}
    compared = Compared(trackers["float32"], {dtype: one for dtype, one in trackers.items() if dtype != "float32"})
    videos = load_videos(options.data, options.one_based)
    starts = [(index, later(video, index)) for index in range(options.starts) for video in videos]
    areas: Areas = {dtype: {video.name: [] for video in videos} for dtype in trackers}
    for index, video in track(starts, "videos", console=Console(stderr=True), transient=True):
        for dtype, tracker in trackers.items():
            # Box by box once: the runs from later frames see the same frames again.
            once = dtype == "float32" and index == 0
            areas[dtype][video.name].append(evaluate_video(video, compared if once else tracker).scores.auc)
    title = f"{options.weights}, {len(videos)} videos, each from {options.starts} first frames"
    rows = judged(title, areas, compared.differences)
    if options.json is not None:
        kept = [row | {"videos": areas[row["dtype"]]} for row in rows]
        document = {"machine": machine.describe(), "weights": options.weights, "dtypes": kept}
        write_text(options.json, json.dumps(document, indent=1, allow_nan=False) + "\n")
    return int(not all(row["holds"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
