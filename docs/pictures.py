"""The pictures of the README and of the documentation.

A GIF of a track, what goes on inside the network (Figures 4 to 6 of the paper), accuracy against speed and frame rate.

python docs/pictures.py  # reads the shipped video, docs/results.json and bench/results/*peers-track.json

It writes docs/*.gif and docs/*.png.
"""

from __future__ import annotations

import json
from importlib import resources
from itertools import islice
from pathlib import Path

import cv2
import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from PIL import Image

from ostrack_fast import OSTrack, Tracker
from ostrack_fast.video import open_source
from ostrack_fast.visualization.inside import KINDS, Inside, default_blocks, draw

DOCS = Path(__file__).parent
OURS, PEER = "#2f6db5", "#9a9a9a"


def draw_track(picture: Path) -> None:
    """Every third frame of the shipped video, at half its size, with the tracked box and the score."""
    assets = resources.files("ostrack_fast") / "assets"
    box = json.loads((assets / "demo.json").read_text(encoding="utf-8"))["box"]
    tracker = Tracker("small", "cpu", "float32")
    shown = []
    with resources.as_file(assets / "demo.mp4") as path:
        source = open_source(path)
        for index, frame in enumerate(source):
            score = 1.0
            if index == 0:
                tracker.initialize(frame, tuple(box))
            else:
                result = tracker.track(frame)
                box, score = result.box, result.score
            if index % 3 == 0:
                image = cv2.resize(frame, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
                x, y, w, h = (round(value / 2) for value in box)
                cv2.rectangle(image, (x, y), (x + w, y + h), (255, 200, 0), 2)
                cv2.putText(image, f"{score:.2f}", (x + 4, y + 16), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (255, 200, 0), 1)
                shown.append(Image.fromarray(image))
    # One palette for all frames: a palette each would flicker.
    wall = Image.new("RGB", (shown[0].width, shown[0].height * 3))
    for row, image in enumerate((shown[0], shown[len(shown) // 2], shown[-1])):
        wall.paste(image, (0, row * image.height))
    palette = wall.quantize(96)
    frames = [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in shown]
    duration = round(3000 / source.fps)
    frames[0].save(picture, save_all=True, append_images=frames[1:], duration=duration, loop=0, optimize=True)


def draw_inside(picture: Path, number: int = 20) -> None:
    """Attention, elimination and activation map in a frame of the shipped video, a row each."""
    assets = resources.files("ostrack_fast") / "assets"
    box = json.loads((assets / "demo.json").read_text(encoding="utf-8"))["box"]
    model = OSTrack.from_pretrained("small")
    with resources.as_file(assets / "demo.mp4") as path:
        first, *others = list(islice(open_source(path), number + 1))
    tracker = Tracker(model, "cpu", "float32")
    tracker.initialize(first, box)
    before = [tracker.track(frame) for frame in others[:-1]][-1].box
    view = Inside(model, first, tuple(box)).look(others[-1], before)
    rows = [draw(view, kind, default_blocks(model, kind)) for kind in KINDS]
    width = max(row.shape[1] for row in rows)
    wall = [np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0)), constant_values=255) for row in rows]
    Image.fromarray(np.concatenate(wall)).quantize(128).save(picture, optimize=True)


def draw_peers(results: Path, picture: Path) -> None:
    """A point for every tracker of which both numbers were measured."""
    document = json.loads(results.read_text(encoding="utf-8"))
    figure, axis = plt.subplots(figsize=(5.6, 3.4), layout="constrained")
    lowest = 1.0  # of ours, whose names stand above and below the points, so that none covers another
    for name, one in document["trackers"].items():
        if "auc" in one:
            rate, ours = 1e3 / one["median_ms"], name.startswith("ostrack_fast")
            above = 4 if not ours or lowest == 1 else -11
            lowest = min(lowest, one["auc"]) if ours else lowest
            axis.scatter(rate, one["auc"], color=OURS if ours else PEER, zorder=2)
            axis.annotate(name, (rate, one["auc"]), xytext=(6, above), textcoords="offset points", fontsize=8)
    axis.set_xscale("log")
    axis.set_xlim(8, 160)
    axis.set_xticks([10, 20, 50, 100], ["10", "20", "50", "100"])
    axis.minorticks_off()
    axis.set_ylim(0.4, 0.75)
    axis.set_xlabel("frames a second, 2 threads of an AMD EPYC (Zen 3), 640 x 360 pixels", fontsize=8)
    axis.set_ylabel("mean success AUC, 17 videos", fontsize=8)
    axis.tick_params(labelsize=7)
    axis.grid(color="#e6e6e6", zorder=0)
    axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(picture, dpi=130)


def draw_realtime(results: Path, picture: Path) -> None:
    """AUC over the frames a second that videos arrive at, a line for every tracker."""
    trackers = json.loads(results.read_text(encoding="utf-8"))["realtime"]["trackers"]
    figure, axis = plt.subplots(figsize=(5.6, 3.4), layout="constrained")
    free = 100.0  # where the next name may stand, so that none covers another
    for name, points in sorted(trackers.items(), key=lambda item: -list(item[1].values())[-1]):
        rates = list(map(int, points))
        last = points[str(rates[-1])]
        free = min(free - 3.5, last)
        axis.plot(rates, list(points.values()), "o-", color=OURS if "small" in name else PEER, zorder=2)
        axis.annotate(name, (rates[-1], last), (1.07 * rates[-1], free - 0.8), fontsize=8)
    axis.set_xscale("log")
    axis.set_xlim(13, 260)
    axis.set_xticks(rates, list(points))
    axis.minorticks_off()
    axis.set_xlabel("frames a second of the video, 2 threads of an AMD EPYC (Zen 3)", fontsize=8)
    axis.set_ylabel("success AUC, 3 videos", fontsize=8)
    axis.tick_params(labelsize=7)
    axis.grid(color="#e6e6e6", zorder=0)
    axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(picture, dpi=130)


def draw_reliability(results: Path, picture: Path) -> None:
    """The share of boxes that overlap the target by half, over what the score and the calibrated score say."""
    found = json.loads(results.read_text(encoding="utf-8"))["calibration"]
    figure, axis = plt.subplots(figsize=(4.2, 3.6), layout="constrained")
    axis.plot([0, 1], [0, 1], ":", color=PEER)
    for part, colour, label in (("before", PEER, "score"), ("after, held out", OURS, "calibrated")):
        stated, share, weight = np.array(found[part]["bins"]).T
        axis.plot(stated, share, "-", color=colour, label=f"{label}, ECE {found[part]['ece']:.3f}")
        axis.scatter(stated, share, 300 * weight, color=colour)
    axis.set_xlabel("stated probability (size: share of frames)", fontsize=8)
    axis.set_ylabel("share of boxes that overlap by 0.5 or more", fontsize=8)
    axis.tick_params(labelsize=7)
    axis.legend(fontsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(picture, dpi=130)


if __name__ == "__main__":
    draw_reliability(DOCS / "results.json", DOCS / "reliability.png")
    draw_realtime(DOCS / "results.json", DOCS / "realtime.png")
    draw_track(DOCS / "demo.gif")
    draw_inside(DOCS / "inside.png")
    draw_peers(DOCS.parent / "bench" / "results" / "amd-epyc-zen3-2cores-peers-track.json", DOCS / "peers.png")
