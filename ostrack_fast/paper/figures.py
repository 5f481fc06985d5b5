"""Figures 1, 4, 5 and 6 of the paper, from results and a video of one's own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import torch
from matplotlib.figure import Figure

from .. import ops
from ..baselines import TwoStream
from ..data.images import Image
from ..files import read_json, write_atomically
from ..model import OSTrack
from ..tracker import Tracker
from ..visualization.inside import SIDE, Inside, View, default_blocks, draw, heat, titled
from ..visualization.sheet import save_figure
from .report import Report, Tell

Point = tuple[str, float, float]
"""A tracker's name, its frames a second, and its accuracy in percent."""

# What `figures` writes.
FILES = ("figure1.png", "figure4.jpg", "figure5.jpg", "figure6.jpg")
# Of the paper's Figure 1: AO on GOT-10k, and frames a second on an RTX 2080 Ti.
PUBLISHED: list[Point] = [("OSTrack-256", 105.4, 71.0), ("OSTrack-384", 58.1, 73.7), ("SwinTrack-B", 52.0, 69.4)]


def read_points(paths: Sequence[Path]) -> list[Point]:
    """The trackers of files with figures: of `ostrack-fast evaluate --json`, or with `trackers` by name.

    A tracker is called as its file is, or as `trackers` names it, with `median_ms` and `auc`; those without are left
    out.

    Raises:
        ValueError: a file is neither. FileNotFoundError: no such file.
    """
    points: list[Point] = []
    for path in paths:
        try:
            found = read_json(path)
            if "trackers" in found:
                measured = {name: each for name, each in found["trackers"].items() if "auc" in each}
                points += [(name, 1e3 / each["median_ms"], 100 * each["auc"]) for name, each in measured.items()]
            else:
                points.append((path.stem, float(found["mean"]["fps"]), 100 * float(found["mean"]["auc"])))
        except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError) as error:
            raise ValueError(f"{path} holds no speed and accuracy of trackers: {error!r:.80}") from None
    return points


def draw_speed(points: Sequence[Point], path: Path) -> None:
    """Figure 1: accuracy over speed, ours and the paper's side by side. Raises as `save_figure`."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    panels = ("here: success AUC of the videos", points), ("paper: AO on GOT-10k, RTX 2080 Ti", PUBLISHED)
    for axes, (title, shown) in zip(figure.subplots(1, 2), panels, strict=True):
        ranges = np.ptp([point[1:] for point in shown], axis=0) if shown else np.zeros(2)
        wide, high = ranges * (0.3, 0.06)
        for number, (name, fps, accuracy) in enumerate(shown):
            # Below its point where a name before it would be covered.
            near = any(abs(fps - f) < wide and abs(accuracy - a) < high for _, f, a in shown[:number])
            ours = "ostrack" in name.lower()
            axes.scatter(fps, accuracy, color="#2f6db5" if ours else "#9a9a9a", zorder=2)
            axes.annotate(name, (fps, accuracy), (5, -9 if near else 4), textcoords="offset points", fontsize=7)
        axes.set(title=title, xlabel="frames a second", ylabel="percent")
        axes.margins(x=0.35, y=0.15)
        axes.grid(alpha=0.3)
    save_figure(figure, path, dpi=120)


def two_stream_features(model: TwoStream, frame: Image, box: Sequence[float]) -> np.ndarray:
    """The norm (F,F) of the search region's features behind its stream, which never saw the template."""
    around = torch.tensor([list(box)], dtype=torch.float64, device="cpu")
    search, _ = ops.crop(torch.from_numpy(frame), around, model.cfg.search_factor, model.cfg.search_size)
    with torch.no_grad():
        features = model.stream_search(search)[0]
    return features.norm(dim=1).reshape(model.cfg.search_grid, -1).numpy()


def figures(
    frames: Iterable[Image], box: Sequence[float], model: OSTrack, folder: Path, shown: Sequence[int],
    points: Sequence[Point], two_stream: TwoStream | None, tell: Tell,
) -> Report:  # fmt: skip
    """Draw the figures into a folder as figure1.png, figure4.jpg and so on.

    Args:
        frames: a video; the first frame holds the target in `box`, which is tracked from there.
        shown: numbers, 1 or more, of the frames that make the rows of the figures; the first frame is 0.
        points: of Figure 1; it is left out where there are none.
        two_stream: the network beside ours in Figure 6; None leaves its column out.

    Raises:
        ValueError: the video is shorter.
    """
    rows: dict[str, list[Image]] = {"figure4": [], "figure5": [], "figure6": []}
    wanted = sorted(set(shown))
    tracker, inside, index = Tracker(model, "cpu", "float32"), None, -1
    for index, frame in enumerate(islice(frames, wanted[-1] + 1)):
        tell(f"tracking, frame {index}")
        if inside is None:
            tracker.initialize(frame, box)
            inside = Inside(model, frame, box)
            continue
        if index in wanted:
            view = inside.look(frame, box)
            rows["figure4"].append(draw(view, "attention", default_blocks(model, "attention")))
            rows["figure5"].append(draw(view, "elimination", default_blocks(model, "elimination")))
            rows["figure6"].append(_features(view, two_stream, frame, box))
        box = tracker.track(frame).box
    if index < wanted[-1]:
        raise ValueError(f"the video has {index + 1} frames, none of number {wanted[-1]}")
    lines = []
    if points:
        draw_speed(points, folder / "figure1.png")
        lines.append(["1", "accuracy over speed", f"{len(points)} trackers", str(folder / "figure1.png")])
    what = ("what the template's centre attends to", "candidates left", "features, one stream beside two")
    for (name, pictures), words in zip(rows.items(), what, strict=True):
        _write(np.concatenate(pictures), folder / f"{name}.jpg")
        lines.append([name[-1], words, f"frames {', '.join(map(str, wanted))}", str(folder / f"{name}.jpg")])
    return Report(
        "Figures of the paper",
        ["figure", "what", "from", "file"],
        lines,
        [] if two_stream else ["Figure 6 shows one stream alone: --two-stream WEIGHTS puts a trained one beside it"],
        {"files": [Path(line[-1]).name for line in lines]},
    )


def _features(view: View, two_stream: TwoStream | None, frame: Image, box: Sequence[float]) -> Image:
    """The search region, the two-stream network's features where there is one, and ours."""
    region = cv2.resize(view.region, (SIDE, SIDE))
    panels = [titled(region, "search region")]
    if two_stream is not None:
        panels.append(titled(heat(region, stretched(two_stream_features(two_stream, frame, box))), "two streams"))
    panels.append(titled(heat(region, stretched(view.features)), "one stream (OSTrack)"))
    return np.concatenate(panels, axis=1)


def stretched(values: np.ndarray) -> np.ndarray:
    """From 0 for the smallest value of a cell that is left to 1 for the largest; eliminated cells, 0, stay so."""
    left = values[values > 0]
    low, high = (float(left.min()), float(left.max())) if left.size else (0.0, 1.0)
    return np.clip((values - low) / max(high - low, 1e-12), 0, 1).astype(np.float32)


def _write(picture: Image, path: Path) -> None:
    data = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 88])[1].tobytes()
    write_atomically(path, lambda temporary: Path(temporary).write_bytes(data))
