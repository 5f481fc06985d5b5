"""How far the score is a probability that the box overlaps the target by half, and the two numbers that make it one.

    python -m ostrack_fast.evaluation.calibration --data VIDEOS --json FILE

A logistic regression of "overlap >= 0.5" on the logit of the score (Platt, "Probabilistic outputs for support vector
machines", 1999), in which every video weighs the same. What it is worth is measured on videos that it was not fitted
to: each video's probabilities come from a fit to all others. ECE is the expected calibration error over ten bins of
equal width (Guo et al., "On calibration of modern neural networks", 2017), every video weighing the same. Never fit it
to videos that results are reported on.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..calibration import Calibration, logit
from ..data.truth import present
from ..data.videos import load_videos
from ..files import write_text
from ..tracker import Tracker
from .protocols.folder import overlap_or_0

BINS = 10
Pairs = tuple[NDArray[np.float64], NDArray[np.bool_]]


def scores_and_hits(tracker: Tracker, folder: Path, length: int) -> dict[str, Pairs]:
    """Of each video's first `length` frames, (n,) scores and (n,) whether the box overlaps the target by half or more.

    Frames without ground truth are left out.
    """
    found = {}
    for video in load_videos(folder):
        tracker.initialize(video.frame(0), video.boxes[0].tolist())
        results = [tracker.track(video.frame(index)) for index in range(1, min(length, len(video)))]
        boxes = video.boxes[1 : len(results) + 1]
        seen = present(boxes)
        overlap = overlap_or_0(np.array([result.box for result in results])[seen], boxes[seen])
        found[video.name] = np.array([result.score for result in results])[seen], overlap >= 0.5
    return found


def fit(pairs: Mapping[str, Pairs]) -> Calibration:
    """The calibration that makes the outcomes most likely; every video weighs the same."""
    logits = torch.from_numpy(np.concatenate([logit(scores) for scores, _ in pairs.values()]))
    hits = torch.from_numpy(np.concatenate([hits for _, hits in pairs.values()]))
    weights = torch.from_numpy(_weights(pairs))
    # Goals next to 0 and 1 keep the fit finite where all outcomes are alike.
    goal = hits.double() * 0.998 + 0.001
    numbers = torch.tensor([1.0, 0.0], dtype=torch.float64, device="cpu", requires_grad=True)
    search = torch.optim.LBFGS(
        [numbers], max_iter=200, tolerance_grad=1e-10, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def loss() -> torch.Tensor:
        search.zero_grad()
        stated = numbers[0] * logits + numbers[1]
        value = torch.nn.functional.binary_cross_entropy_with_logits(stated, goal, weights, reduction="sum")
        value.backward()
        return value

    search.step(loss)
    slope, offset = numbers.tolist()
    return Calibration(slope, offset)


def held_out(pairs: Mapping[str, Pairs]) -> dict[str, Pairs]:
    """Of each video the probabilities that a fit to all other videos gives, and the outcomes."""
    found = {}
    for name, (scores, hits) in pairs.items():
        calibration = fit({other: pair for other, pair in pairs.items() if other != name})
        found[name] = calibration(scores), hits
    return found


def reliability(pairs: Mapping[str, Pairs]) -> tuple[float, list[list[float]]]:
    """ECE, and of each of ten bins that is not empty: mean stated probability, share of hits, weight."""
    stated = np.concatenate([each for each, _ in pairs.values()])
    hits, weights = np.concatenate([hits for _, hits in pairs.values()]), _weights(pairs)
    bins = np.clip((stated * BINS).astype(int), 0, BINS - 1)
    rows = []
    for number in np.unique(bins):
        inside = bins == number
        weight = weights[inside].sum()
        rows.append([float((weights * each)[inside].sum() / weight) for each in (stated, hits)] + [float(weight)])
    return float(sum(weight * abs(mean - share) for mean, share, weight in rows)), rows


def _weights(pairs: Mapping[str, Pairs]) -> NDArray[np.float64]:
    """Of each frame, such that every video weighs the same and all together 1."""
    return np.concatenate([np.full(len(hits), 1 / len(hits) / len(pairs)) for _, hits in pairs.values()])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--length", type=int, default=1_000_000, help="frames of each video")
    parser.add_argument("--weights", default="small")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    options = parser.parse_args()

    pairs = scores_and_hits(Tracker(options.weights, options.device, options.dtype), options.data, options.length)
    calibration = fit(pairs)
    kept: dict[str, Any] = {"weights": options.weights, "slope": calibration.slope, "offset": calibration.offset}
    kept["frames"] = sum(len(hits) for _, hits in pairs.values())
    for name, each in (("before", pairs), ("after, held out", held_out(pairs))):
        error, rows = reliability(each)
        kept[name] = {"ece": error, "bins": rows}
        print(f"{name}: ECE {error:.3f}")
        for mean, share, weight in rows:
            print(f"  stated {mean:.3f}, true {share:.3f}, {weight:.1%} of all")
    print(f"slope {calibration.slope:.4f}, offset {calibration.offset:.4f}")
    if options.json:
        write_text(options.json, json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
