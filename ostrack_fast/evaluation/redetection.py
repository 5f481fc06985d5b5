"""Lost targets: how often they are found again, on made videos and, with --data, what it costs on real ones.

    python -m ostrack_fast.evaluation.redetection --scenes 40 --data VIDEOS --json FILE

Made videos are those of `disappearing.py`. "Found again": within 30 frames of the target's return a result that is not
marked as lost overlaps it by more than 0.5. "Falsely found": of the moments at which a lost target counts as found,
those in which the box overlaps the true one by less than 0.1, or there is none. F, precision and recall are those of
the VOT long-term challenge (Lukezic et al., "Now you see me", 2018, equations 1 to 3), with 0 as the confidence of what
is marked as lost. Exits with 1 where a goal is missed: at least 80 % found again, at most 5 % falsely, and on the real
videos a mean AUC that is not lower.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .. import OSTrack, Tracker, TrackResult
from ..data.videos import load_videos
from ..files import write_text
from .disappearing import Scene, scenes
from .metrics import score_video
from .protocols.folder import overlap_or_0

WITHIN = 30
GOAL_FOUND, GOAL_FALSE = 0.8, 0.05


@dataclass
class Tally:
    """Counts over scenes, and every frame's confidence, overlap (0 where absent) and whether the target is seen."""

    returns: int = 0
    again: int = 0
    found: int = 0
    false: int = 0
    frames: list[tuple[float, float, bool]] = field(default_factory=list)

    def add(self, scene: Scene, results: Sequence[TrackResult]) -> None:
        overlaps = overlap_or_0(np.array([result.box for result in results]), scene.boxes[1:])
        overlaps = np.nan_to_num(overlaps)
        back = scene.returned - 1
        self.returns += 1
        self.again += any(
            not result.lost and overlap > 0.5
            for result, overlap in list(zip(results, overlaps, strict=True))[back : back + WITHIN]
        )
        for before, after, overlap in zip(results, results[1:], overlaps[1:], strict=False):
            if before.lost and not after.lost:
                self.found += 1
                self.false += overlap < 0.1
        for result, overlap, box in zip(results, overlaps, scene.boxes[1:], strict=True):
            self.frames.append((0.0 if result.lost else result.score, float(overlap), not np.isnan(box).any()))

    def figures(self) -> dict[str, float]:
        precision, recall, f = long_term(self.frames)
        return {
            "found_again": self.again / self.returns,
            "falsely_found": self.false / self.found if self.found else 0.0,
            "times_found": self.found,
            "precision": precision,
            "recall": recall,
            "f": f,
        }


def long_term(frames: Sequence[tuple[float, float, bool]]) -> tuple[float, float, float]:
    """Precision, recall and F at the confidence that makes F largest.

    Precision is the mean overlap over the frames with an answer, recall that over the frames that show the target.
    """
    confidence, overlap, seen = (np.array(column) for column in zip(*frames, strict=True))
    best = (0.0, 0.0, 0.0)
    for threshold in np.unique(confidence[confidence > 0]):
        answered = confidence >= threshold
        precision, recall = overlap[answered].mean(), (overlap * answered)[seen].sum() / seen.sum()
        if precision + recall > 0:
            best = max(best, (2 * precision * recall / (precision + recall), precision, recall))
    return float(best[1]), float(best[2]), float(best[0])


def follow(tracker: Tracker, frames: Iterable[np.ndarray], box: Sequence[float]) -> list[TrackResult]:
    frames = iter(frames)
    tracker.initialize(next(frames), box)
    return [tracker.track(frame) for frame in frames]


def on_scenes(tracker: Tracker, count: int, seed: int) -> dict[str, float]:
    """The figures of a tracker over `count` made videos."""
    tally = Tally()
    for scene in scenes(count, seed):
        tally.add(scene, follow(tracker, scene.frames, scene.boxes[0].tolist()))
    return tally.figures()


def on_videos(tracker: Tracker, folder: Path, length: int) -> dict[str, float]:
    """Mean success AUC, and the share of results marked as lost, over the first `length` frames of real videos."""
    areas, lost, count = {}, 0, 0
    for video in load_videos(folder):
        frames = range(min(length, len(video)))
        results = follow(tracker, (video.frame(index) for index in frames), video.boxes[0].tolist())
        boxes = np.array([video.boxes[0], *(result.box for result in results)])
        areas[video.name] = score_video(boxes, video.boxes[: len(boxes)]).auc
        lost += sum(result.lost for result in results)
        count += len(results)
    return {"auc": float(np.mean(list(areas.values()))), "lost": lost / count, **areas}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--length", type=int, default=1_000_000, help="frames of each real video")
    parser.add_argument("--weights", default="small")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    options = parser.parse_args()

    model = OSTrack.from_pretrained(options.weights)
    kept: dict[str, Any] = {"weights": options.weights, "scenes": options.scenes, "seed": options.seed}
    for name, redetect in (("redetect", True), ("published", False)):
        tracker = Tracker(model, options.device, options.dtype, redetect=redetect)
        kept[name] = {"scenes": on_scenes(tracker, options.scenes, options.seed)} if options.scenes else {}
        if options.data:
            kept[name]["videos"] = on_videos(tracker, options.data, options.length)
        for part, figures in kept[name].items():
            print(name, part, " ".join(f"{key} {value:.3f}" for key, value in figures.items()), flush=True)
    if options.json:
        write_text(options.json, json.dumps(kept, indent=1) + "\n")
    on, off = kept["redetect"], kept["published"]
    missed = options.scenes and not (
        on["scenes"]["found_again"] >= GOAL_FOUND and on["scenes"]["falsely_found"] <= GOAL_FALSE
    )
    return int(missed or bool(options.data and on["videos"]["auc"] < off["videos"]["auc"]))


if __name__ == "__main__":
    sys.exit(main())
