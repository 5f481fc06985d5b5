"""What rounding costs: every video tracked in float32 and in other dtypes, AUC and boxes compared.

    python bench/accuracy.py --data VIDEOS --dtypes bfloat16,int8 --json FILE

The rule: mean AUC within 0.005 of float32's, and half of all boxes within a pixel of float32's (largest of the four
coordinates' differences, each tracker following its own boxes). Exits with 1 where a dtype breaks it.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from ostrack_fast import OSTrack, Tracker
from ostrack_fast.benchmark.report import machine
from ostrack_fast.evaluation import EvaluationResult, evaluate_folder
from ostrack_fast.files import write_atomically

AUC_RULE, BOX_RULE = 0.005, 1.0


def difference(result: EvaluationResult, exact: EvaluationResult) -> float:
    """Median over the frames of all videos, pixels."""
    pairs = zip(result.videos, exact.videos, strict=True)
    return float(np.median(np.concatenate([np.abs(a.boxes - b.boxes).max(1)[1:] for a, b in pairs])))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", default="small")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtypes", default="bfloat16,int8")
    parser.add_argument("--one-based", action="append", default=[], help="pattern of videos that count pixels from 1")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    model = OSTrack.from_pretrained(options.weights)
    results = {}
    for dtype in ("float32", *options.dtypes.split(",")):
        tracker = Tracker(model, options.device, dtype)
        results[dtype] = evaluate_folder(options.data, tracker, one_based=options.one_based, progress=True)
    exact = results["float32"]
    table = Table(title=f"{options.weights}, {len(exact.videos)} videos", box=SIMPLE_HEAD)
    for title in ("dtype", "AUC", "AUC - float32", "median box difference, px", "frames/s", "holds"):
        table.add_column(title, justify="right")
    rows = []
    for dtype, result in results.items():
        change, moved = result.mean.auc - exact.mean.auc, difference(result, exact)
        holds = abs(change) <= AUC_RULE and moved < BOX_RULE
        rows.append({"dtype": dtype, "auc": result.mean.auc, "median_box_difference": moved, "fps": result.fps})
        rows[-1]["videos"] = {video.name: video.scores.auc for video in result.videos}
        cells = (f"{result.mean.auc:.4f}", f"{change:+.4f}", f"{moved:.3f}", f"{result.fps:.1f}", str(holds))
        table.add_row(dtype, *cells)
        rows[-1]["holds"] = holds
    Console().print(table)
    if options.json:
        document = {
            "machine": machine(),
            "weights": options.weights,
            "threads": torch.get_num_threads(),
            "dtypes": rows,
        }
        text = json.dumps(document, indent=1) + "\n"
        write_atomically(options.json, lambda path: Path(path).write_text(text, encoding="utf-8"))
    return int(not all(row["holds"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
